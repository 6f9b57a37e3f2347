"""A model as a program: `jax.export` (StableHLO with its weights) and ONNX, each checked against the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import files, models
from jaxkd.checkpoint import Checkpoint
from jaxkd.errors import IntegrityFailure, UserError

PLATFORMS = ("cpu", "cuda")
BATCHES = (1, 5)
# float32 programs of one model, compiled by different compilers; relative to the largest logit.
TOLERANCE = 1e-5
# What runs everywhere.
FLOAT32: dict[str, Any] = {"dtype": "float32"}


def _model(found: Checkpoint):
  known = models.options(found.model_options["name"])
  portable = FLOAT32 | ({"attention": "xla"} if "attention" in known else {})
  return models.create(**{**found.model_options, **portable})


def _function(found: Checkpoint) -> tuple[Callable, tuple[int, int, int]]:
  """(images [b h w c] float32, normalised -> logits [b c] float32) with the weights inside, and [h w c]."""
  model = _model(found)
  return lambda images: model.apply(found.variables, images)[0], (*model.image_size, model.in_channels)


def write_jax(found: Checkpoint, out: Path) -> list[Path]:
  """A `jax.export` artefact for CPU and CUDA with any batch size; read it with `jax.export.deserialize`.

  Raises:
    IntegrityFailure: read back, its logits differ from the model's. CannotWrite: the disk is full or read-only.
  """
  function, shape = _function(found)
  (batch,) = jax.export.symbolic_shape("b")
  images = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
  exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(images)
  files.write_bytes(out, bytes(exported.serialize()))
  back = jax.export.deserialize(bytearray(out.read_bytes()))
  _compare(found, lambda x: back.call(x), out)
  return [out]


def write_onnx(found: Checkpoint, out: Path) -> list[Path]:
  """An ONNX model with input `images` [B h w c] float32 (normalised) and the logits as its output.

  Raises:
    UserError: the extra is not installed. IntegrityFailure: the runtime's logits differ from the model's.
  """
  try:
    import onnxruntime
    from jax2onnx import to_onnx
  except ImportError as e:
    raise UserError(f"ONNX export needs {e.name}, which is not installed", "pip install 'jaxkd[onnx]'") from e
  function, shape = _function(found)
  program = to_onnx(function, inputs=[("B", *shape)], model_name=found.model_options["name"])
  files.write_bytes(out, program.SerializeToString())
  session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
  entry = session.get_inputs()[0].name
  _compare(found, lambda x: session.run(None, {entry: np.asarray(x)})[0], out)
  return [out]


def _compare(found: Checkpoint, other: Callable, path: Path) -> None:
  function, shape = _function(found)
  for batch in BATCHES:
    images = np.random.default_rng(batch).normal(size=(batch, *shape)).astype(np.float32)
    expected = np.asarray(jax.jit(function)(images))
    error = float(np.abs(np.asarray(other(images)) - expected).max() / max(np.abs(expected).max(), 1))
    if not error <= TOLERANCE:
      path.unlink()
      raise IntegrityFailure(
        f"{path}: its logits differ from the model's by {error:.1e} at batch {batch}", "report this as a bug"
      )
