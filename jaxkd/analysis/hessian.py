"""Curvature of a loss: the Hessian's trace by Hutchinson's estimator.

For a random sign vector v the value v'Hv has expectation tr(H) (Hutchinson, 1989), so the mean over probes is
unbiased and its standard error needs no assumption. Hessian-vector products are exact: `jax.jvp` of
`jax.grad`, written here as `jax.linearize` of the gradient, because the linear map of one batch serves every
probe.
"""

import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

LossFn = Callable[[PyTree, PyTree], Float[Array, ""]]
BlockOf = Callable[[str], str]

ROUND = 10  # probes between two looks at the stopping rule; every round linearises each batch again


@dataclass(frozen=True, eq=False)
class TraceEstimate:
  """A Hutchinson estimate of tr(H).

  Attributes:
    mean: the estimate.
    stderr: its standard error over probes: the noise of the probes only, not of the sample of images.
    probes: probes used.
    per_block: block name -> (mean, stderr) of the trace of that diagonal block; the means add up to `mean`.
    leaf_values: parameter path -> [probes] float64, what each probe gave for that parameter. Two estimates
      made with the same key used the same probes, so their differences may be taken probe by probe.
  """

  mean: float
  stderr: float
  probes: int
  per_block: dict[str, tuple[float, float]]
  leaf_values: dict[str, np.ndarray] = field(repr=False)

  @property
  def values(self) -> np.ndarray:
    """v'Hv of every probe, [probes] float64."""
    return np.sum(list(self.leaf_values.values()), axis=0)

  def by(self, block_of: BlockOf) -> dict[str, tuple[float, float]]:
    """The same probes grouped by another rule (layer type, say): block name -> (mean, stderr)."""
    return _grouped(self.leaf_values, block_of)


def first_component(path: str) -> str:
  """The top-level group of a parameter path: `block07/attn/qkv/kernel` -> `block07`."""
  return path.split("/", 1)[0]


def hessian_trace(
  loss_fn: LossFn,
  params: PyTree,
  batches: Sequence[PyTree],
  *,
  key: PRNGKeyArray,
  probes: int = 100,
  rtol: float | None = None,
  min_probes: int = 30,
  block_of: BlockOf = first_component,
) -> TraceEstimate:
  """Trace of the Hessian of the mean over batches of `loss_fn(params, batch)`, by Rademacher probes.

  Probe i is drawn from `fold_in(key, i)` and is the same vector on every batch, so a probe's value is v'Hv of
  the whole mean loss, however the sample is cut into batches, and the result is a function of `key`.
  Everything is float32 at matmul precision "highest"; sums over parameters and batches are accumulated in
  float64 on the host.

  A second call with the same `loss_fn` object and the same shapes compiles nothing. So pass one function for
  many models of an architecture, and give what differs between them, such as batch statistics, in the batches
  or in `params`. The linear map of one batch keeps that batch's residuals in memory (a DeiT-Tiny at 32 px:
  about 40 MB per image), so use small batches.

  Args:
    loss_fn: `(params, batch) -> scalar`, the mean over the batch's examples, twice differentiable,
      deterministic.
    params: floating-point leaves; cast to float32.
    batches: pytrees of equal shapes. Equal sizes make the mean over batches the mean over examples.
    key: PRNG key.
    probes: number of probes, or the largest number when `rtol` is given.
    rtol: stop as soon as `stderr <= rtol * |mean|`, looked at after `min_probes` and then every few probes.
      Stopping on the data makes the final standard error slightly optimistic.
    min_probes: probes before the first look; used with `rtol` only.
    block_of: parameter path ("block07/attn/qkv/kernel") -> name of its block. A block's value is the product
      of v and Hv restricted to it, whose expectation is the trace of the diagonal block of H.

  Raises:
    ValueError: fewer than 2 probes, `rtol` not positive, no batches, or batches of different shapes.
    TypeError: `batches` is no sequence, or a parameter is not floating point.
    FloatingPointError: a probe's value is not finite.

  Source: Hutchinson (1989), "A stochastic estimator of the trace of the influence matrix"; Yao et al. (2020),
    PyHessian.
  """
  _check_probes(probes, rtol, min_probes)
  _check_batches(batches)
  params = _as_float32(params)
  paths = _paths(params)
  rounds = [np.zeros((0, len(paths)))]
  done = 0
  while done < probes:
    count = probes if rtol is None else min(probes, min_probes if done == 0 else done + ROUND)
    rounds.append(_probe_values(loss_fn, params, batches, key, range(done, count)))
    done = count
    if rtol is not None and _reached(np.concatenate(rounds), rtol):
      break
  return _summary(np.concatenate(rounds), paths, block_of)


def hessian_vector_product(
  loss_fn: LossFn, params: PyTree, batches: Sequence[PyTree], vector: PyTree
) -> PyTree:
  """H v for the mean of `loss_fn` over `batches`: a pytree like `params`, float32.

  Args:
    loss_fn, params, batches: as in `hessian_trace`.
    vector: pytree with the structure and shapes of `params`.

  Raises:
    ValueError: no batches, batches of different shapes, or a vector unlike the parameters.
    TypeError: `batches` is no sequence, or a parameter is not floating point.
  """
  _check_batches(batches)
  params, vector = _as_float32(params), _as_float32(vector)
  if _signature(params) != _signature(vector):
    raise ValueError(
      "vector must have the tree structure and shapes of params; build it with jax.tree.map over params"
    )
  total = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), params)
  weight = np.float32(1 / len(batches))
  with jax.default_matmul_precision("highest"):
    for batch in batches:
      total = _accumulate(total, weight, _linear_map(loss_fn, params, batch), vector)
  return total


