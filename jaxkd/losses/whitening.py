"""Whitening of a frozen teacher's space, so that no few directions of large variance rule the loss."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Whitening(NamedTuple):
  """An affine map, float32: `(x - mean) @ matrix`. The matrix is symmetric."""

  mean: Float[Array, " d"]
  matrix: Float[Array, "d d"]


def fit_whitening(features: Float[Array | np.ndarray, "m d"], *, epsilon: float = 1e-5) -> Whitening:
  """ZCA whitening of m feature rows: whitened, they have mean 0 and the identity as covariance (1/m).

  ZCA (the inverse square root of the covariance) is the one whitening that moves the features least, and it
  is unique: the signs and order of eigenvectors, which differ between machines, cancel.

  Directions whose variance is below `epsilon` times the largest are dropped: whitened features are 0 along
  them, and their covariance is the projection on what is left. LayerNormed features without an affine part
  have one such direction, and fewer than d + 1 rows leave some. Constant features have nothing left: all 0.

  Computed once, on the host, in float64: about m d 16 bytes, so pass a sample of some tens of d rows.

  Raises:
    ValueError: not [m d] with at least one row, values that are not finite, or `epsilon` outside (0, 1).
  """
  if features.ndim != 2 or not features.shape[0]:
    raise ValueError(
      f"fit_whitening: features {features.shape} must be [m d] with at least one row; reshape tokens [b n d]"
    )
  if not 0.0 < epsilon < 1.0:
    raise ValueError(
      f"fit_whitening: epsilon is {epsilon}; it is a fraction of the largest variance in (0, 1)"
    )
  x = np.asarray(features).astype(np.float64)
  if not np.isfinite(x).all():
    rows = int((~np.isfinite(x).all(axis=1)).sum())
    raise ValueError(f"fit_whitening: {rows} of {len(x)} rows are not finite; check the teacher's features")
  x = x - (first := x[0])  # a mean is rounded, a row is not: equal rows become exactly 0
  shift = x.mean(axis=0)
  x = x - shift
  variances, directions = np.linalg.eigh(x.T @ x / len(x))
  kept = variances > epsilon * variances[-1]
  scale = np.where(kept, 1.0 / np.sqrt(np.where(kept, variances, 1.0)), 0.0)
  matrix = (directions * scale) @ directions.T
  return Whitening(jnp.asarray(first + shift, jnp.float32), jnp.asarray(matrix, jnp.float32))


def whiten(x: Float[Array, "*s d"], whitening: Whitening) -> Float[Array, "*s d"]:
  """Features in the whitened space, float32; any leading axes.

  Raises:
    ValueError: the last axis does not fit the whitening.
  """
  width = whitening.mean.shape[0]
  if x.ndim < 1 or x.shape[-1] != width:
    raise ValueError(f"whiten: x {x.shape} does not fit a whitening of width {width}")
  centered = x.astype(jnp.float32) - whitening.mean.reshape((1,) * (x.ndim - 1) + (width,))
  return jnp.matmul(centered, whitening.matrix, precision=jax.lax.Precision.HIGHEST)
