"""Colour pixels as one word each.

Moving a pixel is then a single load, and no loop runs over an innermost axis of three, which no compiler turns into
vectors. Images are uint8 [b h w c] with 1 or 3 channels; packed they are uint32 [b h w 1], a channel in each of the
three low bytes. Grey images have one word a pixel already and stay as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt, UInt8

Planes = Sequence[Int[Array, "b h w"]]


def check(images) -> None:
  """Raises ValueError for what is neither."""
  channels = {jnp.dtype("uint8"): (1, 3), jnp.dtype("uint32"): (1,)}.get(images.dtype, ())
  if images.ndim != 4 or images.shape[-1] not in channels:
    raise ValueError(
      f"images are {images.dtype} {images.shape}, expected uint8 [b h w c] with 1 or 3 channels; "
      "round levels in [0, 255] and cast with astype(uint8)"
    )


def pack(images: UInt8[Array, "b h w c"]) -> UInt[Array, "b h w 1"]:
  """The three channels of a pixel as the low bytes of one uint32; grey and packed images as they are."""
  check(images)
  return images if images.shape[-1] == 1 else joined([images[..., i] for i in range(3)])


def unpack(images: UInt[Array, "b h w 1"]) -> UInt8[Array, "b h w c"]:
  """The inverse of `pack`."""
  check(images)
  if images.dtype == jnp.uint8:
    return images
  return jax.lax.bitcast_convert_type(images[..., 0], jnp.uint8)[..., :3]


def on_packed(operation: Callable) -> Callable:
  """Makes an operation on packed images one on images too; the result is packed if the argument is."""

  @functools.wraps(operation)
  def either(images, *arguments, **options):
    result = operation(pack(images), *arguments, **options)
    return result if images.dtype == jnp.uint32 else unpack(result)

  return either


def planes(packed: UInt[Array, "b h w 1"]) -> Planes:
  """Each channel's levels, int32."""
  x = packed[..., 0]
  shifts = (0,) if x.dtype == jnp.uint8 else (0, 8, 16)
  return [((x >> shift) & 255).astype(jnp.int32) for shift in shifts]


def joined(planes: Planes) -> UInt[Array, "b h w 1"]:
  """The inverse of `planes`; levels of any type, in [0, 255]."""
  if len(planes) == 1:
    return planes[0].astype(jnp.uint8)[..., None]
  red, green, blue = (x.astype(jnp.uint32) for x in planes)
  return (red | (green << 8) | (blue << 16))[..., None]