def rademacher_like(key: PRNGKeyArray, params: PyTree) -> PyTree:
  """Independent random signs, +1 or -1 with equal probability, in the shapes of `params`, float32."""
  leaves, treedef = jax.tree.flatten(params)
  keys = [jax.random.fold_in(key, i) for i in range(len(leaves))]
  signs = [jax.random.rademacher(k, x.shape, jnp.float32) for k, x in zip(keys, leaves, strict=True)]
  return jax.tree.unflatten(treedef, signs)


@functools.partial(jax.jit, static_argnames="loss_fn")
def _linear_map(loss_fn: LossFn, params: PyTree, batch: PyTree) -> Callable[[PyTree], PyTree]:
  """v -> H v for one batch: a pytree whose leaves are the residuals.

  Jitted code must take it as an argument; captured in a closure the residuals become constants of the
  program.
  """
  _, hvp = jax.linearize(jax.grad(lambda p: loss_fn(p, batch)), params)
  return hvp


@jax.jit
def _accumulate(total: PyTree, weight: Array, hvp: Callable[[PyTree], PyTree], vector: PyTree) -> PyTree:
  return jax.tree.map(lambda t, x: t + weight * x, total, hvp(vector))


@jax.jit
def _probe(
  hvp: Callable[[PyTree], PyTree], params: PyTree, key: PRNGKeyArray, index: Array
) -> Float[Array, " leaves"]:
  """`v . Hv` restricted to each parameter, for the probe of this index."""
  vector = rademacher_like(jax.random.fold_in(key, index), params)
  products = jax.tree.map(lambda v, hv: jnp.sum(v * hv), vector, hvp(vector))
  return jnp.stack(jax.tree.leaves(products))


def _probe_values(
  loss_fn: LossFn, params: PyTree, batches: Sequence[PyTree], key: PRNGKeyArray, indices: range
) -> np.ndarray:
  """[probes leaves] float64. Batches outside, probes inside: one linear map is alive at a time."""
  total = np.zeros((len(indices), len(jax.tree.leaves(params))))
  with jax.default_matmul_precision("highest"):
    for batch in batches:
      hvp = _linear_map(loss_fn, params, batch)
      # A Python loop: lax.map over the probes was no faster, and its program depends on the number of probes.
      values = [_probe(hvp, params, key, jnp.uint32(i)) for i in indices]
      total += np.asarray(jax.device_get(values), np.float64)
  total /= len(batches)
  if not np.isfinite(total).all():
    first = indices[int(np.argwhere(~np.isfinite(total))[0, 0])]
    raise FloatingPointError(
      f"Hessian trace: probe {first} is not finite; check the loss and its gradient at these parameters"
    )
  return total


def _reached(values: np.ndarray, rtol: float) -> bool:
  mean, stderr = _mean_and_stderr(values.sum(axis=1))
  return stderr <= rtol * abs(mean)


def _summary(values: np.ndarray, paths: list[str], block_of: BlockOf) -> TraceEstimate:
  leaf_values = {path: values[:, i] for i, path in enumerate(paths)}
  mean, stderr = _mean_and_stderr(values.sum(axis=1))
  return TraceEstimate(mean, stderr, len(values), _grouped(leaf_values, block_of), leaf_values)


def _grouped(leaf_values: dict[str, np.ndarray], block_of: BlockOf) -> dict[str, tuple[float, float]]:
  groups: dict[str, list[np.ndarray]] = {}
  for path, values in leaf_values.items():
    groups.setdefault(block_of(path), []).append(values)
  return {name: _mean_and_stderr(np.sum(members, axis=0)) for name, members in groups.items()}


def _mean_and_stderr(values: np.ndarray) -> tuple[float, float]:
  return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def _paths(params: PyTree) -> list[str]:
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]


def _as_float32(params: PyTree) -> PyTree:
  for path, leaf in zip(_paths(params), jax.tree.leaves(params), strict=True):
    if not jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating):
      raise TypeError(
        f"parameter '{path}' has dtype {jnp.asarray(leaf).dtype}; the Hessian needs floating-point "
        "parameters, so pass counters and other state through the batches"
      )
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)


def _signature(tree: PyTree) -> Hashable:
  leaves, treedef = jax.tree.flatten(tree)
  return treedef, tuple((jnp.shape(x), getattr(x, "dtype", type(x))) for x in leaves)


def _check_probes(probes: int, rtol: float | None, min_probes: int) -> None:
  if probes < 2:
    raise ValueError(f"probes = {probes}: a standard error needs at least 2 probes")
  if rtol is None:
    return
  if rtol <= 0:
    raise ValueError(f"rtol = {rtol}: the relative standard error to reach must be positive, such as 0.05")
  if not 2 <= min_probes <= probes:
    raise ValueError(f"min_probes = {min_probes} must lie between 2 and probes = {probes}")


def _check_batches(batches: Sequence[Any]) -> None:
  if not isinstance(batches, Sequence):
    raise TypeError(
      f"batches is a {type(batches).__name__}; expected a list or tuple of equally shaped pytrees"
    )
  if not batches:
    raise ValueError("no batches: the Hessian needs at least one")
  expected = _signature(batches[0])
  for i, batch in enumerate(batches):
    if _signature(batch) != expected:
      raise ValueError(
        f"batch {i} differs from batch 0 in structure, shape or dtype; only over equal batches is the mean "
        "over batches the mean over examples, so choose a batch size that divides the sample"
      )
