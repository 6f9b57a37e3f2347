"""Learning rates by number of updates: what optax lacks. Each starts at count 0, after any warm-up."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax


def with_warmup(after: optax.Schedule, *, start: float, updates: int) -> optax.Schedule:
  """A linear rise to `start`, reached at the last of `updates`, then `after`, whose first value `start` is.

  The first update has `start / updates`: an update with learning rate 0 would be wasted. torch's
  `LinearLR(start_factor=1 / updates, total_iters=updates - 1)` is the same.
  """
  if not updates:
    return after
  rise = optax.linear_schedule(start / updates, start, updates - 1)
  return optax.join_schedules([rise, after], [updates])


def multi_step(lr: float, *, milestones: Sequence[int], gamma: float) -> optax.Schedule:
  """`lr`, times `gamma` from each of the `milestones` (counts) on. torch's MultiStepLR."""
  values = [lr * gamma**passed for passed in range(len(milestones) + 1)]

  def schedule(count):
    passed = (jnp.asarray(count) >= jnp.asarray(milestones, jnp.int32)).sum()
    return jnp.asarray(values, jnp.float32)[passed]

  return schedule


def exponential(lr: float, *, gamma: float, period: float) -> optax.Schedule:
  """`lr * gamma ** (count / period)`: smooth, so that it is torch's ExponentialLR at every whole period."""
  rate = math.log(gamma) / period
  return lambda count: lr * jnp.exp(rate * _float(count))


def one_cycle(lr: float, *, updates: int, rise: float, initial: float, final: float) -> optax.Schedule:
  """Half a cosine from `initial * lr` up to `lr`, another down to `final * lr` at the last of `updates`.

  torch's OneCycleLR(pct_start=rise, anneal_strategy="cos") without its cycle of the momentum. Smith & Topin
  (2018), arXiv:1708.07120.
  """
  top = rise * updates - 1

  def schedule(count):
    t = _float(count)
    up = _half_cosine(initial * lr, lr, t / max(top, 1.0))
    down = _half_cosine(lr, final * lr, jnp.clip((t - top) / (updates - 1 - top), 0.0, 1.0))
    return jnp.where(t <= top, up, down)

  return schedule


def cyclic(lr: float, *, period: float, low: float) -> optax.Schedule:
  """Triangles of `period` counts from `low * lr` up to `lr` and back.

  torch's CyclicLR(mode="triangular"). Smith (2017), arXiv:1506.01186.
  """

  def schedule(count):
    phase = jnp.mod(_float(count), period) / period
    return lr * (low + (1 - low) * (1 - jnp.abs(2 * phase - 1)))

  return schedule


def held(schedule: optax.Schedule, every: int) -> optax.Schedule:
  """`schedule` by updates as a function of steps, of which `every` make one update."""
  return schedule if every == 1 else lambda step: schedule(step // every)


def _half_cosine(start: float, end: float, share: jax.Array) -> jax.Array:
  return end + (start - end) / 2 * (jnp.cos(jnp.pi * share) + 1)


def _float(count) -> jax.Array:
  return jnp.asarray(count).astype(jnp.float32)
