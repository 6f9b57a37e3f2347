"""Geometry: which part of the source image each view shows, and how it is turned.

A box (top, left, height, width, mirrored) is sampled bilinearly with zeros outside. Pad-crop, mirroring and random
resized crops are all boxes, so one separable resampling serves them; a box of the image's own size at whole pixels
copies its pixels exactly. What is not separable (rotation, shear, a policy's geometry) is composed with the box to one
matrix and costs one gather.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd.data import operations

ASPECT = (3 / 4, 4 / 3)  # of random resized crops, as in Inception and DINO
NO_SCALE = (1.0, 1.0)


def draw_boxes(
  key: Array, shape: tuple[int, ...], *, crop: int, flip: bool, scale: tuple[float, float]
) -> Float[Array, "b 5"]:
  """One geometry per image of `shape` [b h w c]: (top, left, height, width, mirrored) in pixels."""
  b, h, w, _ = shape
  k_shift, k_flip, k_area, k_aspect, k_place = jax.random.split(key, 5)
  mirrored = jax.random.bernoulli(k_flip, 0.5, (b,)).astype(jnp.float32) * float(flip)
  shift = jax.random.randint(k_shift, (b, 2), -crop, crop + 1).astype(jnp.float32)
  size = jnp.broadcast_to(jnp.array([h, w], jnp.float32), (b, 2))
  if tuple(scale) != NO_SCALE:
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


def draw_affine(
  key: Array,
  shape: tuple[int, ...],
  *,
  rotation: float = 0.0,
  translate: float = 0.0,
  scale: tuple[float, float] = NO_SCALE,
  shear: float = 0.0,
) -> dict[str, Float[Array, "b ..."]]:
  """What `affine_matrices` does to each image of `shape` [b h w c]; only the operations asked for have an entry.

  Returns:
    `rotation` and `shear` [b] in degrees, uniform in [-x, x]; `translate` [b 2] in whole pixels (down, right), up to
    the share x of the side; `scale` [b], a magnification whose logarithm is uniform.
  """
  b, h, w, _ = shape
  k_rotation, k_translate, k_scale, k_shear = jax.random.split(key, 4)
  drawn = {}
  if rotation:
    drawn["rotation"] = jax.random.uniform(k_rotation, (b,), minval=-rotation, maxval=rotation)
  if translate:
    reach = translate * jnp.array([[h, w]], jnp.float32)
    drawn["translate"] = jnp.round(reach * jax.random.uniform(k_translate, (b, 2), minval=-1.0))
  if tuple(scale) != NO_SCALE:
    low, high = jnp.log(jnp.array(scale, jnp.float32))
    drawn["scale"] = jnp.exp(jax.random.uniform(k_scale, (b,), minval=low, maxval=high))
  if shear:
    drawn["shear"] = jax.random.uniform(k_shear, (b,), minval=-shear, maxval=shear)
  return drawn


def affine_matrices(drawn: dict[str, Array], b: int, size: tuple[int, int]) -> Float[Array, "b 2 3"]:
  """Matrices for `operations.affine`: shear and magnification about the centre, rotation, then translation."""
  zero, one = jnp.zeros((b,), jnp.float32), jnp.ones((b,), jnp.float32)
  centre = jnp.array([[size[1] / 2, size[0] / 2]], jnp.float32)
  linear = operations.shear_matrices(jnp.tan(jnp.deg2rad(drawn.get("shear", zero))), zero)[..., :2]
  linear = linear / drawn.get("scale", one)[:, None, None]
  shift = centre - jnp.einsum("bij,bj->bi", linear, jnp.broadcast_to(centre, (b, 2)), precision="highest")
  about_centre = jnp.concatenate([linear, shift[..., None]], axis=-1)
  turned = operations.rotate_matrices(drawn.get("rotation", zero), size)
  down, right = drawn.get("translate", jnp.zeros((b, 2), jnp.float32)).T
  moved = operations.translate_matrices(-right, -down)
  return operations.compose(operations.compose(about_centre, turned), moved)
