"""What a weights file, a checkpoint of ours or any Orbax folder holds, without building a model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxkd import checkpoint
from jaxkd.errors import IntegrityFailure, UserError
from jaxkd.weights.read import IN_FOLDERS, WeightFile, read_weights

Row = dict[str, Any]


def inspect(path: str | Path) -> dict[str, Any]:
  """Everything `jaxkd inspect` shows, as JSON types: `path`, `kind`, facts by kind, `arrays`, `dtypes`, `parameters`.

  `kind` is `checkpoint` (a run folder, or one step), `safetensors`, `torch` or `orbax` (a tree of somebody else's).
  `arrays` has name, shape, dtype, bytes and sha256 of each; `dtypes` the arrays and bytes by dtype; `parameters` the
  number of floating-point values (of a checkpoint: those under `params/`, not the optimiser's).

  Raises:
    UserError: nothing there, or nothing known. IntegrityFailure: damaged bytes.
  """
  path = Path(path)
  if path.is_file() or any((path / name).is_file() for name in IN_FOLDERS):
    about = _weights(read_weights(path))
  elif path.is_dir() and not _is_run(path) and (tree := _orbax_folder(path)):
    about = {"path": str(tree), "kind": "orbax", "arrays": orbax_rows(tree)}
  elif path.suffix and not path.is_dir():
    about = _weights(read_weights(path))  # complains, with the names near it
  else:
    about = _checkpoint(checkpoint.load(path))
  rows = about["arrays"]
  trained = [row for row in rows if about["kind"] != "checkpoint" or row["name"].startswith("params/")]
  return {**about, "dtypes": dtypes(rows), "parameters": parameters(trained)}


def describe(found: WeightFile) -> list[Row]:
  """Name, shape, dtype, bytes and sha256 (of dtype, shape and bytes, as in checkpoints) of each array."""
  return [_row(name, array) for name, array in found.arrays.items()]


def dtypes(rows: Iterable[Row]) -> dict[str, dict[str, int]]:
  """The number of arrays and their bytes, by dtype."""
  found: dict[str, dict[str, int]] = {}
  for row in sorted(rows, key=lambda row: row["dtype"]):
    entry = found.setdefault(row["dtype"], {"arrays": 0, "bytes": 0})
    entry["arrays"] += 1
    entry["bytes"] += row["bytes"]
  return found


def parameters(rows: Iterable[Row]) -> int:
  """The number of floating-point values: integer arrays are counters, not parameters."""
  return sum(math.prod(row["shape"]) for row in rows if "float" in row["dtype"])


def orbax_rows(path: Path) -> list[Row]:
  """The leaves of an Orbax tree in path order, read as numpy arrays; strings and empty nodes are left out.

  Raises:
    IntegrityFailure: Orbax cannot read it.
  """
  try:
    with ocp.PyTreeCheckpointer() as reader:
      tree = reader.metadata(path.absolute()).item_metadata.tree
      arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
      state = reader.restore(path.absolute(), args=ocp.args.PyTreeRestore(restore_args=arrays))
  except Exception as e:  # Orbax, TensorStore and JSON each raise their own kinds
    raise IntegrityFailure(
      f"{path}: unreadable as an Orbax tree ({type(e).__name__})", "copy it again"
    ) from e
  leaves = jax.tree_util.tree_leaves_with_path(state)
  named = [
    (jax.tree_util.keystr(keys, simple=True, separator="/"), np.asarray(leaf)) for keys, leaf in leaves
  ]
  return [_row(name, array) for name, array in named if array.dtype.kind not in "OUS"]


def _row(name: str, array: np.ndarray) -> Row:
  return {
    "name": name,
    "shape": list(array.shape),
    "dtype": str(array.dtype),
    "bytes": int(array.nbytes),
    "sha256": checkpoint.array_digest(array),
  }


def _weights(found: WeightFile) -> dict[str, Any]:
  return {
    "path": str(found.path),
    "kind": found.format,
    "bytes": found.bytes,
    "sha256": found.sha256,
    "metadata": found.metadata,
    "notes": list(found.notes),
    "arrays": describe(found),
  }


def _checkpoint(found: checkpoint.Checkpoint) -> dict[str, Any]:
  return {
    "path": str(found.path),
    "kind": "checkpoint",
    "step": found.step,
    "digest": found.digest,
    "meta": found.meta,
    "config": found.config,
    "arrays": checkpoint.arrays(found),
  }


def _is_run(path: Path) -> bool:
  """Whether `path` leads to a step that we wrote: only those carry digests."""
  try:
    return (checkpoint.resolve(path) / "digests").is_dir()
  except UserError:
    return False


def _orbax_folder(path: Path) -> Path | None:
  """The folder of an Orbax tree: `path`, or the item `default` of a CheckpointManager's step."""
  return next((p for p in (path, path / "default") if (p / "_METADATA").is_file()), None)
