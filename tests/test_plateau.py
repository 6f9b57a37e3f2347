"""The learning rate's factor after validations: by hand, and against an independent count."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd.plateau import observe, plateau_scale, scale_by_plateau


def scales(values, **options):
  """The factor after each value."""
  state, found = scale_by_plateau().init({}), []
  for value in values:
    state = observe(state, value, **options)
    found.append(float(state.scale))
  return np.array(found)


def by_hand(values, *, factor, patience, threshold=1e-4, cooldown=0, min_scale=0.0):
  best, since, rest, scale, found = -np.inf, 0, 0, 1.0, []
  for value in values:
    since += 1
    if value > best + threshold * abs(best) or best == -np.inf:
      best, since = value, 0
    if rest:
      rest, since = rest - 1, 0
    if since > patience:
      since, rest, scale = 0, cooldown, max(scale * factor, min_scale)
    found.append(scale)
  return np.array(found)


def test_cut_after_patience():
  np.testing.assert_allclose(
    scales([0.5, 0.6, 0.6, 0.5, 0.6, 0.7], factor=0.5, patience=1), [1, 1, 1, 0.5, 0.5, 0.5]
  )


@pytest.mark.parametrize("cooldown", [0, 3])
def test_long_run(cooldown):
  values = np.minimum(np.arange(60) / 40, 1) + np.random.default_rng(0).normal(size=60) / 10 + 1
  options = {"factor": 0.3, "patience": 2, "cooldown": cooldown, "min_scale": 0.01}
  found = scales(values, **options)
  np.testing.assert_allclose(found, by_hand(values, **options), rtol=1e-6)
  assert len(set(found)) > 3
  assert np.abs(found - scales(values, **{**options, "patience": 3})).max() > 0.1


def test_threshold_is_relative_and_nan_is_no_improvement():
  assert scales([100.0, 100.5], patience=0, threshold=0.01)[-1] == pytest.approx(0.1)
  assert scales([100.0, 100.5], patience=0, threshold=0.001)[-1] == 1
  assert scales([0.5, np.nan], patience=0)[-1] == pytest.approx(0.1)


def test_updates_carry_the_factor_inside_a_chain():
  tx = optax.chain(optax.scale(-1.0), scale_by_plateau())
  grads = {"a": jnp.ones(2), "b": jnp.ones((), jnp.bfloat16)}
  state = tx.init(grads)
  seen = jax.jit(lambda s, value: observe(s, value, factor=0.5, patience=0))
  state = seen(seen(state, 0.5), 0.5)
  assert float(plateau_scale(state)) == 0.5
  updates, _ = tx.update(grads, state)
  np.testing.assert_array_equal(updates["a"], -0.5)
  assert updates["b"].dtype == jnp.bfloat16
  assert float(plateau_scale(optax.adam(1.0).init(grads))) == 1
