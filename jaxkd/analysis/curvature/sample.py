"""What every curvature analysis is given: parameters in one precision, and a sample cut into weighted batches."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

LossFn = Callable[[PyTree, PyTree], Float[Array, ""]]


def shares(batches: Sequence[PyTree], weights: Sequence[float] | None) -> np.ndarray:
  """Each batch's share of the whole loss, [batches] float64, adding up to 1.

  `weights` are the batches' numbers of examples, or any positive numbers in that proportion; None means equal
  batches. A batch's loss is the mean over its examples, so shares in proportion to the examples make the weighted
  mean over batches the mean over examples, a smaller last batch included.

  Raises:
    TypeError: `batches` is no sequence.
    ValueError: no batches; unequal batches without weights; weights that are not one positive number per batch.
  """
  if not isinstance(batches, Sequence):
    raise TypeError(
      f"batches is a {type(batches).__name__}; expected a list or tuple of equally shaped pytrees"
    )
  if not batches:
    raise ValueError("no batches: the Hessian needs at least one")
  if weights is None:
    _check_equal(batches)
    return np.full(len(batches), 1 / len(batches))
  given = np.asarray(weights, np.float64)
  if given.shape != (len(batches),) or not (np.isfinite(given).all() and (given > 0).all()):
    raise ValueError(f"weights = {list(weights)}: one positive number for each of {len(batches)} batches")
  return given / given.sum()


def in_float(params: PyTree) -> PyTree:
  """Parameters as float64 if all of them are, else as float32.

  Raises TypeError for a parameter that is not floating point.
  """
  for path, leaf in zip(paths(params), jax.tree.leaves(params), strict=True):
    if not jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating):
      raise TypeError(
        f"parameter '{path}' has dtype {jnp.asarray(leaf).dtype}; the Hessian needs floating-point "
        "parameters, so pass counters and other state through the batches"
      )
  double = all(jnp.asarray(x).dtype == jnp.float64 for x in jax.tree.leaves(params))
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64 if double else jnp.float32), params)


def paths(params: PyTree) -> list[str]:
  """`block07/attn/qkv/kernel` of every leaf, in flattening order."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]


def signature(tree: PyTree) -> Hashable:
  """Equal for trees of equal structure, shapes and dtypes."""
  leaves, treedef = jax.tree.flatten(tree)
  return treedef, tuple((jnp.shape(x), getattr(x, "dtype", type(x))) for x in leaves)


def rademacher_like(key: PRNGKeyArray, params: PyTree) -> PyTree:
  """Independent random signs, +1 or -1 with equal probability, in the shapes and dtypes of `params`.

  All bits of one draw are used, 32 signs a word: `jax.random.rademacher` leaf by leaf spends a word on each sign, which
  is a tenth of a Hessian probe's time on a CPU.
  """
  leaves, treedef = jax.tree.flatten(params)
  ends = np.cumsum([-(-x.size // 32) for x in leaves])
  words = jnp.split(jax.random.bits(key, (int(ends[-1]),), jnp.uint32), ends[:-1])
  return jax.tree.unflatten(treedef, [_signs(w, x) for w, x in zip(words, leaves, strict=True)])


def _signs(words: Array, like: Array) -> Array:
  bits = (words[:, None] >> jnp.arange(32, dtype=jnp.uint32)[None]) & jnp.uint32(1)
  return 1 - 2 * bits.reshape(-1)[: like.size].reshape(like.shape).astype(like.dtype)


def normal_like(key: PRNGKeyArray, params: PyTree) -> PyTree:
  """Independent standard normal numbers in the shapes and dtypes of `params`."""
  return _draw(key, params, jax.random.normal)


def _draw(key: PRNGKeyArray, params: PyTree, draw: Callable[..., Array]) -> PyTree:
  leaves, treedef = jax.tree.flatten(params)
  keys = [jax.random.fold_in(key, i) for i in range(len(leaves))]
  return jax.tree.unflatten(treedef, [draw(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)])


def _check_equal(batches: Sequence[Any]) -> None:
  expected = signature(batches[0])
  for i, batch in enumerate(batches):
    if signature(batch) != expected:
      raise ValueError(
        f"batch {i} differs from batch 0 in structure, shape or dtype; only over equal batches is the mean "
        "over batches the mean over examples, so choose a batch size that divides the sample or give weights"
      )
