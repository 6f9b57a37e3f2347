"""Image operations on whole batches, with Pillow's arithmetic, one magnitude per image.

Images are uint8 [b h w c] with c = 1 or 3, in and out: the policies are defined by what Pillow does to 8-bit levels,
and bytes cost a quarter of the memory traffic of floats. Everything is elementwise, a shift, a small matmul or one
gather; nothing is a loop over images.

Grey images (c = 1) follow Pillow's mode "L": `color`, `hue` and `grayscale` leave them as they are, and the grey level
that `contrast` measures is the pixel itself.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

FIXED = 65536  # Pillow's nearest sampler counts source positions in units of 1/65536 pixel
METHODS = ("nearest", "bilinear")

Fill = float | tuple[float, ...]


def _check(images) -> None:
  if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
    raise ValueError(
      f"images are {images.dtype} {images.shape}, expected uint8 [b h w c] with 1 or 3 channels; "
      "round levels in [0, 255] and cast with astype(uint8)"
    )


def _levels(x) -> UInt8[Array, ...]:
  """Clipped to [0, 255] and cut down to whole levels, as Pillow casts."""
  return jnp.clip(x, 0, 255).astype(jnp.uint8)


def _per_image(x) -> Float[Array, "b 1 1 1"]:
  return x.astype(jnp.float32)[:, None, None, None]


def _luma(images) -> Int[Array, "b h w"]:
  """Pillow's convert("L"): ITU-R 601-2 weights in 16-bit fixed point, rounded."""
  x = images.astype(jnp.int32)
  if x.shape[-1] == 1:
    return x[..., 0]
  return (x[..., 0] * 19595 + x[..., 1] * 38470 + x[..., 2] * 7471 + 0x8000) >> 16


# Geometry. A matrix [[a, b, c], [d, e, f]] maps an output point to its source: x' = a x + b y + c, y' = d x + e y + f,
# with the origin at the image's top left corner, x to the right, and pixel centres at halves.


def shear_matrices(x: Float[Array, " b"], y: Float[Array, " b"]) -> Float[Array, "b 2 3"]:
  """x' = X + x Y, y' = Y + y X about the top left corner (AutoAugment's reference implementation)."""
  one, zero = jnp.ones_like(x), jnp.zeros_like(x)
  return _rows((one, x, zero), (y, one, zero))


def translate_matrices(x: Float[Array, " b"], y: Float[Array, " b"]) -> Float[Array, "b 2 3"]:
  """The source lies (x, y) pixels to the right and below: positive values move the content left and up."""
  one, zero = jnp.ones_like(x), jnp.zeros_like(x)
  return _rows((one, zero, x), (zero, one, y))


def rotate_matrices(degrees: Float[Array, " b"], size: tuple[int, int]) -> Float[Array, "b 2 3"]:
  """Counter-clockwise about the centre of an image of `size` (height, width), as PIL.Image.rotate."""
  centre_y, centre_x = size[0] / 2, size[1] / 2
  angle = jnp.deg2rad(degrees.astype(jnp.float32))
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  return _rows(
    (cos, -sin, centre_x - cos * centre_x + sin * centre_y),
    (sin, cos, centre_y - sin * centre_x - cos * centre_y),
  )


def box_matrices(boxes: Float[Array, "b 5"], size: tuple[int, int]) -> Float[Array, "b 2 3"]:
  """The boxes of `augment.draw_boxes` (top, left, height, width, mirrored), stretched over an image of `size`.

  A whole-pixel box of the image's own size is the same picture by `affine` as by `augment.sample_boxes`; composed with
  a policy's matrices, crop, flip and policy cost one gather together.
  """
  top, left, height, width, mirrored = boxes.T
  zero, down, across = jnp.zeros_like(top), height / size[0], width / size[1]
  turned = jnp.where(mirrored > 0, -across, across)
  return _rows((turned, zero, jnp.where(mirrored > 0, left + width, left)), (zero, down, top))


def _rows(*rows) -> Float[Array, "b 2 3"]:
  return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2).astype(jnp.float32)


