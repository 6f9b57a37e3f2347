"""Slices of the loss around a minimum: along given directions, or along filter-normalised random ones."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jaxkd.analysis.curvature.sample import LossFn, in_float, normal_like, paths, shares, signature


def loss_slice(
  loss_fn: LossFn,
  params: PyTree,
  batches: Sequence[PyTree],
  directions: Sequence[PyTree],
  *coordinates: Float[np.ndarray, " n"],
  weights: Sequence[float] | None = None,
) -> np.ndarray:
  """The loss at params + sum of coordinate times direction, on the grid of all coordinates: [n1] or [n1 n2], float64.

  Args:
    loss_fn, params, batches, weights: as in `hessian_trace`.
    directions: pytrees like `params`: eigenvectors of `top_eigenvalues`, or of `filter_normalized`. Eigenvectors have
      norm 1; a filter-normalised direction at 1 changes every filter by its own length.
    coordinates: one array for each direction.

  Raises:
    ValueError: directions that do not match the coordinates or the parameters; as `hessian_trace` for the batches.
  """
  share, params = shares(batches, weights), in_float(params)
  if not directions or len(directions) != len(coordinates):
    raise ValueError(f"{len(directions)} directions and {len(coordinates)} arrays of coordinates; one each")
  directions = [in_float(d) for d in directions]
  for i, direction in enumerate(directions):
    if signature(direction) != signature(params):
      raise ValueError(f"direction {i} differs from params in structure, shape or dtype")
  dtype = jax.tree.leaves(params)[0].dtype
  grid = np.stack(np.meshgrid(*coordinates, indexing="ij"), axis=-1).astype(dtype)
  points = grid.reshape(-1, len(directions))
  total = np.zeros(len(points))
  with jax.default_matmul_precision("highest"):
    for weight, batch in zip(share, batches, strict=True):
      losses = [_loss_at(loss_fn, params, directions, point, batch) for point in points]
      total += weight * np.asarray(jax.device_get(losses), np.float64)
  return total.reshape(grid.shape[:-1])


@functools.partial(jax.jit, static_argnames="loss_fn")
def _loss_at(loss_fn: LossFn, params: PyTree, directions: list[PyTree], point: Array, batch: PyTree) -> Array:
  def move(p: Array, *d: Array) -> Array:
    return p + sum(point[i] * x for i, x in enumerate(d))

  return loss_fn(jax.tree.map(move, params, *directions), batch)


def filter_normalized(key: PRNGKeyArray, params: PyTree) -> PyTree:
  """A random direction whose filters have the norms of the parameters' filters: a pytree like `params`.

  Gaussian; then each filter, all weights of one output unit of a kernel, is scaled to the length of that filter in
  `params`, so that networks that differ in the scale of their layers only have the same slice. Tokens and positions
  are scaled row by row. Vectors (biases, scales of norms) stay where they are, as in the paper.

  Source: Li et al. (2018), "Visualizing the loss landscape of neural nets", arXiv:1712.09913.
  """
  params = in_float(params)
  direction = normal_like(key, params)
  leaves, treedef = jax.tree.flatten(params)
  scaled = [
    _scale(path, p, d) for path, p, d in zip(paths(params), leaves, jax.tree.leaves(direction), strict=True)
  ]
  return jax.tree.unflatten(treedef, scaled)


def _scale(path: str, p: Array, d: Array) -> Array:
  if p.ndim < 2:
    return jnp.zeros_like(p)
  # A kernel's last axis counts its output units; a row of tokens is a unit itself.
  axes = tuple(range(p.ndim - 1)) if path.endswith("kernel") else (p.ndim - 1,)
  norms = [jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True)) for x in (p, d)]
  return d * norms[0] / norms[1]
