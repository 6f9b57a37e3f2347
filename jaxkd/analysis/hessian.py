"""Curvature of a loss: the Hessian's trace by stochastic estimators, and Hessian-vector products.

For a random sign vector v the value v'Hv has expectation tr(H) (Hutchinson, 1989), so the mean over probes is
unbiased and its standard error needs no assumption. Hessian-vector products are exact: `jax.jvp` of
`jax.grad`, written here as `jax.linearize` of the gradient, because the linear map of one batch serves every
probe; `curvature.quadratic_form` gets v'Hv of every parameter out of that map for two thirds of the work.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jaxkd.analysis.curvature import low_rank
from jaxkd.analysis.curvature.estimate import BlockOf, TraceEstimate, mean_and_stderr, summary
from jaxkd.analysis.curvature.groups import first_component, is_split_by_head, sum_by_head
from jaxkd.analysis.curvature.products import hessian_vector_product, hessian_vector_products, linear_map
from jaxkd.analysis.curvature.quadratic_form import leaf_forms
from jaxkd.analysis.curvature.sample import LossFn, in_float, paths, rademacher_like, shares

__all__ = ["TraceEstimate", "first_component", "hessian_trace", "hessian_vector_product", "rademacher_like"]

METHODS = ("hutchinson", "hutch++", "xtrace")


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
  weights: Sequence[float] | None = None,
  method: Literal["hutchinson", "hutch++", "xtrace"] = "hutchinson",
  heads: int | None = None,
  probe_chunk: int = 1,
) -> TraceEstimate:
  """Trace of the Hessian of the mean over batches of `loss_fn(params, batch)`, by Rademacher probes.

  Probe i is drawn from `fold_in(key, i)` and is the same vector on every batch, so a probe's value is v'Hv of
  the whole mean loss, however the sample is cut into batches, and the result is a function of `key`.
  Everything is float32 at matmul precision "highest", or float64 where all parameters are; sums over batches are
  accumulated in float64 on the host.

  A second call with the same `loss_fn` object and the same shapes compiles nothing. So pass one function for
  many models of an architecture, and give what differs between them, such as batch statistics, in the batches
  or in `params`. The linear map of one batch keeps that batch's residuals in memory (a DeiT-Tiny at 32 px:
  about 40 MB per image), so use small batches.

  Args:
    loss_fn: `(params, batch) -> scalar`, the mean over the batch's examples, twice differentiable,
      deterministic.
    params: floating-point leaves; cast to float32 unless all are float64.
    batches: pytrees; arrays may be sharded over a mesh.
    key: PRNG key.
    probes: matrix-vector products to spend, or the largest number when `rtol` is given.
    rtol: stop when `stderr <= rtol * |mean|`. Looked at after `min_probes`; from the variance so far follows how
      many probes are missing, and these are run in one go. So there are two or three looks and not one after every
      probe, which would stop at lucky moments and leave intervals that are too short. Hutchinson's method only.
    min_probes: probes before the first look, at least 30; used with `rtol` only.
    block_of: parameter path ("block07/attn/qkv/kernel") -> name of its block. A block's value is the product
      of v and Hv restricted to it, whose expectation is the trace of the diagonal block of H.
    weights: examples of each batch, if batches differ in size (each size compiles once); None: equal batches.
    method: "hutchinson"; "hutch++" (Meyer et al., 2021), which takes a random range of H out exactly; "xtrace"
      (Epperly et al., 2024), which lets every product serve both purposes. The latter two have a far smaller error
      where few eigenvalues make up the trace, and keep `probes` vectors of the size of the parameters in memory.
      XTrace's values are exchangeable but not independent: its stderr is the paper's error estimate, and its
      interval a rule of thumb.
    heads: attention heads; gives `head_values` and `per_head`. Hutchinson's method only.
    probe_chunk: probes that go through the linear map together.

  Raises:
    ValueError: fewer than 2 probes (4 for the other methods), `rtol` not positive, `min_probes` below 30, an unknown
      method or an option it does not have, no batches, or batches of different shapes without weights.
    TypeError: `batches` is no sequence, or a parameter is not floating point.
    FloatingPointError: a probe's value is not finite.

  Source: Hutchinson (1989), "A stochastic estimator of the trace of the influence matrix"; Yao et al. (2020),
    PyHessian; Meyer et al. (2021), arXiv:2010.09649; Epperly, Tropp and Webber (2024), arXiv:2301.07825.
  """
  _check(probes, rtol, min_probes, method, heads, probe_chunk)
  share, params = shares(batches, weights), in_float(params)
  if method != "hutchinson":
    apply = lambda vectors: hessian_vector_products(loss_fn, params, batches, vectors, share)  # noqa: E731
    estimate = low_rank.hutch_plus_plus if method == "hutch++" else low_rank.xtrace
    return summary(estimate(apply, params, key, probes), probes, block_of)
  run = functools.partial(_probe_values, loss_fn, params, batches, share, key, heads, probe_chunk)
  values = _run(run, probes, rtol, min_probes)
  return _collect(values, params, block_of, heads)


def _run(run: Callable[[range], np.ndarray], probes: int, rtol: float | None, min_probes: int) -> np.ndarray:
  """Values of all probes, [probes columns]; with `rtol` of as many as it takes."""
  if rtol is None:
    return run(range(probes))
  values = run(range(min_probes))
  while len(values) < (wanted := min(_needed(values, rtol), probes)):
    values = np.concatenate([values, run(range(len(values), wanted))])
  return values


def _needed(values: np.ndarray, rtol: float) -> int:
  """Probes after which `stderr <= rtol * |mean|` if mean and variance stay as they are.

  Later rounds ask for a tenth more at least, so that they are few.
  """
  total = values.sum(axis=1)
  mean, stderr = mean_and_stderr(total)
  if stderr <= rtol * abs(mean):
    return len(total)
  limit = len(total) * 1000  # a mean near zero asks for any number
  ratio = (stderr / (rtol * abs(mean))) ** 2 if mean else np.inf
  return int(min(max(np.ceil(len(total) * ratio), np.ceil(1.1 * len(total))), limit))


def _collect(values: np.ndarray, params: PyTree, block_of: BlockOf, heads: int | None) -> TraceEstimate:
  """Columns are first the leaves, then the heads of the leaves that have them."""
  names = paths(params)
  leaf_values = {path: values[:, i] for i, path in enumerate(names)}
  head_values = {}
  if heads is not None:
    split = [path for path in names if is_split_by_head(path)]
    parts = values[:, len(names) :].reshape(len(values), len(split), heads)
    head_values = {path: parts[:, i] for i, path in enumerate(split)}
  return summary(leaf_values, len(values), block_of, head_values)


@functools.partial(jax.jit, static_argnames="heads")
def _probes(
  hvp: Callable[[PyTree], PyTree],
  params: PyTree,
  key: PRNGKeyArray,
  indices: Array,
  heads: int | None,
) -> Float[Array, "chunk columns"]:
  """`v . Hv` restricted to each parameter, then to each head, for the probes of these indices."""
  names = paths(params)
  split = tuple(i for i, path in enumerate(names) if heads is not None and is_split_by_head(path))

  def one(index: Array) -> Array:
    vector = rademacher_like(jax.random.fold_in(key, index), params)
    forms, products = leaf_forms(hvp, vector, split)
    parts = [sum_by_head(names[i], p, heads or 1) for i, p in zip(split, products, strict=True)]
    return jnp.concatenate([jnp.stack(forms), *parts])

  # One probe alone without vmap: a batch axis of size 1 costs XLA on CPU its best layouts.
  return one(indices[0])[None] if len(indices) == 1 else jax.vmap(one)(indices)


def _probe_values(
  loss_fn: LossFn,
  params: PyTree,
  batches: Sequence[PyTree],
  share: np.ndarray,
  key: PRNGKeyArray,
  heads: int | None,
  chunk: int,
  indices: range,
) -> np.ndarray:
  """[probes columns] float64. Batches outside, probes inside: one linear map is alive at a time."""
  total: np.ndarray | float = 0.0
  with jax.default_matmul_precision("highest"):
    for weight, batch in zip(share, batches, strict=True):
      hvp = linear_map(loss_fn, params, batch)
      # A Python loop: lax.map over the probes was no faster, and its program depends on the number of probes. The
      # last chunk is filled with probes beyond the last one, for the same reason.
      starts = range(indices.start, indices.stop, chunk)
      values = [_probes(hvp, params, key, jnp.arange(i, i + chunk, dtype=jnp.uint32), heads) for i in starts]
      total += weight * np.concatenate(jax.device_get(values)).astype(np.float64)[: len(indices)]
      del hvp  # or the next map would be made while this one's residuals are still there
  if not np.isfinite(total).all():
    first = indices[int(np.argwhere(~np.isfinite(total))[0, 0])]
    raise FloatingPointError(
      f"Hessian trace: probe {first} is not finite; check the loss and its gradient at these parameters"
    )
  return np.asarray(total)


def _check(
  probes: int, rtol: float | None, min_probes: int, method: str, heads: int | None, chunk: int
) -> None:
  if method not in METHODS:
    raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
  if method != "hutchinson" and (rtol is not None or heads is not None):
    raise ValueError(f"method={method!r} has no rtol and no heads; use method='hutchinson'")
  least = 2 if method == "hutchinson" else 6
  if probes < least:
    raise ValueError(f"probes = {probes}: a standard error of {method} needs at least {least} probes")
  if chunk < 1 or (heads is not None and heads < 1):
    raise ValueError(f"probe_chunk = {chunk} and heads = {heads} must be positive")
  if rtol is None:
    return
  if rtol <= 0:
    raise ValueError(f"rtol = {rtol}: the relative standard error to reach must be positive, such as 0.05")
  if not 30 <= min_probes <= probes:
    raise ValueError(
      f"min_probes = {min_probes} must lie between 30, below which the first standard error says too little, "
      f"and probes = {probes}"
    )