def compose(first: Float[Array, "b 2 3"], second: Float[Array, "b 2 3"]) -> Float[Array, "b 2 3"]:
  """One matrix for: transform by `first`, then transform the result by `second`."""
  linear, shift = first[..., :2], first[..., 2]
  product = jnp.einsum("bij,bjk->bik", linear, second, precision=jax.lax.Precision.HIGHEST)
  return product.at[..., 2].add(shift)


def affine(
  images: UInt8[Array, "b h w c"],
  matrices: Float[Array, "b 2 3"],
  *,
  fill: Fill = 0.0,
  method: str = "nearest",
) -> UInt8[Array, "b h w c"]:
  """Each image seen through its matrix (see above), as PIL.Image.transform(size, AFFINE, matrix, method).

  Args:
    images: uint8.
    matrices: output point to source point, in pixels.
    fill: level, or level per channel, where the source lies outside the image.
    method: `nearest` (Pillow's fixed point arithmetic) or `bilinear` (edge pixels repeated half a pixel outwards).

  Raises:
    ValueError: unknown method; images that are not uint8 [b h w c].
  """
  _check(images)
  if method not in METHODS:
    raise ValueError(f"unknown resampling method {method!r}; known: {', '.join(METHODS)}")
  sampled, inside = (_nearest if method == "nearest" else _bilinear)(images, matrices)
  paint = jnp.broadcast_to(jnp.asarray(fill, jnp.float32), (images.shape[-1],)).astype(jnp.uint8)
  return jnp.where(inside[..., None], sampled, paint.reshape(1, 1, 1, -1))


def _nearest(images, matrices) -> tuple[UInt8[Array, "b h w c"], Bool[Array, "b h w"]]:
  _, h, w, _ = images.shape
  centred = matrices.at[..., 2].add(0.5 * (matrices[..., 0] + matrices[..., 1]))
  fixed = jnp.floor(centred * FIXED + 0.5).astype(jnp.int32)
  across, down = jnp.arange(w, dtype=jnp.int32), jnp.arange(h, dtype=jnp.int32)
  a, b, c = (fixed[:, :, i, None, None] for i in range(3))
  x, y = jnp.moveaxis((a * across[None, None, None] + b * down[None, None, :, None] + c) >> 16, 1, 0)
  inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
  return _pick(images, x, y), inside


def _bilinear(images, matrices) -> tuple[UInt8[Array, "b h w c"], Bool[Array, "b h w"]]:
  _, h, w, _ = images.shape
  across, down = jnp.arange(w, dtype=jnp.float32) + 0.5, jnp.arange(h, dtype=jnp.float32) + 0.5
  a, b, c = (matrices[:, :, i, None, None] for i in range(3))
  x, y = jnp.moveaxis(a * across[None, None, None] + b * down[None, None, :, None] + c, 1, 0)
  inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
  left, top = jnp.floor(x - 0.5), jnp.floor(y - 0.5)
  dx, dy = (x - 0.5 - left)[..., None], (y - 0.5 - top)[..., None]
  column, row = left.astype(jnp.int32), top.astype(jnp.int32)
  (nw, ne), (sw, se) = (
    [_pick(images, column + j, row + i).astype(jnp.float32) for j in (0, 1)] for i in (0, 1)
  )
  north, south = nw + (ne - nw) * dx, sw + (se - sw) * dx
  return _levels(north + (south - north) * dy), inside


def _pick(images, x, y) -> UInt8[Array, "b h w c"]:
  """The pixels at whole positions, those outside replaced by the nearest of the border."""
  b, h, w, c = images.shape
  index = jnp.clip(y, 0, h - 1) * w + jnp.clip(x, 0, w - 1)
  flat = images.reshape(b, h * w, c)
  found = jnp.take_along_axis(flat, index.reshape(b, h * w, 1), axis=1, mode="clip")
  return found.reshape(b, h, w, c)


# Photometry.


