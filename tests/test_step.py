"""Numbers that a step reports and moves, each against what it did to the parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import feed, step
from jaxkd import parameter_groups as groups
from jaxkd.experiment import build
from tests import tiny

pytestmark = pytest.mark.usefixtures("optax_promotion")

SGD = {"name": "sgd", "momentum": 0.0, "clip": 0.0, "weight_decay": 0.0, "warmup_epochs": 0.0, "lr": 0.1}
FREEZE = ("block00/.*", "patch_embed/.*")


class Run:
  """Steps of an experiment one by one; the parameters of `poisoned` steps are not numbers while they last."""

  def __init__(self, **config):
    self.experiment = build(tiny.config(**config))
    self.frozen = step.frozen_inputs(self.experiment)
    self.state = step.place(self.experiment, step.init_state(self.experiment))
    self.train_step = step.make_train_step(self.experiment)

  def batch(self, t):
    return feed.make_batch(self.experiment, t)

  def advance(self, poisoned=False):
    """(parameters before, after, metrics)."""
    before = jax.device_get(self.state.params)
    if poisoned:
      bad = jax.tree.map(lambda p: p * np.float32("nan"), before)
      self.state = step.place(self.experiment, self.state.replace(params=bad))
    self.state, metrics = self.train_step(self.state, self.batch(int(self.state.step)), self.frozen)
    if poisoned:
      self.state = step.place(self.experiment, self.state.replace(params=before))
    return before, jax.device_get(self.state.params), jax.device_get(metrics)


def norm(tree):
  return np.sqrt(sum((np.float64(leaf) ** 2).sum() for leaf in jax.tree.leaves(tree)))


def distance(a, b):
  return norm(jax.tree.map(lambda x, y: np.float64(x) - y, a, b))


@functools.cache
def plain():
  return Run(optim={**SGD, "freeze": FREEZE}, train={"ema": 0.5, "max_skips": 10})


def gradient(run, params):
  """All gradients at `params` for the next batch, frozen ones included."""
  loss_fn = step.loss_function(run.experiment, run.state, run.batch(int(run.state.step)), run.frozen)
  return jax.device_get(jax.jit(jax.grad(lambda p: sum(loss_fn(p)[0].values())))(params))


def test_the_logged_norm_and_rate_are_those_of_the_update():
  """Without momentum an update is as long as rate times norm: of trained parameters, and after a skipped step too."""
  run = plain()
  grads = gradient(run, run.state.params)
  trained = groups.keep_trained(grads, FREEZE)
  rates = []
  for t in range(5):
    before, after, metrics = run.advance(poisoned=t == 2)
    rates.append(float(metrics["lr"]))
    if t == 2:
      assert distance(before, after) == 0
      assert not np.isfinite(metrics["loss"])
      continue
    length = distance(after, before)
    np.testing.assert_allclose(length, metrics["lr"] * metrics["gradient_norm"], rtol=2e-5)
    if t == 0:
      np.testing.assert_allclose(metrics["gradient_norm"], norm(trained), rtol=1e-5)
      assert norm(grads) > 1.05 * norm(trained)
  schedule = [float(run.experiment.schedule(t)) for t in range(5)]
  np.testing.assert_allclose(rates, [*schedule[:3], *schedule[2:4]], rtol=1e-7)
  assert abs(rates[3] / schedule[3] - 1) > 1e-3, "the schedule by steps is another one"


def test_a_fault_names_its_step_and_terms():
  run = plain()
  at = int(run.state.step)
  run.advance(poisoned=True)
  run.advance()
  fault = jax.device_get(run.state.fault)
  assert fault["step"] == at
  assert fault["terms"].tolist() == [True]
  fresh = step.init_state(run.experiment).fault
  assert (int(fresh["step"]), fresh["terms"].tolist()) == (-1, [False])


def test_several_steps_in_one_call_are_the_same_steps():
  run = plain()
  start = jax.device_get(run.state)
  first = int(start.step)
  batches = [run.batch(t) for t in range(first, first + 3)]
  for _ in batches:
    _, _, metrics = run.advance()
  one_by_one = jax.device_get(run.state)
  stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
  state, last = step.make_train_steps(run.experiment)(step.place(run.experiment, start), stacked, run.frozen)
  close = functools.partial(
    np.testing.assert_allclose, rtol=1e-6, atol=1e-7
  )  # two programs may round differently
  jax.tree.map(close, jax.device_get(state), one_by_one)
  jax.tree.map(close, jax.device_get(last), metrics)
  backwards = jax.tree.map(lambda leaf: leaf[::-1], stacked)
  other, _ = step.make_train_steps(run.experiment)(step.place(run.experiment, start), backwards, run.frozen)
  assert distance(other.params, one_by_one.params) > 1e-6


def test_the_moving_average_moves_with_updates_only():
  """In float64 from the parameters alone; a skipped step delays the update it would have been part of."""
  run = Run(optim={**SGD, "accumulate": 3}, train={"ema": 0.5, "max_skips": 10})
  expected = jax.device_get(run.state.params)
  every_step = expected
  moved = []
  for t in range(9):
    before, after, _ = run.advance(poisoned=t == 4)
    updated = distance(before, after) > 0
    moved.append(updated)
    if updated:
      expected = jax.tree.map(lambda e, p: 0.5 * np.float64(e) + 0.5 * p, expected, after)
    every_step = jax.tree.map(lambda e, p: 0.5 * np.float64(e) + 0.5 * p, every_step, after)
    assert distance(jax.device_get(run.state.ema), expected) < 1e-6 * norm(expected)
  assert moved == [False, False, True, False, False, False, True, False, False]
  assert distance(every_step, expected) > 1e-4 * norm(expected)


def test_sam_takes_the_gradient_at_the_perturbed_parameters():
  rho = 0.3
  run = Run(optim={**SGD, "sam_rho": rho, "freeze": FREEZE})
  start = run.state.params
  first = gradient(run, start)
  trained = groups.keep_trained(first, FREEZE)
  scale = rho / norm(trained)
  moved = jax.tree.map(
    lambda p, g: np.asarray(p) if g is None else np.float32(np.asarray(p) + scale * np.float64(g)),
    jax.device_get(start),
    trained,
    is_leaf=lambda leaf: leaf is None,
  )
  second = groups.keep_trained(gradient(run, jax.tree.map(jnp.asarray, moved)), FREEZE)
  before, after, metrics = run.advance()
  update = groups.keep_trained(jax.tree.map(lambda a, b: np.float64(a) - b, after, before), FREEZE)
  expected = jax.tree.map(lambda g: -float(metrics["lr"]) * np.float64(g), second)
  assert distance(update, expected) < 1e-5 * norm(expected)
  np.testing.assert_allclose(metrics["gradient_norm"], norm(second), rtol=1e-5)
  plain_update = jax.tree.map(lambda g: -float(metrics["lr"]) * np.float64(g), trained)
  assert distance(update, plain_update) > 1e-2 * norm(expected)
  frozen = jax.tree.map(
    lambda a, b: np.array_equal(a, b), after["model"]["block00"], before["model"]["block00"]
  )
  assert all(jax.tree.leaves(frozen))


def test_what_is_kept_of_a_tree():
  tree = {"model": {"a": {"kernel": jnp.ones(2)}, "b": {"kernel": jnp.ones(3)}}, "heads": {"h": jnp.ones(4)}}
  assert groups.keep_trained(tree, ()) is tree
  kept = groups.keep_trained(tree, ("a/.*",))
  assert [leaf.size for leaf in jax.tree.leaves(kept)] == [4, 3]
  assert float(optax.tree.norm(kept)) == pytest.approx(7**0.5)
