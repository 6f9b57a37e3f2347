"""A learning rate that falls when validation stops improving: the factor lives in the optimiser's state.

So it is saved, restored and averaged over nothing with the rest of the state. Only `observe` changes it, once per
validation; the updates in between are multiplied by it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class PlateauState(NamedTuple):
  """Four scalars."""

  scale: jax.Array  # float32: the learning rate is the schedule's times this
  best: jax.Array  # float32: -inf before the first validation
  bad: jax.Array  # int32: validations since the best one or the last cut
  cooldown: jax.Array  # int32: validations that do not count any more


def scale_by_plateau() -> optax.GradientTransformation:
  """Multiplies updates by the scale in its state, which is 1 until `observe` lowers it."""

  def init(_):
    zero = jnp.zeros((), jnp.int32)
    return PlateauState(jnp.ones((), jnp.float32), jnp.full((), -jnp.inf, jnp.float32), zero, zero)

  def update(updates, state, _=None):
    return jax.tree.map(lambda u: u * state.scale.astype(u.dtype), updates), state

  return optax.GradientTransformation(init, update)


def observe(
  opt_state,
  value,
  *,
  factor: float = 0.1,
  patience: int = 10,
  threshold: float = 1e-4,
  cooldown: int = 0,
  min_scale: float = 0.0,
):
  """`opt_state` after a validation whose metric (larger is better) was `value`; to be called after each.

  The scale is multiplied by `factor`, down to `min_scale`, once `patience` + 1 validations have not exceeded the
  best value by the share `threshold`; the next `cooldown` ones do not count. torch's ReduceLROnPlateau with
  mode="max"; a value that is not a number is no improvement.
  """

  def step(state: PlateauState) -> PlateauState:
    new, state = jnp.asarray(value, jnp.float32), jax.device_get(state)
    better = new > state.best * (1 + threshold)
    bad = jnp.where(better | (state.cooldown > 0), 0, state.bad + 1)
    waiting = jnp.maximum(state.cooldown - 1, 0)
    cut = bad > patience
    return PlateauState(
      scale=jnp.where(cut, jnp.maximum(state.scale * factor, min_scale), state.scale),
      best=jnp.where(better, new, state.best),
      bad=jnp.where(cut, 0, bad),
      cooldown=jnp.where(cut, cooldown, waiting),
    )

  return _map(step, opt_state)


def plateau_scale(opt_state) -> jax.Array:
  """The factor on the learning rate: a float32 scalar, 1 where nothing scales by plateau."""
  states = [s for s in jax.tree.leaves(opt_state, is_leaf=_is_state) if _is_state(s)]
  return states[0].scale if states else jnp.ones((), jnp.float32)


def _map(function, opt_state):
  return jax.tree.map(lambda s: function(s) if _is_state(s) else s, opt_state, is_leaf=_is_state)


def _is_state(node) -> bool:
  return isinstance(node, PlateauState)
