"""Weights of loss terms over the steps of a run, as optax schedules (step -> float32 scalar)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax

SHAPES = ("constant", "linear", "cosine")


def weight_schedule(
  shape: str,
  *,
  start: float,
  end: float,
  begin_step: int,
  warmup_steps: int,
  steps: int,
  before: float = 0.0,
) -> optax.Schedule:
  """A staged term weight: `before` until `begin_step`, a linear rise to `start`, then a move to `end`.

  The rise takes `warmup_steps`, is `before` at `begin_step` and `start` after them (0 steps: `start` at once). The
  move goes from there to step `steps`, where it is `end` and holds: `constant` stays at `start` and ignores
  `end`, `linear` goes straight, `cosine` along half a wave. A run that is over by the end of the rise has no
  steps to move in and stays at `start`. Joints are exact. Steps may be Python or traced integers.

  Labels beside a teacher that warms up (DeiT from a CNN) have `before=1` and the teacher's `begin_step`.

  Raises:
    ValueError: the shape is unknown, a weight is not finite, or a number of steps is negative.
  """
  _check(shape, start=start, end=end, begin_step=begin_step, warmup_steps=warmup_steps, steps=steps)
  if not math.isfinite(before):
    raise ValueError(f"schedule weights must be finite, got before {before}")
  risen = begin_step + warmup_steps
  move = _move(shape, start=start, end=end, begin=risen, steps=steps)

  def schedule(step):
    step = jnp.asarray(step)
    rise = before + (start - before) * ((step - begin_step).astype(jnp.float32) / max(warmup_steps, 1))
    return jnp.where(step < begin_step, before, jnp.where(step < risen, rise, move(step)))

  return schedule


def _move(shape: str, *, start: float, end: float, begin: int, steps: int) -> optax.Schedule:
  """`start` up to step `begin`, `end` from step `steps`, and `shape` between."""
  if shape == "constant" or steps <= begin:
    return lambda step: jnp.full(jnp.shape(step), start, jnp.float32)

  def move(step: jax.Array) -> jax.Array:
    done = jnp.clip((step - begin).astype(jnp.float32) / (steps - begin), 0.0, 1.0)
    if shape == "cosine":
      done = jnp.square(jnp.sin(done * (math.pi / 2)))  # (1 - cos) / 2 without its cancellation near 0
    # Rounding must not keep the last joint from being exact.
    return jnp.where(step >= steps, end, start + (end - start) * done)

  return move


def _check(shape: str, *, start: float, end: float, **counts: int) -> None:
  if shape not in SHAPES:
    raise ValueError(f"unknown schedule {shape!r}; known: {', '.join(SHAPES)}")
  if not (math.isfinite(start) and math.isfinite(end)):
    raise ValueError(f"schedule weights must be finite, got start {start} and end {end}")
  for name, count in counts.items():
    if count < 0:
      raise ValueError(f"schedule {name} is {count}; it counts steps and must be 0 or more")
