"""Centred kernel alignment (CKA): similarity of two representations of the same rows.

Kornblith et al., ICML 2019, arXiv:1905.00414. The default is the debiased estimator, the cosine of the
U-centred Gram matrices (Song et al., JMLR 2012; Nguyen et al., ICLR 2021, arXiv:2010.15327): about 0 for
independent features, where the biased one gives about d / (d + n) for n rows of width d.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxkd.losses.tokens import check_token_pair, pool_samples

# A centred Gram matrix smaller than this part of the whole one is rounding, and the rows have no structure.
_EPSILON = 1e-5


def cka(
  x: Float[Array, "n p"], y: Float[Array, "n q"], *, kernel: str = "linear", debiased: bool = True
) -> Float[Array, ""]:
  """CKA of two representations of the same n rows, a float32 scalar.

  Debiased values lie in [-1, 1], biased ones in [0, 1]. Rotation, offset and scale of either side change
  nothing. `kernel="rbf"` is `exp(-d^2 / (2 sigma^2))`, sigma^2 the median of d^2 over the pairs i < j, per
  side, not differentiated. Where either side has no structure (its centred Gram matrix vanishes against the
  Gram matrix, as for equal or for equidistant rows) value and gradient are 0.

  Raises:
    ValueError: row counts differ or are below 4, or the kernel is unknown.
  """
  if x.ndim != 2 or y.ndim != 2 or x.shape[0] != y.shape[0]:
    raise ValueError(f"cka: {x.shape} and {y.shape} must be [n p] and [n q] with the same rows")
  a, b = (_of_gram(_gram(unit_scale(z)), kernel, debiased) for z in (x, y))
  square = jnp.sum(a * a) * jnp.sum(b * b)
  flat = square <= 0.0
  return jnp.where(flat, 0.0, jnp.sum(a * b) / jnp.sqrt(jnp.where(flat, 1.0, square)))


def cka_loss(
  student: Float[Array, "b n d"] | Float[Array, "b d"],
  teacher: Float[Array, "b m e"] | Float[Array, "b e"],
  *,
  kernel: str = "linear",
  debiased: bool = True,
  over: str = "tokens",
) -> Float[Array, " b"] | Float[Array, ""]:
  """1 - CKA, float32, in [0, 2] (biased: [0, 1]).

  `over="tokens"`: rows are the tokens of an image; [b n d] and [b n e] give [b].
  `over="samples"`: rows are the samples of the batch, features [b d] or mean-pooled tokens [b n d]; a scalar.
  An image (or batch) without structure on either side has loss 1 and gradient 0. See `cka` for the options.

  Raises:
    ValueError: shapes do not fit, there are fewer than 4 rows, or an option is unknown.
  """
  if over == "tokens":
    check_token_pair("cka_loss", student, teacher)
    return 1.0 - jax.vmap(lambda s, t: cka(s, t, kernel=kernel, debiased=debiased))(student, teacher)
  if over == "samples":
    student, teacher = (pool_samples("cka_loss", x) for x in (student, teacher))
    return 1.0 - cka(student, teacher, kernel=kernel, debiased=debiased)
  raise ValueError(f"cka_loss: unknown over {over!r}; known: tokens, samples")


def unit_scale(x: Float[Array, "n p"]) -> Float[Array, "n p"]:
  """Centred rows with largest magnitude 1, in float32, so that fourth powers stay in range.

  The scale is a constant of the gradient, which is exact for whatever does not depend on scale.
  """
  x = center_rows(x)
  scale = jax.lax.stop_gradient(jnp.abs(x).max())
  return x / jnp.where(scale <= 0.0, 1.0, scale)


def center_rows(x: Float[Array, "n p"]) -> Float[Array, "n p"]:
  """Rows minus their mean, in float32."""
  x = x.astype(jnp.float32)
  x = x - x[:1]  # a mean is rounded, a row is not: equal rows become exactly 0, whatever their size
  return x - x.mean(axis=0, keepdims=True)


def centered_gram(
  x: Float[Array, "n p"],
  *,
  kernel: str = "linear",
  debiased: bool = True,
  sigma2: Float[Array, ""] | None = None,
) -> Float[Array, "n n"]:
  """Centred (debiased: U-centred, zero diagonal) Gram matrix, float32; all zero where it vanishes against the
  Gram matrix. The inner product of two U-centred ones over n (n - 3) is the unbiased HSIC.

  `sigma2` is the squared bandwidth of the RBF kernel; without it the median of this matrix is taken.

  Raises:
    ValueError: fewer than 4 rows, or the kernel is unknown.
  """
  return _of_gram(_gram(center_rows(x)), kernel, debiased, sigma2)


def _gram(x: Float[Array, "n p"]) -> Float[Array, "n n"]:
  """Products of centred rows; not in TensorFloat-32, the default on GPUs."""
  return jnp.einsum("np,mp->nm", x, x, precision="highest")


def _of_gram(
  whole: Float[Array, "n n"], kernel: str, debiased: bool, sigma2: Float[Array, ""] | None = None
) -> Float[Array, "n n"]:
  """`centered_gram` of the rows whose products are `whole`."""
  if whole.shape[0] < 4:
    raise ValueError(
      f"CKA needs at least 4 rows (tokens or samples), got {whole.shape[0]}; below 16 it is noise"
    )
  if kernel not in ("linear", "rbf"):
    raise ValueError(f"CKA: unknown kernel {kernel!r}; known: linear, rbf")
  if kernel == "rbf":
    distances = _squared_distances(whole)
    sigma2 = _median(distances) if sigma2 is None else sigma2
    # Bandwidth 0 (most rows coincide) leaves no kernel: with infinity instead, every row looks the same.
    flat = sigma2 <= _EPSILON * jax.lax.stop_gradient(distances.max())
    whole = jnp.exp(-distances / jnp.where(flat, jnp.inf, 2.0 * sigma2))
  gram = _u_center(whole) if debiased else _center(whole)
  vanishing = jnp.sum(gram * gram) <= _EPSILON**2 * jnp.sum(whole * whole)
  return jnp.where(vanishing, 0.0, gram)


def median_squared_distance(x: Float[Array, "n p"]) -> Float[Array, ""]:
  """Median of the squared distances over the pairs i < j of rows: the squared bandwidth of the RBF kernel."""
  return _median(_squared_distances(_gram(center_rows(x))))


def _squared_distances(gram: Float[Array, "n n"]) -> Float[Array, "n n"]:
  squares = jnp.diagonal(gram)
  distances = jnp.maximum(squares[:, None] + squares[None, :] - 2.0 * gram, 0.0)
  return jnp.where(jnp.eye(gram.shape[0], dtype=bool), 0.0, distances)


def _median(distances: Float[Array, "n n"]) -> Float[Array, ""]:
  rows, columns = np.triu_indices(distances.shape[0], k=1)
  return jnp.median(jax.lax.stop_gradient(distances)[rows, columns])


def _center(k: Float[Array, "n n"]) -> Float[Array, "n n"]:
  rows = k.mean(axis=1, keepdims=True)
  return k - rows - rows.T + rows.mean()


def _u_center(k: Float[Array, "n n"]) -> Float[Array, "n n"]:
  n = k.shape[0]
  diagonal = jnp.eye(n, dtype=bool)
  k = jnp.where(diagonal, 0.0, k)
  rows = k.sum(axis=1, keepdims=True) / (n - 2)
  total = rows.sum() / (n - 1)
  return jnp.where(diagonal, 0.0, k - rows - rows.T + total)
