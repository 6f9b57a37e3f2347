"""Sharpness: how far the loss rises within a ball around the parameters, plain or in units of the parameters."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxkd.analysis.curvature.sample import LossFn, in_float, shares


@dataclass(frozen=True)
class Sharpness:
  """The largest loss found in the ball, minus the loss at its centre.

  Attributes:
    value: `worst - loss`, at most the true maximum: a lower bound, as the search is local.
    loss: at the parameters.
    worst: the largest loss found.
    one_step: the rise after the first step alone, which is what SAM's training step looks at.
  """

  value: float
  loss: float
  worst: float
  one_step: float


def sharpness(
  loss_fn: LossFn,
  params: PyTree,
  batches: Sequence[PyTree],
  *,
  rho: float = 0.05,
  steps: int = 1,
  adaptive: bool = False,
  weights: Sequence[float] | None = None,
) -> Sharpness:
  """max of loss(params + e) - loss(params) over |e| <= rho, by one step of ascent (SAM) or several.

  The first step goes to the boundary along the gradient of the whole sample's loss. Each further one goes on from
  there along the gradient found there and back to the ball. The largest loss on the way counts.

  Adaptive (ASAM): over |e / params| <= rho, entry by entry, so that every parameter moves in proportion to its own
  size. Rescalings between layers that leave the function as it is (a ReLU unit's input weights times c, its output
  weights divided by c) leave this number as it is, which they do not with the plain ball. Parameters that are 0 stay.

  Args:
    loss_fn, params, batches, weights: as in `hessian_trace`; the loss needs a first derivative only.
    rho: radius. Usual: 0.05 plain; 0.5 adaptive.
    steps: gradients to take.
    adaptive: measure distance in units of the parameters.

  Raises:
    ValueError: rho not positive, no steps, or as `hessian_trace` for the batches.
    FloatingPointError: a loss or gradient on the way is not finite.

  Source: Foret et al. (2021), SAM, arXiv:2010.01412; Kwon et al. (2021), ASAM, arXiv:2102.11600.
  """
  if rho <= 0 or steps < 1:
    raise ValueError(f"rho = {rho} and steps = {steps} must be positive")
  share, params = shares(batches, weights), in_float(params)
  unit = jax.tree.map(jnp.abs if adaptive else jnp.ones_like, params)
  offset = jax.tree.map(jnp.zeros_like, params)  # e in units: e = unit * offset
  losses = []
  with jax.default_matmul_precision("highest"):
    for step in range(steps):
      loss, gradient = _loss_and_gradient(loss_fn, params, unit, offset, batches, share)
      losses.append(loss)
      offset = _ascend(offset, gradient, np.asarray(rho, jax.tree.leaves(params)[0].dtype), first=step == 0)
    losses.append(_loss_and_gradient(loss_fn, params, unit, offset, batches, share)[0])
  if not np.isfinite(losses).all():
    raise FloatingPointError("sharpness: the loss is not finite on the way; try a smaller rho")
  return Sharpness(max(losses) - losses[0], losses[0], max(losses), losses[1] - losses[0])


def _loss_and_gradient(
  loss_fn: LossFn, params: PyTree, unit: PyTree, offset: PyTree, batches: Sequence[PyTree], share: np.ndarray
) -> tuple[float, PyTree]:
  """Loss of the whole sample at params + unit * offset, and its gradient in `offset`."""
  loss, total = 0.0, jax.tree.map(jnp.zeros_like, params)
  for weight, batch in zip(share, batches, strict=True):
    dtype = jax.tree.leaves(params)[0].dtype
    value, total = _add(loss_fn, params, unit, offset, batch, weight.astype(dtype), total)
    loss += float(weight) * float(value)
  return loss, total


@functools.partial(jax.jit, static_argnames="loss_fn")
def _add(
  loss_fn: LossFn, params: PyTree, unit: PyTree, offset: PyTree, batch: PyTree, weight: Array, total: PyTree
) -> tuple[Array, PyTree]:
  def loss(offset: PyTree) -> Array:
    return loss_fn(jax.tree.map(lambda p, u, o: p + u * o, params, unit, offset), batch)

  value, gradient = jax.value_and_grad(loss)(offset)
  return value, jax.tree.map(lambda t, g: t + weight * g, total, gradient)


@functools.partial(jax.jit, static_argnames="first")
def _ascend(offset: PyTree, gradient: PyTree, rho: Array, first: bool) -> PyTree:
  """One step of length rho along the gradient, then back to the ball where it left it."""
  step = jax.tree.map(lambda g: _ratio(rho, _norm(gradient)) * g, gradient)
  if first:
    return step
  moved = jax.tree.map(jnp.add, offset, step)
  scale = jnp.minimum(jnp.ones_like(rho), _ratio(rho, _norm(moved)))
  return jax.tree.map(lambda o: scale * o, moved)


def _norm(tree: PyTree) -> Array:
  return jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)))


def _ratio(a: Array, b: Array) -> Array:
  return jnp.where(b > 0, a / jnp.where(b > 0, b, jnp.ones_like(b)), jnp.zeros_like(b))
