"""Photometry: what a view looks like, with the geometry left alone. Drawn first, then applied, so that it can be told.

Brightness, contrast, erasing and Cutout are exact in floats. A policy and the other colour operations are defined on
8-bit levels: where one of them is on, the images are rounded to levels for them, and stay floats otherwise.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt

from jaxkd.data import operations, packing, policies
from jaxkd.data.policies import Plan

ON_LEVELS = ("saturation", "hue", "grayscale", "blur", "solarize")
BLUR = (0.1, 2.0)  # sigma in pixels, as in SimCLR and DINO
SOLARIZE = 128  # threshold, as in BYOL and DINO
FURTHER = 16  # the streams of the options below are folded in from here on: far from the counters of a split

NEUTRAL = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}

Draws = dict[str, Array]
Share = Float[np.ndarray, " b"]


def photometry(
  images: Float[Array, "b h w c"], key: Array, *, mean: tuple[float, ...], **options
) -> Float[Array, "b h w c"]:
  """Draws and applies at once; see `draw_photometry` for the options and `apply_photometry` for the order."""
  return apply_photometry(images, draw_photometry(key, images.shape, **options), mean=mean)


def draw_photometry(
  key: Array,
  shape: tuple[int, ...],
  *,
  brightness: float = 0.0,
  contrast: float = 0.0,
  saturation: float = 0.0,
  hue: float = 0.0,
  jitter: float = 1.0,
  grayscale: float = 0.0,
  blur: float | Share = 0.0,
  solarize: float | Share = 0.0,
  erase: float = 0.0,
  cutout: int = 0,
) -> Draws:
  """What happens to each image of `shape` [b h w c]; only the operations asked for have an entry.

  Args:
    brightness, contrast, saturation: factors are uniform in [1 - x, 1 + x].
    hue: turns are uniform in [-x, x], in whole turns.
    jitter: probability of these four, drawn once for all of them.
    grayscale, blur, solarize, erase: probabilities; of `blur` and `solarize` also one for each image.
    cutout: side of the square in pixels.

  Returns:
    [b] factors, turns, sigmas (0: not blurred) and choices; [b 4] boxes (top, left, height, width) for `erase` (an
    empty box: nothing is erased) and `cutout`.
  """
  b, h, w, _ = shape
  k_brightness, k_contrast, k_cutout = jax.random.split(key, 3)
  names = (*ON_LEVELS, "sigma", "erase", "jitter")
  keys = {name: jax.random.fold_in(key, FURTHER + i) for i, name in enumerate(names)}
  drawn: Draws = {}
  factors = (("brightness", k_brightness, brightness), ("contrast", k_contrast, contrast))
  for name, k, amount in (*factors, ("saturation", keys["saturation"], saturation)):
    if amount:
      drawn[name] = jax.random.uniform(k, (b,), minval=1 - amount, maxval=1 + amount)
  if hue:
    drawn["hue"] = jax.random.uniform(keys["hue"], (b,), minval=-hue, maxval=hue)
  if drawn and jitter < 1:
    chosen = jax.random.bernoulli(keys["jitter"], jitter, (b,))
    drawn = {name: jnp.where(chosen, x, NEUTRAL[name]) for name, x in drawn.items()}
  for name, share in (("grayscale", grayscale), ("solarize", solarize)):
    if np.any(share):
      drawn[name] = jax.random.bernoulli(keys[name], share, (b,))
  if np.any(blur):
    sigma = jax.random.uniform(keys["sigma"], (b,), minval=BLUR[0], maxval=BLUR[1])
    drawn["blur"] = jnp.where(jax.random.bernoulli(keys["blur"], blur, (b,)), sigma, 0.0)
  if erase:
    positions = jnp.arange(b, dtype=jnp.int32)
    drawn["erase"] = policies.draw_erasing(keys["erase"], positions, size=(h, w), probability=erase)
  if cutout:
    drawn["cutout"] = _cutout_boxes(k_cutout, b, (h, w), cutout)
  return drawn


def _cutout_boxes(key: Array, b: int, size: tuple[int, int], side: int) -> Int[Array, "b 4"]:
  """One square per image, centred anywhere and cut at the border (DeVries and Taylor, 2017, arXiv:1708.04552)."""
  k_row, k_column = jax.random.split(key)
  top = jax.random.randint(k_row, (b, 1), 0, size[0]) - side // 2
  left = jax.random.randint(k_column, (b, 1), 0, size[1]) - side // 2
  return jnp.concatenate([top, left, jnp.full((b, 2), side, jnp.int32)], axis=1)


def floats(images: Shaped[Array, "b h w c"]) -> Float[Array, "b h w c"]:
  """Levels (uint8, or packed by `packing.pack`) in [0, 1]; floats as they are."""
  if jnp.issubdtype(images.dtype, jnp.floating):
    return images
  return packing.unpack(images).astype(jnp.float32) / 255


def levels(images: Shaped[Array, "b h w c"]) -> UInt[Array, "b h w 1"]:
  """Packed pixels of the nearest levels; levels as they are, packed."""
  if jnp.issubdtype(images.dtype, jnp.floating):
    images = jnp.round(images * 255).astype(jnp.uint8)
  return packing.pack(images)


def apply_photometry(
  images: Shaped[Array, "b h w c"], drawn: Draws, *, mean: tuple[float, ...], plan: Plan | None = None
) -> Float[Array, "b h w c"]:
  """Brightness, contrast (around the image's own mean grey), policy, saturation, hue, grayscale, blur, solarize,
  erasing and Cutout, in this order, in [0, 1]; erased pixels take the value `mean` of their channel.

  Args:
    images: floats in [0, 1], or levels: uint8 or packed.
  """
  if "brightness" in drawn or "contrast" in drawn:
    images = floats(images)
  if "brightness" in drawn:
    images = jnp.clip(images * _per_image(drawn["brightness"]), 0, 1)
  if "contrast" in drawn:
    grey = images.mean(axis=(1, 2, 3), keepdims=True)
    images = jnp.clip(grey + (images - grey) * _per_image(drawn["contrast"]), 0, 1)
  if plan is not None or any(name in drawn for name in ON_LEVELS):
    images = _on_levels(levels(images), drawn, plan)
  boxes = [drawn[name] for name in ("erase", "cutout") if name in drawn]
  return _painted(images, boxes, mean) if boxes else floats(images)


def _per_image(x) -> Array:
  return x[:, None, None, None]


def _on_levels(x, drawn: Draws, plan: Plan | None) -> UInt[Array, "b h w 1"]:
  if plan is not None:
    x = policies.apply_photometry(x, plan)
  if "saturation" in drawn:
    x = operations.color(x, drawn["saturation"])
  if "hue" in drawn:
    x = operations.hue(x, drawn["hue"])
  if "grayscale" in drawn:
    x = jnp.where(_per_image(drawn["grayscale"]), operations.grayscale(x), x)
  if "blur" in drawn:
    x = operations.gaussian_blur(x, drawn["blur"], kernel_size=_kernel_size(x.shape[1:3]))
  if "solarize" in drawn:
    x = operations.solarize(x, jnp.where(drawn["solarize"], SOLARIZE, 256).astype(jnp.float32))
  return x


def _kernel_size(size: tuple[int, ...]) -> int:
  """A tenth of the image's side, as in SimCLR: 5 at 32 pixels, 23 at 224; 3 at the least if the image has room."""
  side = min(size)
  return 2 * min(max(1, round(side / 20)), side - 1) + 1


def _painted(images, several: list[Int[Array, "b 4"]], mean: tuple[float, ...]) -> Float[Array, "b h w c"]:
  paint = jnp.array(mean, jnp.float32).reshape(1, 1, 1, -1)
  hit = functools.reduce(jnp.logical_or, (_inside(boxes, images.shape[1:3]) for boxes in several))
  if jnp.issubdtype(images.dtype, jnp.floating):
    return jnp.where(hit, paint, images)
  # The same numbers; a choice between packed pixels is made once for all channels.
  return floats(jnp.where(hit, jnp.zeros((), images.dtype), images)) + jnp.where(hit, paint, 0.0)


def _inside(boxes: Int[Array, "b 4"], size: tuple[int, ...]) -> Bool[Array, "b h w 1"]:
  top, left, height, width = (boxes[:, i, None] for i in range(4))
  rows, columns = (jnp.arange(side)[None] for side in size)
  rows, columns = (rows >= top) & (rows < top + height), (columns >= left) & (columns < left + width)
  return (rows[:, :, None] & columns[:, None, :])[..., None]
