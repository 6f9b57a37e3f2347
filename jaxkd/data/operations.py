"""Image operations on whole batches, with Pillow's arithmetic, one magnitude per image.

Images are uint8 [b h w c] with c = 1 or 3, in and out: the policies are defined by what Pillow does to 8-bit levels,
and bytes cost a quarter of the memory traffic of floats. Everything is elementwise, a shift, a small matmul or one
gather; nothing is a loop over images.

Every operation takes packed images too (jaxkd.data.packing) and returns them packed, as is quicker between operations.

Grey images (c = 1) follow Pillow's mode "L": `color`, `hue` and `grayscale` leave them as they are, and the grey level
that `contrast` measures is the pixel itself.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt, UInt8

from jaxkd.data.fusion import apart
from jaxkd.data.packing import Planes, joined, on_packed, pack, unpack
from jaxkd.data.packing import planes as as_planes

FIXED = 65536  # Pillow's nearest sampler counts source positions in units of 1/65536 pixel
METHODS = ("nearest", "bilinear")

Fill = float | tuple[float, ...]


def _levels(x) -> Int[Array, ...]:
  """Clipped to [0, 255] and cut down to whole levels, as Pillow casts."""
  return jnp.clip(x, 0, 255).astype(jnp.int32)


def _per_image(x) -> Float[Array, "b 1 1"]:
  return x.astype(jnp.float32)[:, None, None]


def _luma(planes: Planes) -> Int[Array, "b h w"]:
  """Pillow's convert("L"): ITU-R 601-2 weights in 16-bit fixed point, rounded."""
  if len(planes) == 1:
    return planes[0]
  red, green, blue = planes
  return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


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


@on_packed
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
  if method not in METHODS:
    raise ValueError(f"unknown resampling method {method!r}; known: {', '.join(METHODS)}")
  sampled, inside = (_nearest if method == "nearest" else _bilinear)(images, matrices)
  return jnp.where(inside[..., None], sampled, _paint(fill, images.dtype))


def _paint(fill: Fill, dtype) -> UInt[Array, "1 1 1 1"]:
  """A packed pixel of the level, or level per channel, `fill`."""
  channels = 1 if dtype == jnp.uint8 else 3
  levels = jnp.broadcast_to(jnp.asarray(fill, jnp.float32), (channels,)).astype(jnp.uint8)
  return pack(levels.reshape(1, 1, 1, -1))


def _nearest(packed, matrices) -> tuple[UInt[Array, "b h w 1"], Bool[Array, "b h w"]]:
  _, h, w, _ = packed.shape
  centred = matrices.at[..., 2].add(0.5 * (matrices[..., 0] + matrices[..., 1]))
  fixed = jnp.floor(centred * FIXED + 0.5).astype(jnp.int32)
  across, down = jnp.arange(w, dtype=jnp.int32), jnp.arange(h, dtype=jnp.int32)
  x, y = (
    (
      row[:, 0, None, None] * across[None, None]
      + row[:, 1, None, None] * down[None, :, None]
      + row[:, 2, None, None]
    )
    >> 16
    for row in (fixed[:, 0], fixed[:, 1])
  )
  inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
  return _pick(packed, x, y), inside


def _bilinear(packed, matrices) -> tuple[UInt[Array, "b h w 1"], Bool[Array, "b h w"]]:
  _, h, w, _ = packed.shape
  across, down = jnp.arange(w, dtype=jnp.float32) + 0.5, jnp.arange(h, dtype=jnp.float32) + 0.5
  a, b, c = (matrices[:, :, i, None, None] for i in range(3))
  x, y = jnp.moveaxis(a * across[None, None, None] + b * down[None, None, :, None] + c, 1, 0)
  inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
  left, top = jnp.floor(x - 0.5), jnp.floor(y - 0.5)
  dx, dy = x - 0.5 - left, y - 0.5 - top
  column, row = left.astype(jnp.int32), top.astype(jnp.int32)
  corners = [as_planes(_pick(packed, column + j, row + i)) for i in (0, 1) for j in (0, 1)]

  def between(*levels):
    nw, ne, sw, se = (x.astype(jnp.float32) for x in levels)
    north, south = nw + (ne - nw) * dx, sw + (se - sw) * dx
    return _levels(north + (south - north) * dy)

  return joined([between(*channel) for channel in zip(*corners, strict=True)]), inside


