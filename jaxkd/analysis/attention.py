"""Where attention looks: distance, entropy and cls statistics per layer and head, and attention rollout.

Maps are softmax probabilities, `[l b h n n]`, rows = queries; tokens are ordered special first (cls, then
others), then patches row-major. Everything is computed per image, so results with `reduce=None` may be
concatenated over batches.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

COLLAPSED = 0.3626  # fraction of uniform attention's distance; 1.5 patches on the 8x8 grid

_HIGHEST = lax.Precision.HIGHEST


def attention_statistics(
  attn: Float[Array, "l b h n n"],
  grid: tuple[int, int],
  special_tokens: int,
  *,
  reduce: Literal["mean"] | None = "mean",
) -> dict[str, Float[Array, "l h"] | Float[Array, "l b h"] | Bool[Array, "l h"] | Bool[Array, "l b h"]]:
  """Locality statistics of attention maps, per layer and head, float32.

  Special tokens (cls, distillation, registers) are dropped as queries and keys and the rows are renormalised.
  With A the patch-to-patch map and positions counted in patches:

  - mean_distance: `mean_i sum_j A_ij |pos_i - pos_j|`, in patches;
  - distance_to_uniform: mean_distance divided by that of uniform attention on the same grid;
  - entropy: mean over rows of `-sum_j A_ij log A_ij`, in nats;
  - collapsed: bool, `mean_distance < 0.3626 * uniform`; with `reduce="mean"`, of the head's mean over images;
  - cls_dispersion: var_y + var_x of the renormalised cls -> patch row, in patches squared (token 0 is cls);
  - cls_self_attention: the cls token's weight on itself, from the row as it is.

  The last two are absent where `special_tokens` is 0. A row with no weight at all on patches has no
  renormalised form and gives NaN.

  Args:
    attn: attention probabilities [l b h n n], any floating dtype.
    grid: (rows, columns) of the patch grid.
    special_tokens: tokens in front of the patches; token 0 is cls.
    reduce: "mean" averages over images -> [l h]; None keeps them -> [l b h].

  Raises:
    ValueError: wrong rank, a token count other than special_tokens + rows * columns, a grid of fewer than 2
      patches, or an unknown `reduce`.
    TypeError: maps that are not floating point.

  Source: mean attention distance from Dosovitskiy et al. (2021) and Raghu et al. (NeurIPS 2021,
    arXiv:2108.08810), here in patches and without the special tokens.
  """
  _check_maps(attn, grid, special_tokens, reduce)
  return _statistics(attn, tuple(grid), special_tokens, reduce)


def mean_and_stderr(
  values: Float[Array, "l b h"] | Bool[Array, "l b h"],
) -> tuple[Float[Array, "l h"], Float[Array, "l h"]]:
  """Mean and standard error over images of a statistic kept per image (`reduce=None`), float32 [l h] each.

  Booleans count as 0 and 1, so `collapsed` gives the fraction of images on which a head is collapsed.

  Raises:
    ValueError: not [l b h], or fewer than 2 images.
  """
  if values.ndim != 3 or values.shape[1] < 2:
    raise ValueError(
      f"values have shape {values.shape}; a standard error over images needs [l b h] with b of 2 or more"
    )
  values = jnp.asarray(values, jnp.float32)
  return values.mean(axis=1), values.std(axis=1, ddof=1) / np.float32(np.sqrt(values.shape[1]))


def uniform_distance(grid: tuple[int, int]) -> float:
  """Mean distance, in patches, of uniform attention on a grid of (rows, columns): 4.1365 on 8x8.

  The closed form counts pairs by offset: `sum (rows-|dy|) (columns-|dx|) sqrt(dy^2+dx^2) / (rows columns)^2`.

  Raises:
    ValueError: a grid of fewer than 2 patches, whose distance would be 0 and no yardstick.
  """
  _check_grid(grid)
  rows, columns = grid
  dy, dx = np.arange(1 - rows, rows)[:, None], np.arange(1 - columns, columns)[None, :]
  pairs = (rows - np.abs(dy)) * (columns - np.abs(dx))
  return float((pairs * np.hypot(dy, dx)).sum() / (rows * columns) ** 2)


def attention_rollout(attn: Float[Array, "l b h n n"]) -> Float[Array, "b n n"]:
  """How much of input token j reaches output token i through all layers, float32; rows sum to 1.

  Per layer the heads are averaged and the residual connection enters as `(A + I) / 2`; layers multiply, the
  first one rightmost. Special tokens stay in: row 0 without its own columns is the usual cls heat map.

  Raises:
    ValueError: maps that are not [l b h n n].
    TypeError: maps that are not floating point.

  Source: Abnar and Zuidema (ACL 2020, arXiv:2005.00928).
  """
  _check_rank(attn)
  return _rollout(attn)


def rollout_statistics(
  attn: Float[Array, "l b h n n"],
  grid: tuple[int, int],
  special_tokens: int,
  *,
  reduce: Literal["mean"] | None = "mean",
) -> dict[str, Float[Array, " l"] | Float[Array, "l b"] | Bool[Array, " l"] | Bool[Array, "l b"]]:
  """`attention_statistics` of the rollout up to each layer: how far information has come by then.

  The statistics of one head are local or global by themselves; a stack of local layers still mixes globally. The
  residual connection keeps half of every token in place, so even uniform attention in all layers has a ratio to
  uniform of only `1 - 2^-l` after l of them. Arguments, names and errors are those of `attention_statistics`,
  without the axis of heads.
  """
  _check_maps(attn, grid, special_tokens, reduce)
  return _rollout_statistics(attn, tuple(grid), special_tokens, reduce)


@jax.jit
def _rollout(attn: Float[Array, "l b h n n"]) -> Float[Array, "b n n"]:
  return _rollouts(attn)[-1]


def _rollouts(attn: Float[Array, "l b h n n"]) -> list[Float[Array, "b n n"]]:
  """The rollout up to each layer."""
  eye = jnp.eye(attn.shape[-1], dtype=jnp.float32)
  mixed = (attn.astype(jnp.float32).mean(axis=2) + jnp.broadcast_to(eye, (*attn.shape[:2], *eye.shape))) / 2
  mixed = mixed / mixed.sum(axis=-1, keepdims=True)
  rollouts = [mixed[0]]
  for layer in mixed[1:]:
    rollouts.append(jnp.matmul(layer, rollouts[-1], precision=_HIGHEST))
  return rollouts


@functools.partial(jax.jit, static_argnames=("grid", "special_tokens", "reduce"))
def _rollout_statistics(
  attn: Float[Array, "l b h n n"], grid: tuple[int, int], special_tokens: int, reduce: str | None
) -> dict[str, Array]:
  rollouts = jnp.stack(_rollouts(attn))[:, :, None]
  return {name: value[..., 0] for name, value in _statistics(rollouts, grid, special_tokens, reduce).items()}


@functools.partial(jax.jit, static_argnames=("grid", "special_tokens", "reduce"))
def _statistics(
  attn: Float[Array, "l b h n n"], grid: tuple[int, int], special_tokens: int, reduce: str | None
) -> dict[str, Array]:
  attn = attn.astype(jnp.float32)
  rows = attn[..., special_tokens:, special_tokens:]
  rows = rows / rows.sum(axis=-1, keepdims=True)
  stats = {"mean_distance": _mean_distance(rows, grid), "entropy": _entropy(rows)}
  if special_tokens:
    cls_row = attn[..., 0, special_tokens:]
    stats["cls_dispersion"] = _dispersion(cls_row / cls_row.sum(axis=-1, keepdims=True), grid)
    stats["cls_self_attention"] = attn[..., 0, 0]
  if reduce == "mean":
    stats = {name: value.mean(axis=1) for name, value in stats.items()}
  stats["distance_to_uniform"] = stats["mean_distance"] / uniform_distance(grid)
  stats["collapsed"] = stats["mean_distance"] < COLLAPSED * uniform_distance(grid)
  return stats


def _positions(grid: tuple[int, int]) -> np.ndarray:
  """(y, x) of every patch, row-major, [patches 2] float32."""
  y, x = np.mgrid[: grid[0], : grid[1]]
  return np.stack([y.ravel(), x.ravel()], axis=1).astype(np.float32)


def _mean_distance(rows: Float[Array, "l b h n n"], grid: tuple[int, int]) -> Float[Array, "l b h"]:
  positions = _positions(grid)
  distances = np.linalg.norm(positions[:, None] - positions[None, :], axis=-1)
  return _mean_over_rows(jnp.einsum("lbhij,ij->lbhi", rows, distances, precision=_HIGHEST))


def _entropy(rows: Float[Array, "l b h n n"]) -> Float[Array, "l b h"]:
  # 0 log 0 = 0, with a finite gradient; NaN stays NaN through the product.
  safe = jnp.where(rows > 0, rows, 1.0)
  return -_mean_over_rows((rows * jnp.log(safe)).sum(axis=-1))


def _mean_over_rows(per_row: Float[Array, "l b h n"]) -> Float[Array, "l b h"]:
  # Without the barrier XLA merges this sum with the one over keys into a single float32 sum of n^2 terms,
  # whose rounding is biased where terms are equal: 7e-6 off on a uniform 7x7 map instead of 3e-8.
  return lax.optimization_barrier(per_row).mean(axis=-1)


def _dispersion(row: Float[Array, "l b h n"], grid: tuple[int, int]) -> Float[Array, "l b h"]:
  """Second moment around the row's own centre of mass; two passes, because E[x^2] - E[x]^2 cancels."""
  positions = jnp.asarray(_positions(grid))
  centre = jnp.einsum("lbhn,nk->lbhk", row, positions, precision=_HIGHEST)
  offsets = jnp.broadcast_to(positions, (*row.shape, 2)) - centre[..., None, :]
  return jnp.einsum("lbhn,lbhnk->lbh", row, offsets**2, precision=_HIGHEST)


