"""Products of the Hessian with given vectors, streamed over the batches of a sample."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxkd.analysis.curvature.folding import fold
from jaxkd.analysis.curvature.sample import LossFn, in_float, shares, signature


@functools.partial(jax.jit, static_argnames="loss_fn")
def linear_map(loss_fn: LossFn, params: PyTree, batch: PyTree) -> Callable[[PyTree], PyTree]:
  """v -> H v for one batch: a pytree whose leaves are the residuals.

  Jitted code must take it as an argument; captured in a closure the residuals become constants of the
  program.
  """
  _, hvp = jax.linearize(jax.grad(lambda p: loss_fn(p, batch)), params)
  return fold(hvp, params)


def hessian_vector_product(
  loss_fn: LossFn,
  params: PyTree,
  batches: Sequence[PyTree],
  vector: PyTree,
  *,
  weights: Sequence[float] | None = None,
) -> PyTree:
  """H v for the mean of `loss_fn` over `batches`: a pytree like `params`, float32 (float64 if all of them are).

  Args:
    loss_fn, params, batches, weights: as in `hessian_trace`.
    vector: pytree with the structure and shapes of `params`.

  Raises:
    ValueError: no batches, batches of different shapes, or a vector unlike the parameters.
    TypeError: `batches` is no sequence, or a parameter is not floating point.
  """
  share = shares(batches, weights)
  params, vector = in_float(params), in_float(vector)
  if signature(params) != signature(vector):
    raise ValueError(
      "vector must have the tree structure and shapes of params; build it with jax.tree.map over params"
    )
  total = jax.tree.map(jnp.zeros_like, params)
  with jax.default_matmul_precision("highest"):
    for weight, batch in zip(share, batches, strict=True):
      total = _accumulate(total, _scalar(weight, params), linear_map(loss_fn, params, batch), vector)
  return total


def hessian_vector_products(
  loss_fn: LossFn, params: PyTree, batches: Sequence[PyTree], vectors: np.ndarray, share: np.ndarray
) -> np.ndarray:
  """H times every row of `vectors`, [k n] in flattening order of `params`: [k n] on the host, of the same dtype."""
  out = np.zeros_like(vectors)
  with jax.default_matmul_precision("highest"):
    for weight, batch in zip(share, batches, strict=True):
      hvp = linear_map(loss_fn, params, batch)
      for row, vector in zip(out, vectors, strict=True):
        row += np.asarray(_flat_product(hvp, params, vector, _scalar(weight, params)))
  return out


@jax.jit
def _accumulate(total: PyTree, weight: Array, hvp: Callable[[PyTree], PyTree], vector: PyTree) -> PyTree:
  return jax.tree.map(lambda t, x: t + weight * x, total, hvp(vector))


@jax.jit
def _flat_product(
  hvp: Callable[[PyTree], PyTree], params: PyTree, vector: Float[Array, " n"], weight: Array
) -> Float[Array, " n"]:
  return weight * flat(hvp(unflat(vector, params)))


def flat(tree: PyTree) -> Float[Array, " n"]:
  """All leaves behind one another."""
  return jnp.concatenate([x.reshape(-1) for x in jax.tree.leaves(tree)])


def unflat(vector: Float[Array, " n"], like: PyTree) -> PyTree:
  """The inverse of `flat`, in the structure and shapes of `like`."""
  leaves, treedef = jax.tree.flatten(like)
  parts = jnp.split(vector, np.cumsum([x.size for x in leaves])[:-1])
  return jax.tree.unflatten(treedef, [p.reshape(x.shape) for p, x in zip(parts, leaves, strict=True)])


def _scalar(weight: float, params: PyTree) -> np.ndarray:
  return np.asarray(weight, jax.tree.leaves(params)[0].dtype)
