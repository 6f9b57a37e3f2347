"""Averages of parameters over training: the moving one of every update (EMA) and that of the last epochs (SWA).

SWA (Izmailov et al., 2018, arXiv:1803.05407) takes the mean of the parameters at regular points from an epoch on.
Statistics of BatchNorm belong to the parameters they were collected with, so the mean gets its own, collected over
the training images once more. When a point is due, and how many there were, follows from the step alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd import sharding

if TYPE_CHECKING:
  from jaxkd.experiment import Experiment
  from jaxkd.step import Batch, TrainState


def move_ema(experiment: Experiment, state: TrainState, params):
  """The moving average after this step; it stands still in steps that only gather gradients for an update."""
  every = experiment.config.optim.accumulate
  share = 1 - _ema_decay(experiment, state.step)
  if every > 1:
    share = jnp.where((state.step - state.skipped + 1) % every == 0, share, 0.0)
  return optax.incremental_update(params, state.ema, share)


def _ema_decay(experiment: Experiment, step):
  """`train.ema`, or a cosine from it to `train.ema_end` over the run (DINO's momentum)."""
  start, end = experiment.config.train.ema, experiment.config.train.ema_end or experiment.config.train.ema
  return end - (end - start) * (jnp.cos(jnp.pi * step / experiment.steps) + 1) / 2


def points(experiment: Experiment, done: int) -> int:
  """How many parameters are in the SWA after `done` steps: one at `swa_start_epoch`, more every `swa_every_epochs`."""
  if not experiment.uses_swa or done < (start := first_point(experiment)):
    return 0
  return (done - start) // experiment.every(experiment.config.train.swa_every_epochs) + 1


def first_point(experiment: Experiment) -> int:
  """Steps after which the SWA begins."""
  return experiment.every(experiment.config.train.swa_start_epoch)


def is_point(experiment: Experiment, done: int) -> bool:
  """True where the parameters after `done` steps are one of the SWA."""
  return points(experiment, done) > points(experiment, done - 1)


@functools.lru_cache(maxsize=16)
def make_absorb(experiment: Experiment) -> Callable:
  """`absorb(average, params, count) -> average` of the model's parameters, one more beside `count` older ones."""

  def absorb(average: dict[str, Any], params, count: jax.Array):
    def mean(a, p):
      share = (1 / (count + 1)).astype(a.dtype)
      return jnp.where(count == 0, p, a + (p - a) * share)

    new = {**average, "params": jax.tree.map(mean, average["params"], params)}
    return jax.lax.with_sharding_constraint(new, sharding.state_shardings(new, experiment.mesh))

  return jax.jit(absorb, donate_argnums=0)


def refresh(
  average: dict[str, Any], statistics: Callable, frozen, batches: Iterable[tuple[int, Batch]]
) -> dict[str, Any]:
  """`average` with statistics of BatchNorm that are its own: means of those of `batches`, (step, batch) pairs.

  What `average` had as statistics before does not count. `statistics` is that of `step.make_batch_statistics`.
  As in torch's `update_bn` the variance is the mean of the batches' variances.
  """
  total, count = None, 0
  for step, batch in batches:
    found = statistics(average["params"], batch, frozen, np.int32(step))
    total = found if total is None else jax.tree.map(jnp.add, total, found)
    count += 1
  if total is None:
    raise ValueError("refresh: no batches")
  means = {name: jax.tree.map(lambda s: s / count, tree) for name, tree in total.items()}
  return {**average, **jax.device_put(means, jax.tree.map(lambda old: old.sharding, _statistics(average)))}


def _statistics(average: dict[str, Any]) -> dict[str, Any]:
  return {name: tree for name, tree in average.items() if name != "params"}