def _pick(packed, x, y) -> UInt[Array, "b h w 1"]:
  """The pixels at whole positions, those outside replaced by the nearest of the border."""
  b, h, w, _ = packed.shape
  index = jnp.clip(y, 0, h - 1) * w + jnp.clip(x, 0, w - 1)
  found = jnp.take_along_axis(packed.reshape(b, -1), index.reshape(b, -1), axis=1, mode="promise_in_bounds")
  return found.reshape(b, h, w, 1)


# Photometry.


def _blend(base, planes: Planes, factor) -> UInt[Array, "b h w 1"]:
  """PIL.Image.blend: `base` (of each plane) at factor 0, `planes` at 1, beyond it outside [0, 1].

  Rounding the product to 2^-14 makes the sum exact, so that a fused multiply-add cannot end one level below it.
  """

  def blend(low, top):
    low, top = low.astype(jnp.float32), top.astype(jnp.float32)
    return _levels(low + jnp.round(_per_image(factor) * (top - low) * 16384) / 16384)

  return joined([blend(low, top) for low, top in zip(base, planes, strict=True)])


@on_packed
def brightness(images: UInt8[Array, "b h w c"], factor: Float[Array, " b"]) -> UInt8[Array, "b h w c"]:
  """PIL.ImageEnhance.Brightness: 0 is black, 1 the image."""
  return joined([_levels(x.astype(jnp.float32) * _per_image(factor)) for x in as_planes(images)])


@on_packed
def contrast(images: UInt8[Array, "b h w c"], factor: Float[Array, " b"]) -> UInt8[Array, "b h w c"]:
  """PIL.ImageEnhance.Contrast: 0 is the image's mean grey level (rounded), 1 the image. At most 8 megapixels."""
  _, h, w, _ = images.shape
  planes = as_planes(images)
  total = _luma(planes).sum(axis=(1, 2), dtype=jnp.int32)
  mean = (total + (h * w) // 2) // (h * w)
  return _blend([mean[:, None, None]] * len(planes), planes, factor)


@on_packed
def color(images: UInt8[Array, "b h w c"], factor: Float[Array, " b"]) -> UInt8[Array, "b h w c"]:
  """PIL.ImageEnhance.Color (saturation): 0 is grey, 1 the image. Grey images stay as they are."""
  planes = as_planes(images)
  return images if len(planes) == 1 else _blend([_luma(planes)] * 3, planes, factor)


@on_packed
def grayscale(images: UInt8[Array, "b h w c"]) -> UInt8[Array, "b h w c"]:
  """Pillow's convert("L"), repeated over the channels. Grey images stay as they are."""
  planes = as_planes(images)
  return images if len(planes) == 1 else joined([_luma(planes)] * 3)


@on_packed
def sharpness(images: UInt8[Array, "b h w c"], factor: Float[Array, " b"]) -> UInt8[Array, "b h w c"]:
  """PIL.ImageEnhance.Sharpness: 0 is smoothed by [1 1 1; 1 5 1; 1 1 1] / 13 (border as it is), 1 the image."""
  _, h, w, _ = images.shape
  if min(h, w) < 3:
    return images
  planes = as_planes(images)
  row, column = jnp.arange(h)[None, :, None], jnp.arange(w)[None, None, :]
  inner = (row > 0) & (row < h - 1) & (column > 0) & (column < w - 1)
  totals = zip(planes, _neighbourhoods(images[..., 0]), strict=True)
  smooth = [jnp.where(inner, jax.lax.div(2 * (total + 4 * x) + 13, jnp.int32(26)), x) for x, total in totals]
  return _blend(smooth, planes, factor)


def _neighbourhoods(packed: UInt[Array, "b h w"]) -> Planes:
  """Each channel's sum over 3 x 3 pixels. Two channels are added up at once: 9 * 255 fits in half a uint32."""

  def total(x):
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1)))
    rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    return rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]

  if packed.dtype == jnp.uint8:
    return [total(packed.astype(jnp.int32))]
  red_and_blue, green = total(packed & 0xFF00FF), total((packed >> 8) & 0xFF)
  return [x.astype(jnp.int32) for x in (red_and_blue & 0xFFFF, green, red_and_blue >> 16)]


