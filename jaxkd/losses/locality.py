"""The locality knob: how far attention looks, as a differentiable term with a target and no teacher.

`jaxkd.analysis.attention_statistics` measures the same distance. It is not used here because analyses build on
losses and not the other way round; a test holds the two together.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# A query with less weight than this on patches looks at none of them.
_LEAST_MASS = 1e-12


def attention_distance(
  attn: Float[Array, "b h n n"], *, grid: tuple[int, int], special_tokens: int
) -> Float[Array, "b h"]:
  """Mean attention distance in patches, float32, per image and head.

  `mean_i sum_j A_ij |pos_i - pos_j|` over the patches of `grid` (rows, columns), row-major after the first
  `special_tokens` tokens, which are dropped as queries and keys; the rows are renormalised. 0 for attention
  to oneself, 4.1365 for uniform attention on 8x8. A query with no weight on patches (all of it on special
  tokens) has no distance and is left out of the mean; a head of such queries has distance 0 and gradient 0.

  Raises:
    ValueError: maps are not [b h n n] with n = special_tokens + rows * columns, or the grid has fewer than 2
      patches.

  Source: Raghu et al., NeurIPS 2021, arXiv:2108.08810, here in patches and without the special tokens.
  """
  _check(attn, grid, special_tokens)
  rows = attn[..., special_tokens:, special_tokens:].astype(jnp.float32)
  distances = _patch_distances(grid).astype(np.float32)
  mass = jnp.sum(rows, axis=-1)
  reach = jnp.einsum("bhij,ij->bhi", rows, distances, precision="highest")
  empty = mass <= _LEAST_MASS
  # The barrier keeps XLA from merging the sums over keys and queries into one of n^2 terms, which rounds worse.
  per_query = jax.lax.optimization_barrier(jnp.where(empty, 0.0, reach / jnp.where(empty, 1.0, mass)))
  return jnp.sum(per_query, axis=-1) / jnp.maximum(jnp.sum(~empty, axis=-1), 1).astype(jnp.float32)


def locality(
  attn: Float[Array, "b h n n"],
  target: float,
  *,
  grid: tuple[int, int],
  special_tokens: int,
  relative: bool = False,
) -> Float[Array, " b"]:
  """Squared difference of a layer's mean attention distance and `target`, float32, one value per image.

  The distance (see `attention_distance`) is averaged over the heads, which may share out local and global
  work. It is in patches, the loss in patches squared; with `relative`, distance and target are fractions of
  uniform attention's distance, so that 1 is uniform on every grid.

  Raises:
    ValueError: shapes do not fit, or no attention on this grid has the target as its mean distance.
  """
  distance = attention_distance(attn, grid=grid, special_tokens=special_tokens).mean(axis=-1)
  distances = _patch_distances(grid)
  unit = float(distances.mean()) if relative else 1.0
  farthest = float(distances.max(axis=1).mean()) / unit
  if not 0.0 <= target <= farthest:
    raise ValueError(
      f"locality: target is {target}; on a {grid[0]}x{grid[1]} grid it lies in 0 to {farthest:.4g} "
      + ("(1 is uniform attention)" if relative else f"patches (uniform attention: {distances.mean():.4g})")
    )
  return (distance / unit - target) ** 2


def _patch_distances(grid: tuple[int, int]) -> Float[np.ndarray, "n n"]:
  """Distances between patch positions, row-major, in patches, float64."""
  y, x = (axis.ravel() for axis in np.mgrid[: grid[0], : grid[1]])
  return np.hypot(y[:, None] - y[None, :], x[:, None] - x[None, :])


def _check(attn: Array, grid: tuple[int, int], special_tokens: int) -> None:
  if len(grid) != 2 or min(grid) < 1 or grid[0] * grid[1] < 2:
    raise ValueError(f"grid {tuple(grid)} has no distances; expected (rows, columns) with at least 2 patches")
  tokens = special_tokens + grid[0] * grid[1]
  if special_tokens < 0 or attn.ndim != 4 or attn.shape[2:] != (tokens, tokens):
    raise ValueError(
      f"attention maps {attn.shape} must be [b h n n] with n = {tokens} for grid {grid[0]}x{grid[1]} and "
      f"{special_tokens} special tokens; take both from the model (patch grid and `special_tokens`)"
    )
