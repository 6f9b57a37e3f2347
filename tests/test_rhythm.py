"""When things are due, and that a dispatch of several steps never passes over one of them."""

import itertools
import random
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict

from jaxkd.rhythm import Rhythm


def rhythm(
  *, steps=40, per_epoch=7, size=3, log=0, shares=2, evals=2.0, saves=1.0, metric="accuracy", swa=0.0
):
  config = ConfigDict(
    {
      "train": {"steps_per_call": size, "swa_start_epoch": swa, "swa_every_epochs": 1.0},
      "log": {"every_steps": log, "shares_every": shares},
      "eval": {"every_epochs": evals, "metric": metric},
      "checkpoint": {"every_epochs": saves},
    }
  )
  experiment = SimpleNamespace(
    config=config,
    steps=steps,
    steps_per_epoch=per_epoch,
    every=lambda epochs: max(round(epochs * per_epoch), 1),
    uses_swa=swa > 0,
  )
  return Rhythm(experiment)


def ends(plan):
  """Steps done after each dispatch."""
  done = [0]
  while done[-1] < plan.total:
    done.append(done[-1] + plan.steps_in_call(done[-1]))
  return done


def test_by_hand():
  """Epochs of 7 steps: two calls of 3 and one step; shares of every second row need step 13 as an end too."""
  plan = rhythm(steps=14)
  assert ends(plan) == [0, 3, 6, 7, 10, 13, 14]
  assert [plan.measures_shares(d) for d in (7, 13, 14)] == [False, False, True]
  assert ends(rhythm(steps=14, size=4)) == [0, 4, 5, 6, 7, 11, 12, 13, 14]
  assert ends(rhythm(steps=9, per_epoch=3, shares=0)) == [0, 3, 6, 9]
  assert ends(rhythm(steps=5, size=1)) == list(range(6))


@pytest.mark.parametrize("seed", range(50))
def test_nothing_due_is_passed_over(seed):
  r = random.Random(seed)
  plan = rhythm(
    steps=r.randint(1, 60),
    per_epoch=r.randint(1, 20),
    size=r.randint(1, 9),
    log=r.choice([0, 1, 4, 5]),
    shares=r.choice([0, 1, 3]),
    evals=r.choice([0.3, 1.0, 2.5]),
    saves=r.choice([0.4, 1.0, 5.0]),
    metric=r.choice(["accuracy", "none"]),
    swa=r.choice([0.0, 0.5, 2.0]),
  )
  done = ends(plan)
  assert done[-1] == plan.total
  sizes = {b - a for a, b in itertools.pairwise(done)}
  assert sizes <= {1, plan.config.train.steps_per_call}, "two programs"
  for d in range(1, plan.total + 1):
    if plan.logs(d) or plan.saves(d) or plan.evaluates(d) or plan.averages(d):
      assert d in done
    if plan.measures_shares(d):
      assert {d - 1, d} <= set(done)


def test_points_of_the_average():
  plan = rhythm(steps=40, swa=2.0)
  assert [d for d in range(1, 41) if plan.averages(d)] == [14, 21, 28, 35]
  assert not any(rhythm(steps=40).averages(d) for d in range(1, 41))