@on_packed
def posterize(images: UInt8[Array, "b h w c"], bits: Float[Array, " b"]) -> UInt8[Array, "b h w c"]:
  """PIL.ImageOps.posterize: keeps the `bits` (0 to 8) highest bits of each level."""
  drop = 8 - jnp.clip(_per_image(bits).astype(jnp.int32), 0, 8)
  return joined([(x >> drop) << drop for x in as_planes(images)])


@on_packed
def solarize(images: UInt8[Array, "b h w c"], threshold: Float[Array, " b"]) -> UInt8[Array, "b h w c"]:
  """PIL.ImageOps.solarize: inverts the levels that are not below `threshold`."""
  return joined(
    [jnp.where(x.astype(jnp.float32) < _per_image(threshold), x, 255 - x) for x in as_planes(images)]
  )


@on_packed
def invert(images: UInt8[Array, "b h w c"]) -> UInt8[Array, "b h w c"]:
  """PIL.ImageOps.invert: 255 minus each level."""
  return joined([255 - x for x in as_planes(images)])


@on_packed
def autocontrast(images: UInt8[Array, "b h w c"]) -> UInt8[Array, "b h w c"]:
  """PIL.ImageOps.autocontrast: each channel stretched linearly to [0, 255]; a flat channel stays as it is.

  Exact: floor(255 (level - low) / (high - low)). Pillow rounds the factor to a double first and so ends one level
  lower on some of the levels where the quotient is whole.
  """

  def stretched(x, low, high):
    span = jnp.maximum(high - low, 1).astype(jnp.float32)
    # The half keeps whole quotients off the edge of the floor: compilers may divide by multiplying with a reciprocal.
    quotient = jnp.floor(((x - low).astype(jnp.float32) * 255 + 0.5) / span)
    return jnp.where(high > low, quotient.astype(jnp.int32), x)

  planes = as_planes(images)
  return joined([stretched(*x) for x in zip(planes, *_ranges(planes), strict=True)])


def _ranges(planes: Planes) -> tuple[list[Int[Array, "b 1 1"]], list[Int[Array, "b 1 1"]]]:
  """Lowest and highest level of each image and channel, all in one pass over the pixels."""
  signed = [*(-x for x in planes), *planes]
  highest = lambda xs, ys: tuple(map(jnp.maximum, xs, ys))  # noqa: E731
  found = jax.lax.reduce(signed, [jnp.int32(-255)] * len(signed), highest, (1, 2))
  found = [x[:, None, None] for x in found]
  return [-x for x in found[: len(planes)]], found[len(planes) :]


@on_packed
def equalize(images: UInt8[Array, "b h w c"]) -> UInt8[Array, "b h w c"]:
  """PIL.ImageOps.equalize: each channel's histogram flattened, in Pillow's integer arithmetic. At most 4 megapixels."""
  planes = as_planes(images)
  counts = [_histograms(x) for x in planes]
  tables = apart(lambda *several: [_equalizing(x) for x in several], *counts)
  rows = 256 * jnp.arange(images.shape[0], dtype=jnp.int32)[:, None, None]
  pairs = zip(tables, planes, strict=True)
  return joined([table.reshape(-1).at[rows + x].get(mode="promise_in_bounds") for table, x in pairs])


def _histograms(plane: Int[Array, "b h w"]) -> Int[Array, "b 256"]:
  b = plane.shape[0]
  index = 256 * jnp.arange(b, dtype=jnp.int32)[:, None, None] + plane
  return jnp.zeros((b * 256,), jnp.int32).at[index].add(1, mode="promise_in_bounds").reshape(b, 256)


# Whole numbers in floats below 2^24: CPUs divide integers one by one. A half keeps whole quotients off the edge.


def _equalizing(counts: Int[Array, "b 256"]) -> Int[Array, "b 256"]:
  """Where each level goes, given how many pixels have it."""
  counts = counts.astype(jnp.float32)
  below = _running_totals(counts) - counts
  others = jnp.where(counts > 0, below, 0).max(axis=1, keepdims=True)  # all pixels but those of the top level
  step = jnp.floor((others + 0.5) / 255)
  table = jnp.floor((below + jnp.floor(step / 2) + 0.5) / jnp.maximum(step, 1))
  return jnp.where(step > 0, jnp.minimum(table, 255), jnp.arange(256, dtype=jnp.float32)[None]).astype(
    jnp.int32
  )