def _blend(base, images, factor) -> UInt8[Array, "b h w c"]:
  """PIL.Image.blend: `base` at factor 0, `images` at 1, beyond it outside [0, 1].

  Rounding the product to 2^-14 makes the sum exact, so that a fused multiply-add cannot end one level below it.
  """
  base, top = base.astype(jnp.float32), images.astype(jnp.float32)
  return _levels(base + jnp.round(_per_image(factor) * (top - base) * 16384) / 16384)


def brightness(images: UInt8[Array, "b h w c"], factor: Float[Array, " b"]) -> UInt8[Array, "b h w c"]:
  """PIL.ImageEnhance.Brightness: 0 is black, 1 the image."""
  _check(images)
  return _levels(images.astype(jnp.float32) * _per_image(factor))


def contrast(images: UInt8[Array, "b h w c"], factor: Float[Array, " b"]) -> UInt8[Array, "b h w c"]:
  """PIL.ImageEnhance.Contrast: 0 is the image's mean grey level (rounded), 1 the image. At most 8 megapixels."""
  _check(images)
  _, h, w, _ = images.shape
  total = _luma(images).sum(axis=(1, 2), dtype=jnp.int32)
  mean = (total + (h * w) // 2) // (h * w)
  return _blend(mean[:, None, None, None], images, factor)


def color(images: UInt8[Array, "b h w c"], factor: Float[Array, " b"]) -> UInt8[Array, "b h w c"]:
  """PIL.ImageEnhance.Color (saturation): 0 is grey, 1 the image. Grey images stay as they are."""
  _check(images)
  return images if images.shape[-1] == 1 else _blend(_luma(images)[..., None], images, factor)


def grayscale(images: UInt8[Array, "b h w c"]) -> UInt8[Array, "b h w c"]:
  """Pillow's convert("L"), repeated over the channels. Grey images stay as they are."""
  _check(images)
  return images if images.shape[-1] == 1 else jnp.repeat(_levels(_luma(images))[..., None], 3, axis=-1)


def sharpness(images: UInt8[Array, "b h w c"], factor: Float[Array, " b"]) -> UInt8[Array, "b h w c"]:
  """PIL.ImageEnhance.Sharpness: 0 is smoothed by [1 1 1; 1 5 1; 1 1 1] / 13 (border as it is), 1 the image."""
  _check(images)
  _, h, w, _ = images.shape
  if min(h, w) < 3:
    return images
  x = images.astype(jnp.int32)
  rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
  inner = x[:, 1:-1, 1:-1]
  total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * inner
  change = (2 * total + 13) // 26 - inner
  return _blend(x + jnp.pad(change, ((0, 0), (1, 1), (1, 1), (0, 0))), images, factor)


def posterize(images: UInt8[Array, "b h w c"], bits: Float[Array, " b"]) -> UInt8[Array, "b h w c"]:
  """PIL.ImageOps.posterize: keeps the `bits` (0 to 8) highest bits of each level."""
  _check(images)
  drop = 8 - jnp.clip(_per_image(bits).astype(jnp.int32), 0, 8)
  return ((images.astype(jnp.int32) >> drop) << drop).astype(jnp.uint8)


def solarize(images: UInt8[Array, "b h w c"], threshold: Float[Array, " b"]) -> UInt8[Array, "b h w c"]:
  """PIL.ImageOps.solarize: inverts the levels that are not below `threshold`."""
  _check(images)
  return jnp.where(images.astype(jnp.float32) < _per_image(threshold), images, 255 - images)


def invert(images: UInt8[Array, "b h w c"]) -> UInt8[Array, "b h w c"]:
  """PIL.ImageOps.invert: 255 minus each level."""
  _check(images)
  return 255 - images


def autocontrast(images: UInt8[Array, "b h w c"]) -> UInt8[Array, "b h w c"]:
  """PIL.ImageOps.autocontrast: each channel stretched linearly to [0, 255]; a flat channel stays as it is.

  Exact: floor(255 (level - low) / (high - low)). Pillow rounds the factor to a double first and so ends one level
  lower on some of the levels where the quotient is whole.
  """
  _check(images)
  x = images.astype(jnp.float32)
  low, high = x.min(axis=(1, 2), keepdims=True), x.max(axis=(1, 2), keepdims=True)
  # The half keeps whole quotients off the edge of the floor: compilers may divide by multiplying with a reciprocal.
  stretched = jnp.floor(((x - low) * 255 + 0.5) / jnp.maximum(high - low, 1))
  return jnp.where(high > low, stretched.astype(jnp.uint8), images)


def equalize(images: UInt8[Array, "b h w c"]) -> UInt8[Array, "b h w c"]:
  """PIL.ImageOps.equalize: each channel's histogram flattened, in Pillow's integer arithmetic."""
  _check(images)
  b, h, w, c = images.shape
  channel = jnp.arange(b * c, dtype=jnp.int32).reshape(b, 1, 1, c)
  index = channel * 256 + images.astype(jnp.int32)
  counts = jnp.zeros((b * c * 256,), jnp.int32).at[index].add(1, mode="promise_in_bounds").reshape(b * c, 256)
  levels = jnp.arange(256, dtype=jnp.int32)[None]
  top = jnp.where(counts > 0, levels, 0).max(axis=1, keepdims=True)
  step = (h * w - jnp.take_along_axis(counts, top, axis=1)) // 255
  reached = jnp.cumsum(counts, axis=1) - counts + step // 2
  table = jnp.where(step > 0, jnp.minimum(_quotient(reached, jnp.maximum(step, 1)), 255), levels)
  return table.astype(jnp.uint8).reshape(-1).at[index].get(mode="promise_in_bounds")


def _quotient(a, b) -> Int[Array, "n m"]:
  """a // b of positive integers, by a division of floats and its remainder: CPUs divide integers one by one."""
  q = (a.astype(jnp.float32) / b.astype(jnp.float32)).astype(jnp.int32)
  rest = a - q * b
  return jnp.where(rest < 0, q - 1, jnp.where(rest >= b, q + 1, q))


def hue(images: UInt8[Array, "b h w c"], turn: Float[Array, " b"]) -> UInt8[Array, "b h w c"]:
  """Hue turned by `turn` (in whole turns, -0.5 to 0.5) in Pillow's 8-bit HSV, as torchvision does to PIL images.

  Grey images stay as they are.
  """
  _check(images)
  if images.shape[-1] == 1:
    return images
  h, s, v = _to_hsv(images)
  h = h + jnp.trunc(_per_image(turn)[..., 0] * 255)
  return _from_hsv(jnp.where(h < 0, h + 256, jnp.where(h < 256, h, h - 256)), s, v)


# Whole numbers in floats below 2^24: CPUs divide integers one by one. A half keeps whole quotients off the edge.


def _to_hsv(images) -> tuple[Float[Array, "b h w"], Float[Array, "b h w"], Float[Array, "b h w"]]:
  r, g, b = jnp.moveaxis(images.astype(jnp.float32), -1, 0)
  high, low = jnp.maximum(jnp.maximum(r, g), b), jnp.minimum(jnp.minimum(r, g), b)
  span = high - low
  sixths = jnp.where(r == high, g - b, jnp.where(g == high, 2 * span + b - r, 4 * span + r - g))  # times span
  sixths = jnp.where(sixths < 0, sixths + 6 * span, sixths)
  hue = jnp.floor((255 * sixths + 0.5) / jnp.maximum(6 * span, 1))
  return hue, _times_255(span / jnp.maximum(high, 1)), high


def _times_255(x) -> Float[Array, ...]:
  """floor(255 x) of the exact product, as in Pillow: in float32 255 * (k / 255) would always round to k."""
  near = jnp.round(x * 255)
  return jnp.where((x * 256 - near) - x < 0, near - 1, near)


def _from_hsv(h, s, v) -> UInt8[Array, "b h w 3"]:
  sector = jnp.floor((6 * h + 0.5) * (1 / 255))
  f = 6 * h - 255 * sector  # how far into this sixth of the circle, of 255
  sector = jnp.where(sector == 6, 0, sector)

  def channel(peak):  # full within a sixth of its peak, absent two sixths away, linear between
    away = jnp.where(sector < peak, sector + 6, sector) - peak
    lost = jnp.where(
      (away == 0) | (away == 5), 0, jnp.where(away == 1, f, jnp.where(away == 4, 255 - f, 255))
    )
    # v (65025 - s lost) / 65025 to the nearest level; 32512 is right for every v, s and lost.
    return jnp.floor((v * (65025 - s * lost) + 32512) * (1 / 65025)).astype(jnp.uint8)

  return jnp.stack([channel(peak) for peak in (0, 2, 4)], axis=-1)


def gaussian_blur(
  images: UInt8[Array, "b h w c"], sigma: Float[Array, " b"], *, kernel_size: int
) -> UInt8[Array, "b h w c"]:
  """Separable Gaussian of `kernel_size` normalised taps, borders mirrored without repeating the edge, rounded.

  As torchvision's gaussian_blur; Pillow's own is an approximation by boxes. Each axis is one matmul with a banded
  matrix per image.

  Args:
    sigma: in pixels; 0 changes nothing.
    kernel_size: odd, and its half smaller than the image.

  Raises:
    ValueError: a kernel that is even or reaches over the mirrored image.
  """
  _check(images)
  _, h, w, _ = images.shape
  radius = kernel_size // 2
  if kernel_size % 2 == 0 or kernel_size < 1 or radius >= min(h, w):
    raise ValueError(
      f"kernel size {kernel_size} must be odd and at most {2 * min(h, w) - 1} for images of {h} x {w}"
    )
  rows, columns = _blur_matrices(sigma, radius, h), _blur_matrices(sigma, radius, w)
  exact = jax.lax.Precision.HIGHEST
  x = jnp.einsum("bij,bjkc->bikc", rows, images.astype(jnp.float32), precision=exact)
  return _levels(jnp.round(jnp.einsum("blk,bikc->bilc", columns, x, precision=exact)))


def _blur_matrices(sigma, radius: int, size: int) -> Float[Array, "b {size} {size}"]:
  """What each pixel of a row of `size` gives to each blurred one, itself and its mirror images added up."""
  sigma = jnp.maximum(sigma.astype(jnp.float32), 1e-3)[:, None, None]
  place = jnp.arange(size, dtype=jnp.float32)
  source, target = place[None, None, :], place[None, :, None]
  taps = jnp.exp(-0.5 * (jnp.arange(-radius, radius + 1, dtype=jnp.float32)[None, None] / sigma) ** 2)

  def weight(position, exists):
    offset = position - target
    gauss = jnp.exp(-0.5 * (offset / sigma) ** 2)
    return jnp.where((jnp.abs(offset) <= radius) & exists, gauss, 0)

  mirrored = weight(-source, source > 0) + weight(2 * (size - 1) - source, source < size - 1)
  return (weight(source, source >= 0) + mirrored) / taps.sum(axis=-1, keepdims=True)


def erase(
  images: UInt8[Array, "b h w c"], boxes: Int[Array, "b 4"], *, fill: Fill = 0.0
) -> UInt8[Array, "b h w c"]:
  """Paints one box (top, left, height, width) per image; parts outside are cut off, an empty box paints nothing.

  Serves random erasing (`draw_erasing`) and Cutout (DeVries and Taylor, 2017).
  """
  _check(images)
  _, h, w, c = images.shape
  top, left, height, width = (boxes[:, i, None] for i in range(4))
  rows, columns = jnp.arange(h)[None], jnp.arange(w)[None]
  hit_rows, hit_columns = (rows >= top) & (rows < top + height), (columns >= left) & (columns < left + width)
  hit = (hit_rows[:, :, None] & hit_columns[:, None, :])[..., None]
  paint = jnp.broadcast_to(jnp.asarray(fill, jnp.float32), (c,)).astype(jnp.uint8)
  return jnp.where(hit, paint.reshape(1, 1, 1, c), images)
