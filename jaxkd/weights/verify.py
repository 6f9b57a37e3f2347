"""Converted weights against torch, part by part: the largest error of each, on seeded random images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxkd import models
from jaxkd.errors import UserError
from jaxkd.weights import portable
from jaxkd.weights.opened import Opened

Parts = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Difference:
  """One part at one image size: the largest absolute error, and the largest value of the reference."""

  part: str
  size: int
  error: float
  scale: float

  @property
  def relative(self) -> float:
    """The error as a share of the largest value where that is above 1, else absolute."""
    return self.error / max(self.scale, 1.0)


def verify(
  opened: Opened, state: Mapping[str, np.ndarray], *, sizes: tuple[int, ...] = (), batch: int = 2
) -> list[Difference]:
  """Runs torch on the original `state` and our model on the converted variables, in float32.

  `sizes`: image sides; the model's own when empty. The torch side is transformers for its styles, otherwise plain
  torch modules that load the original names strictly.

  Raises:
    UserError: torch (or transformers) is missing, or there is no torch counterpart.
  """
  model, run = _ours(opened), _reference(opened, state)
  found = []
  for size in sizes or (model.image_size[0],):
    images = np.random.default_rng(size).normal(size=(batch, size, size, model.in_channels))
    found += compare(
      model, opened.conversion.variables, images.astype(np.float32), run(images.astype(np.float32))
    )
  return found


def verify_golden(opened: Opened, path: Path) -> list[Difference]:
  """The same against an .npz that holds `images` [b h w c] uint8, shown as x / 127.5 - 1, and `SIZE/PART` arrays.

  Raises:
    UserError: the file is no such archive.
  """
  try:
    with np.load(path) as file:
      arrays = dict(file)
    images = arrays["images"].astype(np.float32) / np.float32(127.5) - 1
  except (OSError, ValueError, KeyError) as e:
    raise UserError(
      f"{path} is no golden file: {e}", "see tests/parity/make_goldens.py for what it holds"
    ) from e
  sizes = sorted({int(k.partition("/")[0]) for k in arrays if k.partition("/")[0].isdigit()})
  model, found = _ours(opened), []
  for size in sizes:
    parts = {k.partition("/")[2]: v for k, v in arrays.items() if k.startswith(f"{size}/")}
    found += compare(model, opened.conversion.variables, images[:, :size, :size], parts)
  return found


def compare(model: Any, variables: Any, images: np.ndarray, parts: Parts) -> list[Difference]:
  """The difference of every part that both sides name."""
  taps = jax.jit(lambda v, x: model.apply(v, x)[1])(variables, images)
  return [
    Difference(name, images.shape[1], float(np.abs(part - taps[name]).max()), float(np.abs(part).max()))
    for name, part in parts.items()
    if name in taps
  ]


def _ours(opened: Opened) -> Any:
  known = models.options(opened.options["name"])
  exact = portable.FLOAT32 | ({"attention": "xla"} if "attention" in known else {})
  return models.create(**{**opened.options, **exact})


def _reference(opened: Opened, state: Mapping[str, np.ndarray]) -> Callable[[np.ndarray], Parts]:
  style = opened.conversion.style
  try:
    if style.startswith("transformers"):
      from jaxkd.weights import reference_transformers as library

      module = library.build(opened.options, state)
      return lambda images: library.run(module, images)
    from jaxkd.weights import reference

    table = opened.conversion.variables["params"].get("pos_embed")
    plain = reference.load(reference.build(_ours(opened), style, reference.grid(_ours(opened), table)), state)
    return lambda images: reference.run(plain, images)
  except ImportError as e:
    raise UserError(
      f"verifying style '{style}' needs {e.name}, which is not installed",
      "pip install 'jaxkd[torch]' transformers, or verify with --golden FILE.npz",
    ) from e
  except ValueError as e:
    raise UserError(str(e), "verify with --golden FILE.npz") from e
