"""Augmentation inside the step: one geometry for every branch, photometry for the student only (spec 5).

A geometry is a box (top, left, height, width, mirrored) in the source image, sampled bilinearly with zeros
outside. Pad-crop, mirroring and random resized crops are all boxes, so one separable resampling serves them;
a box of the image's own size at whole pixels copies its pixels exactly.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

ASPECT = (3 / 4, 4 / 3)  # of random resized crops, as in Inception and DINO


def make_views(
  images: UInt8[Array, "b h w c"], key: Array, *, mean: tuple[float, ...], augment: dict, views: dict
) -> dict[str, Float[Array, ...]]:
  """What each branch sees, as float32 in [0, 1], not yet normalised.

  Args:
    images: the raw batch.
    key: PRNG key of this step.
    mean: value per channel that Cutout paints.
    augment: `config.data.augment`. views: `config.data.views`.

  Returns:
    `student` [v*b h w c] (view-major, v = `global_count`), `aligned` the same geometries without photometry,
    `same` = `student`, `clean` the source images repeated, and `local` [m*b s s c] when m = `local_count` > 0.
  """
  k_box, k_photo, k_local, k_local_photo = jax.random.split(key, 4)
  source = images.astype(jnp.float32) / 255
  globals_ = jnp.tile(source, (views["global_count"], 1, 1, 1))
  boxes = draw_boxes(
    k_box, globals_.shape, crop=augment["crop"], flip=augment["flip"], scale=views["global_scale"]
  )
  aligned = sample_boxes(globals_, boxes, globals_.shape[1])
  student = photometry(aligned, k_photo, mean=mean, **_photometric(augment))
  out = {"student": student, "same": student, "aligned": aligned, "clean": globals_}
  if views["local_count"]:
    locals_ = jnp.tile(source, (views["local_count"], 1, 1, 1))
    boxes = draw_boxes(k_local, locals_.shape, crop=0, flip=augment["flip"], scale=views["local_scale"])
    small = sample_boxes(locals_, boxes, views["local_size"])
    out["local"] = photometry(small, k_local_photo, mean=mean, **_photometric(augment))
  return out


def _photometric(augment: dict) -> dict:
  return {k: augment[k] for k in ("brightness", "contrast", "cutout")}


def draw_boxes(
  key: Array, shape: tuple[int, ...], *, crop: int, flip: bool, scale: tuple[float, float]
) -> Float[Array, "b 5"]:
  """One geometry per image of `shape` [b h w c]: (top, left, height, width, mirrored) in pixels."""
  b, h, w, _ = shape
  k_shift, k_flip, k_area, k_aspect, k_place = jax.random.split(key, 5)
  mirrored = jax.random.bernoulli(k_flip, 0.5, (b,)).astype(jnp.float32) * float(flip)
  shift = jax.random.randint(k_shift, (b, 2), -crop, crop + 1).astype(jnp.float32)
  size = jnp.broadcast_to(jnp.array([h, w], jnp.float32), (b, 2))
  if tuple(scale) != (1.0, 1.0):
    area = jax.random.uniform(k_area, (b,), minval=scale[0], maxval=scale[1])
    aspect = jnp.exp(jax.random.uniform(k_aspect, (b,), minval=jnp.log(ASPECT[0]), maxval=jnp.log(ASPECT[1])))
    share = jnp.stack([jnp.sqrt(area / aspect), jnp.sqrt(area * aspect)], axis=1)
    size = size * jnp.minimum(share, 1.0)
    room = jnp.array([[h, w]], jnp.float32) - size
    shift = shift + room * jax.random.uniform(k_place, (b, 2))
  return jnp.concatenate([shift, size, mirrored[:, None]], axis=1)


def sample_boxes(
  images: Float[Array, "b h w c"], boxes: Float[Array, "b 5"], size: int
) -> Float[Array, "b {size} {size} c"]:
  """Each image's box, resampled bilinearly (half-pixel centres, zeros outside, no antialiasing) to `size`."""
  _, h, w, _ = images.shape
  top, left, height, width, mirrored = boxes.T
  rows = _weights(top, height, jnp.zeros_like(mirrored), size, h)
  columns = _weights(left, width, mirrored, size, w)
  exact = jax.lax.Precision.HIGHEST
  return jnp.einsum("bij,bjkc,blk->bilc", rows, images, columns, precision=exact)


def _weights(start, length, mirrored, size: int, source: int) -> Float[Array, "b {size} {source}"]:
  """Bilinear weights of `source` pixels for each of `size` samples along one axis."""
  sample = jnp.arange(size, dtype=jnp.float32)[None]
  sample = jnp.where(mirrored[:, None] > 0, size - 1 - sample, sample)
  position = start[:, None] + (sample + 0.5) * (length[:, None] / size) - 0.5
  pixels = jnp.arange(source, dtype=jnp.float32)[None, None]
  return jnp.maximum(0.0, 1.0 - jnp.abs(position[:, :, None] - pixels))


def photometry(
  images: Float[Array, "b h w c"],
  key: Array,
  *,
  mean: tuple[float, ...],
  brightness: float,
  contrast: float,
  cutout: int,
) -> Float[Array, "b h w c"]:
  """Brightness, contrast (around the image's own mean grey) and Cutout, in this order, in [0, 1]."""
  k_brightness, k_contrast, k_cutout = jax.random.split(key, 3)
  b = images.shape[0]
  if brightness:
    images = jnp.clip(images * _factor(k_brightness, b, brightness), 0, 1)
  if contrast:
    grey = images.mean(axis=(1, 2, 3), keepdims=True)
    images = jnp.clip(grey + (images - grey) * _factor(k_contrast, b, contrast), 0, 1)
  return _cutout(images, k_cutout, cutout, mean) if cutout else images


def _factor(key: Array, b: int, amount: float) -> Float[Array, "b 1 1 1"]:
  return jax.random.uniform(key, (b, 1, 1, 1), minval=1 - amount, maxval=1 + amount)


def _cutout(images, key: Array, side: int, mean: tuple[float, ...]) -> Float[Array, "b h w c"]:
  """One square of `side` pixels per image, centred anywhere and cut at the border (DeVries and Taylor, 2017)."""
  b, h, w, c = images.shape
  k_row, k_column = jax.random.split(key)
  top = jax.random.randint(k_row, (b, 1), 0, h) - side // 2
  left = jax.random.randint(k_column, (b, 1), 0, w) - side // 2
  rows, columns = jnp.arange(h)[None], jnp.arange(w)[None]
  hit_rows = (rows >= top) & (rows < top + side)
  hit_columns = (columns >= left) & (columns < left + side)
  hit = (hit_rows[:, :, None] & hit_columns[:, None, :])[..., None]
  paint = jnp.array(mean, jnp.float32).reshape(1, 1, 1, c)
  return jnp.where(hit, paint, images)
