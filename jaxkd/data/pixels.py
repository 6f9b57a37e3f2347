"""From whatever an image file or array holds to uint8 [h w c] of the size and channels asked for.

The rules for files:

| found | becomes |
|---|---|
| grey, 1 bit | one channel |
| grey with alpha, RGBA, any transparency entry | composited over white |
| palette | RGB |
| CMYK, YCbCr, HSV | RGB |
| 16 bits per channel | the high byte |
| 32-bit integer, float, Lab | refused |
| several frames | the first |
| an EXIF orientation | applied, so that up is up |
| 1x1 | enlarged like any other |
| more than 2^26 pixels by its header | refused before it is decoded |

Then: grey is repeated where three channels are asked for, colour is weighed to grey (ITU-R 601 luma, Pillow's
`L`) where one is. Size: the short side is scaled to `size` by Pillow's bicubic filter (antialiased when it
shrinks) and the centre square is kept, in one resampling.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from jaxkd.errors import UserError

PIXEL_LIMIT = 2**26
# The warning is raised where warnings are errors.
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning)
GREY_MODES = ("1", "L", "LA", "I;16", "I;16L", "I;16B")


class BadImage(UserError):
  """One image of many cannot be used: `data.on_error=skip` counts these."""


def decode(path: Path) -> np.ndarray:
  """The image of a file by the rules above: uint8 [h w] or [h w 3].

  Raises:
    BadImage: it cannot be read, is too large, or is of a refused kind.
  """
  try:
    with _open(path) as im:
      im.load()
      return _to_uint8(ImageOps.exif_transpose(im), path)
  except BadImage:
    raise
  except (EOFError, *UNREADABLE) as e:
    if isinstance(e, (FileNotFoundError, PermissionError)):
      raise
    raise BadImage(f"cannot decode {path}: {e}", "replace the file, or --config.data.on_error=skip") from e


def probe(path: Path) -> tuple[int, bool]:
  """Short side in pixels and whether the file is grey, from its header.

  Raises:
    BadImage: see `decode`.
  """
  try:
    with _open(path) as im:
      return min(im.size), im.mode in GREY_MODES
  except UNREADABLE as e:
    if isinstance(e, (FileNotFoundError, PermissionError)):
      raise
    raise BadImage(f"cannot decode {path}: {e}", "replace the file, or --config.data.on_error=skip") from e


def _open(path: Path) -> Image.Image:
  # Our limit is lower than the one at which Pillow warns. The warning is not switched off: the filters belong to the
  # whole process, and several threads read.
  im = Image.open(path)
  if im.width * im.height > PIXEL_LIMIT:
    im.close()
    raise BadImage(
      f"{path} declares {im.width} x {im.height} pixels, more than the limit of {PIXEL_LIMIT:,}",
      "shrink the file, or --config.data.on_error=skip",
    )
  return im


def _to_uint8(im: Image.Image, path: Path) -> np.ndarray:
  if im.mode in ("I", "F", "LAB"):
    kind = {"I": "32-bit integers", "F": "floats", "LAB": "Lab colours"}[im.mode]
    raise BadImage(f"{path} holds {kind}, whose range is not known", "save it with 8 bits per channel")
  if im.mode.startswith("I;16"):
    return (np.asarray(im).astype(np.uint16) >> 8).astype(np.uint8)
  grey = im.mode in GREY_MODES
  if im.has_transparency_data:
    im = im.convert("LA" if grey else "RGBA")
    white = Image.new(im.mode, im.size, (255,) * len(im.mode))
    # alpha_composite knows RGBA only; for grey the three equal channels give the same rounding.
    im = Image.alpha_composite(white.convert("RGBA"), im.convert("RGBA"))
  return np.asarray(im.convert("L" if grey else "RGB"))


def to_channels(images: np.ndarray, channels: int) -> np.ndarray:
  """uint8 [... h w c] with c of 1 or 3 to `channels` (0 leaves it as it is)."""
  have = images.shape[-1]
  if channels in (0, have):
    return images
  if channels == 3:
    return np.repeat(images, 3, axis=-1)
  # Pillow's own integer weights, so that arrays and files agree.
  weighed = images.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
  return ((weighed + 0x8000) >> 16).astype(np.uint8)[..., None]


def fit(image: np.ndarray, size: int) -> np.ndarray:
  """uint8 [h w c] to [size size c]: short side scaled by the bicubic filter, centre square kept."""
  height, width, channels = image.shape
  if (height, width) == (size, size):
    return image
  side = min(height, width)
  left, top = (width - side) / 2, (height - side) / 2
  im = Image.fromarray(image[..., 0] if channels == 1 else image)
  box = (left, top, left + side, top + side)
  return np.asarray(im.resize((size, size), Image.Resampling.BICUBIC, box=box)).reshape(size, size, channels)


def conform(images: np.ndarray, *, size: int, channels: int) -> np.ndarray:
  """uint8 [n h w c] to [n size size channels]; 0 means the images' own.

  Raises:
    UserError: the images are not square and no size is asked for, or not of 1 or 3 channels.
  """
  n, height, width, have = images.shape
  if have not in (1, 3) or not height or not width:
    raise UserError(
      f"images of {height} x {width} pixels and {have} channels", "1 channel (grey) or 3 (RGB) are known"
    )
  if not size and height != width:
    raise UserError(
      f"images of {height} x {width} pixels are not square", "set --config.data.image_size to the side wanted"
    )
  images = to_channels(images, channels)
  if size in (0, height) and height == width:
    return images
  out = np.empty((n, size, size, images.shape[-1]), np.uint8)
  for i, image in enumerate(images):
    out[i] = fit(image, size)
  return out
