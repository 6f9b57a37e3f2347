"""Resampling of learned positions to another grid, by the kernel of each family's reference implementation.

| kernel | as | cubic a | shrinking | sampling grid |
|---|---|---|---|---|
| `antialias` | timm; DINOv2 with registers | -0.5 | widened kernel | half-pixel centres |
| `plain` | transformers' DeiT, ViT and DINOv2 | -0.75 | not widened | half-pixel centres |
| `offset` | the official code of DINOv2 without registers | -0.75 | not widened | scaled by (new + 0.1) / old |
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxkd.models.layers import choose

KERNELS = ("antialias", "plain", "offset")
# DINOv2 passes (new + 0.1) / old as the scale, so that rounding down gives `new`; it also moves every sample.
OFFSET = 0.1


def resize_positions(
  table: Float[Array, "1 n d"],
  special_tokens: int,
  old: tuple[int, int],
  new: tuple[int, int],
  *,
  kernel: str = "antialias",
) -> Float[Array, "1 m d"]:
  """Bicubic resampling of the patch positions to another grid; special tokens keep theirs.

  The table's own grid returns it unchanged. Raises ValueError for an unknown kernel.
  """
  choose("kernel", kernel, KERNELS)
  if old == new:
    return table
  special, patches = table[:, :special_tokens], table[:, special_tokens:]
  width = table.shape[-1]
  grid = patches.reshape(*old, width)
  if kernel == "antialias":
    grid = jax.image.resize(grid, (*new, width), "cubic", antialias=True)
  else:
    offset = OFFSET if kernel == "offset" else 0.0
    rows, columns = (_cubic_matrix(o, n, offset).astype(table.dtype) for o, n in zip(old, new, strict=True))
    exact = jax.lax.Precision.HIGHEST
    grid = jnp.einsum("ip,jq,pqd->ijd", rows, columns, grid, precision=exact)
  return jnp.concatenate([special, grid.reshape(1, -1, width)], axis=1)


def grid_of(patches: int, expected: tuple[int, int]) -> tuple[int, int]:
  """Rows and columns of a table of `patches` positions: the expected ones where they fit, else a square.

  Raises ValueError for a table that is neither.
  """
  side = math.isqrt(patches)
  if patches == expected[0] * expected[1]:
    return expected
  if side * side != patches:
    raise ValueError(
      f"a table of {patches} patch positions is neither the model's {expected[0]}x{expected[1]} grid nor a square"
    )
  return side, side


@functools.lru_cache(maxsize=32)
def _cubic_matrix(old: int, new: int, offset: float) -> np.ndarray:
  """[new old] weights of torch's bicubic (a = -0.75, edges repeated), sampled at scale (new + offset) / old."""
  a, scale = -0.75, old / (new + offset)
  source = (np.arange(new) + 0.5) * scale - 0.5
  first = np.floor(source).astype(int)
  matrix = np.zeros((new, old))
  for tap in range(-1, 3):
    t = np.abs(source - (first + tap))
    near, far = ((a + 2) * t - (a + 3)) * t * t + 1, ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    column = np.clip(first + tap, 0, old - 1)
    np.add.at(matrix, (np.arange(new), column), np.where(t <= 1, near, far))
  return matrix