def _running_totals(counts: Float[Array, "b 256"]) -> Float[Array, "b 256"]:
  """Cumulated along each row, by matmuls within and over blocks of 16."""
  blocks = counts.reshape(-1, 16, 16)
  upto = jnp.triu(jnp.ones((16, 16), jnp.float32))
  exact = jax.lax.Precision.HIGHEST
  within = jnp.einsum("nij,jk->nik", blocks, upto, precision=exact)
  before = jnp.einsum("ni,ik->nk", within[..., -1], upto - jnp.eye(16, dtype=jnp.float32), precision=exact)
  return (within + before[..., None]).reshape(counts.shape)


@on_packed
def hue(images: UInt8[Array, "b h w c"], turn: Float[Array, " b"]) -> UInt8[Array, "b h w c"]:
  """Hue turned by `turn` (in whole turns, -0.5 to 0.5) in Pillow's 8-bit HSV, as torchvision does to PIL images.

  Grey images stay as they are.
  """
  planes = as_planes(images)
  if len(planes) == 1:
    return images
  h, s, v = _to_hsv(planes)
  h = h + jnp.trunc(_per_image(turn) * 255)
  return joined(_from_hsv(jnp.where(h < 0, h + 256, jnp.where(h < 256, h, h - 256)), s, v))


def _to_hsv(planes: Planes) -> tuple[Float[Array, "b h w"], Float[Array, "b h w"], Float[Array, "b h w"]]:
  r, g, b = (x.astype(jnp.float32) for x in planes)
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


def _from_hsv(h, s, v) -> Planes:
  sector = jnp.floor((6 * h + 0.5) * (1 / 255))
  f = 6 * h - 255 * sector  # how far into this sixth of the circle, of 255
  sector = jnp.where(sector == 6, 0, sector)

  def channel(peak):  # full within a sixth of its peak, absent two sixths away, linear between
    away = jnp.where(sector < peak, sector + 6, sector) - peak
    lost = jnp.where(
      (away == 0) | (away == 5), 0, jnp.where(away == 1, f, jnp.where(away == 4, 255 - f, 255))
    )
    # v (65025 - s lost) / 65025 to the nearest level; 32512 is right for every v, s and lost.
    return jnp.floor((v * (65025 - s * lost) + 32512) * (1 / 65025)).astype(jnp.int32)

  return [channel(peak) for peak in (0, 2, 4)]


@on_packed
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
  _, h, w, _ = images.shape
  radius = kernel_size // 2
  if kernel_size % 2 == 0 or kernel_size < 1 or radius >= min(h, w):
    raise ValueError(
      f"kernel size {kernel_size} must be odd and at most {2 * min(h, w) - 1} for images of {h} x {w}"
    )
  rows, columns = _blur_matrices(sigma, radius, h), _blur_matrices(sigma, radius, w)
  exact = jax.lax.Precision.HIGHEST
  x = jnp.einsum("bij,bjkc->bikc", rows, unpack(images).astype(jnp.float32), precision=exact)
  blurred = jnp.round(jnp.einsum("blk,bikc->bilc", columns, x, precision=exact))
  return pack(_levels(blurred).astype(jnp.uint8))


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


@on_packed
def erase(
  images: UInt8[Array, "b h w c"], boxes: Int[Array, "b 4"], *, fill: Fill = 0.0
) -> UInt8[Array, "b h w c"]:
  """Paints one box (top, left, height, width) per image; parts outside are cut off, an empty box paints nothing.

  Serves random erasing (`draw_erasing`) and Cutout (DeVries and Taylor, 2017).
  """
  _, h, w, _ = images.shape
  top, left, height, width = (boxes[:, i, None] for i in range(4))
  rows, columns = jnp.arange(h)[None], jnp.arange(w)[None]
  hit_rows, hit_columns = (rows >= top) & (rows < top + height), (columns >= left) & (columns < left + width)
  hit = (hit_rows[:, :, None] & hit_columns[:, None, :])[..., None]
  return jnp.where(hit, _paint(fill, images.dtype), images)
