"""A trained checkpoint taken elsewhere: torch names as safetensors, a `jax.export` program, or ONNX; with a model card.

Nothing is called written before it was read back and compared with the model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxkd import files, models
from jaxkd.checkpoint import Checkpoint
from jaxkd.errors import IntegrityFailure, UserError, did_you_mean
from jaxkd.weights import portable, tables
from jaxkd.weights.card import model_card
from jaxkd.weights.convert import convert_state, to_torch
from jaxkd.weights.read import read_weights, sha256_file, write_safetensors
from jaxkd.weights.transformers_config import transformers_config

PROGRAMS = ("jax", "onnx")
# Moving the position rows into the tokens adds in another order: outputs then agree to rounding only.
ROUNDING = 1e-6


def formats(model: str) -> list[str]:
  """What `export` can write for a model: the styles of its names, and the two program formats."""
  return [*tables.styles(model), *PROGRAMS]


def export(found: Checkpoint, out: Path, *, style: str) -> list[Path]:
  """Writes the model of a checkpoint, and its card beside it; returns the files written.

  `style` is one of `formats`. `transformers` writes a folder that `from_pretrained` takes (config.json and
  model.safetensors in its files' names, which all its versions read); other styles one .safetensors file; `jax` a
  serialised program with the weights inside and any batch size; `onnx` the same for ONNX runtimes.

  Raises:
    UserError: the model cannot be written in that style. IntegrityFailure: what was read back is another model.
    CannotWrite: the disk is full or read-only.
  """
  name = found.model_options["name"]
  if style not in formats(name):
    raise UserError(f"model '{name}' has no style '{style}'", did_you_mean(style, formats(name)))
  if style == "jax":
    written = portable.write_jax(found, out)
  elif style == "onnx":
    written = portable.write_onnx(found, out)
  elif style.startswith("transformers"):
    written = _transformers(found, out)
  else:
    written = _safetensors(found, out, style)
  card = out / "README.md" if out.is_dir() else out.with_name(out.name + ".md")
  files.write_text(card, model_card(found, style, written))
  return [*written, card]


def _safetensors(found: Checkpoint, out: Path, style: str) -> list[Path]:
  if out.is_dir() or out.suffix != ".safetensors":
    raise UserError(f"--out {out} is not a .safetensors file", f"name a file, such as {out.name}.safetensors")
  name = found.model_options["name"]
  state = to_torch(name, found.variables, style)
  write_safetensors(out, state, {"model": name, "style": style, "checkpoint": found.digest})
  check_same(found, out, style)
  return [out]


def _transformers(found: Checkpoint, out: Path) -> list[Path]:
  if out.is_file() or out.suffix:
    raise UserError(f"--out {out}: transformers reads a folder", "name a folder, without a suffix")
  name = found.model_options["name"]
  config = transformers_config(found.model_options)
  state = to_torch(name, found.variables, "transformers_hub")
  weights = out / "model.safetensors"
  write_safetensors(weights, state, {"checkpoint": found.digest})
  files.write_text(out / "config.json", json.dumps(config, indent=2) + "\n")
  check_same(found, weights, "transformers_hub")
  return [weights, out / "config.json"]


def check_same(found: Checkpoint, path: Path, style: str) -> None:
  """Reads the file back into a model and compares every leaf, and where rows were folded the outputs.

  Raises:
    IntegrityFailure: it is not the model of the checkpoint.
  """
  options = dict(found.model_options)
  name = options.pop("name")
  back = convert_state(name, read_weights(path).arrays, style=style, **options).variables
  own, other = (traverse_util.flatten_dict(v, sep="/") for v in (found.variables, back))
  different = [k for k in own if not np.array_equal(np.asarray(own[k], np.float32), other[k])]
  folded = style != "jaxkd" and tables.table(name, style).folds_positions
  if different and (not folded or _output_error(options | {"name": name}, found.variables, back) > ROUNDING):
    raise IntegrityFailure(
      f"{path}: read back, it differs from the checkpoint in {', '.join(different[:5])}",
      "report this as a bug",
    )


def _output_error(options: dict[str, Any], a: Any, b: Any) -> float:
  model = models.create(**options | portable.FLOAT32)
  images = jax.random.normal(jax.random.key(0), (2, *model.image_size, model.in_channels))
  logits = [jax.jit(lambda v, x: model.apply(v, x)[0])(v, images) for v in (a, b)]
  return float(jnp.abs(logits[0] - logits[1]).max() / jnp.maximum(jnp.abs(logits[0]).max(), 1))


def describe(written: list[Path]) -> list[tuple[str, int, str]]:
  """(name, bytes, sha256) of each file."""
  return [(str(p), p.stat().st_size, sha256_file(p)) for p in written]