def _check_maps(attn: Array, grid: tuple[int, int], special_tokens: int, reduce: str | None) -> None:
  if reduce not in ("mean", None):
    raise ValueError(f"reduce = {reduce!r}; known: 'mean', None")
  _check_rank(attn)
  _check_grid(grid)
  if special_tokens < 0 or attn.shape[-1] != special_tokens + grid[0] * grid[1]:
    raise ValueError(
      f"maps have {attn.shape[-1]} tokens, but grid {grid[0]}x{grid[1]} with {special_tokens} special tokens "
      f"has {special_tokens + grid[0] * grid[1]}; take both from the model (patch grid and `special_tokens`)"
    )


def _check_rank(attn: Array) -> None:
  if attn.ndim != 5 or attn.shape[-1] != attn.shape[-2]:
    raise ValueError(f"maps have shape {attn.shape}; expected [l b h n n] (stack the layers on axis 0)")
  if not jnp.issubdtype(attn.dtype, jnp.floating):
    raise TypeError(f"maps have dtype {attn.dtype}; expected floating-point probabilities")


def _check_grid(grid: tuple[int, int]) -> None:
  if len(grid) != 2 or min(grid) < 1 or grid[0] * grid[1] < 2:
    raise ValueError(f"grid {tuple(grid)} has no distances; expected (rows, columns) with at least 2 patches")
