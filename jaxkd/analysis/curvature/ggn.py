"""The trace of the generalised Gauss-Newton matrix of a cross entropy."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jaxkd.analysis.curvature.estimate import BlockOf, TraceEstimate, summary
from jaxkd.analysis.curvature.groups import first_component
from jaxkd.analysis.curvature.sample import in_float, paths, shares

LogitsFn = Callable[[PyTree, PyTree], Float[Array, "b c"]]


def ggn_trace(
  logits_fn: LogitsFn,
  params: PyTree,
  batches: Sequence[PyTree],
  *,
  key: PRNGKeyArray,
  probes: int = 100,
  block_of: BlockOf = first_component,
  weights: Sequence[float] | None = None,
) -> TraceEstimate:
  """Trace of the generalised Gauss-Newton matrix G of the mean softmax cross entropy, which is its Fisher matrix.

  G = mean over examples of J' (diag(p) - p p') J with J the Jacobian of an example's logits z and p = softmax(z). It is
  the part of the Hessian that does not depend on the labels, and never negative. With L = diag(sqrt p) - p sqrt(p)',
  LL' is the matrix in the middle, so for signs u in the space of the logits |J'L u|^2 has expectation tr(G): one
  backward pass a probe instead of a Hessian-vector product, and per parameter the squared norm of its part.

  Args:
    logits_fn: `(params, batch) -> logits` [b c], differentiable, deterministic.
    params, batches, key, probes, block_of, weights: as in `hessian_trace`. A batch draws its own signs.

  Raises:
    ValueError: fewer than 2 probes, no batches, or batches of different shapes without weights.
    TypeError: `batches` is no sequence, or a parameter is not floating point.
    FloatingPointError: a probe's value is not finite.

  Source: Schraudolph (2002), "Fast curvature matrix-vector products"; Martens (2020), arXiv:1412.1193.
  """
  if probes < 2:
    raise ValueError(f"probes = {probes}: a standard error needs at least 2 probes")
  share, params = shares(batches, weights), in_float(params)
  total = np.zeros((probes, len(jax.tree.leaves(params))))
  with jax.default_matmul_precision("highest"):
    for b, (weight, batch) in enumerate(zip(share, batches, strict=True)):
      logits, pullback = _pullback(logits_fn, params, batch)
      signs = jax.random.fold_in(key, b)
      values = [_squares(logits, pullback, signs, np.uint32(i)) for i in range(probes)]
      total += weight * np.asarray(jax.device_get(values), np.float64)
  if not np.isfinite(total).all():
    raise FloatingPointError("GGN trace is not finite; check the logits at these parameters")
  return summary({path: total[:, i] for i, path in enumerate(paths(params))}, probes, block_of)


@functools.partial(jax.jit, static_argnames="logits_fn")
def _pullback(
  logits_fn: LogitsFn, params: PyTree, batch: PyTree
) -> tuple[Array, Callable[[Array], tuple[PyTree]]]:
  """Logits of the batch and v -> J'v, a pytree of residuals as `products.linear_map`."""
  return jax.vjp(lambda p: logits_fn(p, batch), params)


@jax.jit
def _squares(
  logits: Float[Array, "b c"], pullback: Callable[[Array], tuple[PyTree]], key: PRNGKeyArray, index: Array
) -> Float[Array, " leaves"]:
  """|J'L u|^2 / b of each parameter."""
  u = jax.random.rademacher(jax.random.fold_in(key, index), logits.shape, logits.dtype)
  p = jax.nn.softmax(logits)
  root = jnp.sqrt(p)
  scaled = (root * u - p * jnp.sum(root * u, axis=1, keepdims=True)) / np.sqrt(len(logits)).astype(
    logits.dtype
  )
  (gradient,) = pullback(scaled)
  return jnp.stack([jnp.sum(jnp.square(x)) for x in jax.tree.leaves(gradient)])
