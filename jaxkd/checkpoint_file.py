"""A checkpoint as one safetensors file: what the model is applied with, its config, what it says of itself, a digest.

The optimiser's state is left out, so such a file is examined, served and taught from, not resumed. It is small enough
to be kept beside the numbers that were measured on it. Equal checkpoints give equal files.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open

from jaxkd.checkpoint import Checkpoint, digests, total_digest
from jaxkd.errors import IntegrityFailure
from jaxkd.weights.safetensors_file import load_safetensors, write_safetensors

FORMAT = "jaxkd.checkpoint/1"


def write(found: Checkpoint, path: Path) -> Checkpoint:
  """Writes what `found` is used with (its average, where it has one) and returns it as `read` will.

  Raises:
    CannotWrite: the disk is full or read-only.
  """
  variables = dict(found.variables)
  state = {"params": {"model": variables.pop("params")}, "stats": variables}
  arrays = {k: np.asarray(v) for k, v in traverse_util.flatten_dict(state, sep="/").items()}
  about = {
    "jaxkd": FORMAT,
    "step": str(found.step),
    "config": _text(found.config),
    "meta": _text({**found.meta, "inference": "params"}),
    "digest": total_digest(digests(state)),
  }
  write_safetensors(path, arrays, about)
  return read(path)


def is_checkpoint_file(path: str | Path) -> bool:
  """Whether `path` is a file that `write` made, by its header."""
  return _header(Path(path)).get("jaxkd") == FORMAT


def read(path: Path) -> Checkpoint:
  """The checkpoint in the file `path`, every array checked.

  Raises:
    UserError: the file is incomplete. IntegrityFailure: its arrays are not those that were written.
  """
  arrays, about = load_safetensors(path)
  state = {"stats": {}, **traverse_util.unflatten_dict({k: np.array(v) for k, v in arrays.items()}, sep="/")}
  digest = total_digest(digests(state))
  if digest != about["digest"]:
    raise IntegrityFailure(f"checkpoint {path}: its arrays are not those that were written", "get it again")
  return Checkpoint(
    path, int(about["step"]), state, json.loads(about["config"]), json.loads(about["meta"]), digest
  )


def _text(value) -> str:
  return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _header(path: Path) -> dict[str, str]:
  """The metadata of a safetensors file; empty for anything else."""
  if path.suffix != ".safetensors" or not path.is_file():
    return {}
  try:
    with safe_open(path, framework="np") as f:
      return f.metadata() or {}
  except SafetensorError:
    return {}
