"""Two further similarities of representations beside CKA: the orthogonal Procrustes fit, and shared neighbours.

CKA is dominated by the directions of largest variance, Procrustes weighs all directions more evenly, and mutual
nearest neighbours look at local structure only. A finding that holds in all three does not rest on one's blind spot.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxkd.analysis.similarity import Rows, check_rows
from jaxkd.losses.cka import unit_scale
from jaxkd.losses.tokens import unit_tokens


def procrustes_matrix(features_a: Sequence[Rows], features_b: Sequence[Rows]) -> Float[Array, "la lb"]:
  """Orthogonal Procrustes similarity of every layer of one model with every layer of another, float32 in [0, 1].

  `||A'B||_* / (||A||_F ||B||_F)` on centred rows: 1 minus half the distance `min_Q ||A/||A|| - (B/||B||) Q||^2` over
  rotations Q. Rotation, offset and scale change nothing; a constant layer is similar to nothing (0). It is biased
  upwards: independent features of width d near or above the n rows are far from 0, so compare with its value on
  permuted rows. Costs an n x n eigendecomposition per layer wider than n, and a singular value decomposition of size
  min(n, d) per pair.

  Raises:
    ValueError: no layers, or row counts differ.

  Source: Ding, Denain and Steinhardt (NeurIPS 2021, arXiv:2108.01661).
  """
  check_rows("procrustes_matrix", features_a, features_b)
  a = [_reduced(jnp.asarray(x)) for x in features_a]
  b = a if features_b is features_a else [_reduced(jnp.asarray(x)) for x in features_b]
  return jnp.stack([jnp.stack([_nuclear(x, y) for y in b]) for x in a])


@jax.jit
def _reduced(x: Float[Array, "n d"]) -> Float[Array, "n r"]:
  """Centred rows of Frobenius norm 1, rotated into at most n columns, which changes no nuclear norm."""
  x = unit_scale(x)
  square = jnp.sum(x * x)
  x = x / jnp.sqrt(jnp.where(square <= 0.0, 1.0, square))
  n, d = x.shape
  if d <= n:
    return x
  # x = (U S) V' with V'V = I, from QR of the transpose: x' = Q R gives x = R' Q'. No squared condition number.
  return jnp.linalg.qr(x.T, mode="r").T


@jax.jit
def _nuclear(x: Float[Array, "n p"], y: Float[Array, "n q"]) -> Float[Array, ""]:
  product = jnp.einsum("np,nq->pq", x, y, precision="highest")
  return jnp.linalg.svd(product, compute_uv=False).sum()


def mutual_knn_matrix(
  features_a: Sequence[Rows],
  features_b: Sequence[Rows],
  *,
  k: int = 10,
  reduce: Literal["mean"] | None = "mean",
) -> Float[Array, "la lb"] | Float[Array, "la lb n"]:
  """Share of common k nearest neighbours (cosine, without the row itself), layer by layer, float32 in [0, 1].

  Unrelated features share `k / (n - 1)` of them on average. With `reduce=None` one value per row, for
  `bootstrap_mean` with the rows first; rows are each other's neighbours, so that interval is approximate.

  Raises:
    ValueError: no layers, row counts differ, `k` not in 1 .. n - 1, or an unknown `reduce`.

  Source: Huh, Cheung, Wang and Isola (ICML 2024, arXiv:2405.07987).
  """
  check_rows("mutual_knn_matrix", features_a, features_b)
  rows = features_a[0].shape[0]
  if not 1 <= k < rows:
    raise ValueError(f"mutual_knn_matrix: k is {k}; it must be in 1 .. {rows - 1} (the other rows)")
  if reduce not in ("mean", None):
    raise ValueError(f"reduce = {reduce!r}; known: 'mean', None")
  a = jnp.stack([_neighbours(jnp.asarray(x), k=k) for x in features_a])
  b = a if features_b is features_a else jnp.stack([_neighbours(jnp.asarray(x), k=k) for x in features_b])
  shared = _shared(a, b, each=reduce is None)
  return shared / jnp.float32(k if reduce is None else k * rows)


@partial(jax.jit, static_argnames="k")
def _neighbours(x: Float[Array, "n d"], *, k: int) -> Bool[Array, "n n"]:
  """Which rows are among the k nearest of each row."""
  x = unit_tokens(x)
  similarity = jnp.einsum("nd,md->nm", x, x, precision="highest")
  similarity = jnp.where(jnp.eye(len(x), dtype=bool), -jnp.inf, similarity)
  _, index = jax.lax.top_k(similarity, k)
  return jnp.zeros(similarity.shape, bool).at[jnp.arange(len(x))[:, None], index].set(True)


@partial(jax.jit, static_argnames="each")
def _shared(a: Bool[Array, "la n n"], b: Bool[Array, "lb n n"], *, each: bool) -> Float[Array, "la lb *n"]:
  a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  return jnp.einsum("anm,bnm->abn" if each else "anm,bnm->ab", a, b)
