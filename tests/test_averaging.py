"""SWA: the mean, its statistics of BatchNorm, and a run on digits that is evaluated with it."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import averaging, checkpoint, evaluation, feed, step, train
from jaxkd.experiment import build
from tests import tiny

pytestmark = pytest.mark.usefixtures("optax_promotion")

# A constant and large learning rate: the last parameters jump about what their mean is.
NOISY = {
  "data": {"name": "digits", "validation": 0.2, "subset": 0.5},
  "model": {"name": "resnet18_cifar", "widths": (8, 16), "depths": (1, 1)},
  "optim": {
    "name": "sgd",
    "lr": 0.3,
    "schedule": "constant",
    "warmup_epochs": 0.0,
    "weight_decay": 0.0,
  },
  "train": {"epochs": 9.0, "batch_size": 48, "swa_start_epoch": 5.0},
  "eval": {"every_epochs": 3.0},
  "checkpoint": {"every_epochs": 1.0, "keep": 10},
}


@functools.cache
def config():
  made = tiny.config()
  base = {k: v for k, v in made.to_dict().items() if k not in NOISY}
  from jaxkd import config as configs

  return configs.complete({**base, **NOISY})


@pytest.fixture(scope="module")
def finished(tmp_path_factory, optax_promotion):
  folder = tmp_path_factory.mktemp("swa") / "run"
  return folder, train.train(config(), folder)


def at_epoch(folder, epoch):
  return checkpoint.load(folder / "checkpoints" / str(round(epoch * build(config()).steps_per_epoch)))


def score(variables):
  experiment = build(config())
  split = experiment.dataset.validation
  options = {"mean": experiment.dataset.mean, "std": experiment.dataset.std, "batch_size": 256}
  logits = evaluation.head_logits(experiment.model, variables, split, **options)["cls"]
  return evaluation.accuracy(logits, split.labels), evaluation.log_likelihood_loss(logits, split.labels)


def test_parameters_are_the_mean_of_the_epochs_ends(finished):
  folder, _ = finished
  points = [at_epoch(folder, e).state["params"]["model"] for e in (5, 6, 7, 8, 9)]
  mean = jax.tree.map(lambda *leaves: np.mean(np.float64(leaves), axis=0), *points)
  average = at_epoch(folder, 9).state["average"]["params"]
  jax.tree.map(lambda a, m: np.testing.assert_allclose(a, m, rtol=1e-5, atol=1e-6), average, mean)
  last = jax.tree.leaves(jax.tree.map(lambda a, p: np.abs(a - p).max(), average, points[-1]))
  assert max(last) > 1e-2
  first = at_epoch(folder, 5).state
  jax.tree.map(np.testing.assert_array_equal, first["average"]["params"], first["params"]["model"])


def test_the_average_is_what_is_evaluated(finished):
  folder, _ = finished
  last = at_epoch(folder, 9)
  assert last.meta["inference"] == "swa"
  assert last.variables is last.state["average"]
  accuracy, loss = score(last.variables)
  row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
  assert row["validation/accuracy_cls"] == accuracy
  assert row["validation/loss"] == pytest.approx(loss, rel=1e-6)
  before = at_epoch(folder, 4)
  assert before.meta["inference"] == "params", "no average yet"
  jax.tree.map(np.testing.assert_array_equal, before.variables["params"], before.state["params"]["model"])


def test_the_average_is_no_worse_than_the_last_iterate(finished):
  last = at_epoch(finished[0], 9)
  params = {"params": last.state["params"]["model"], **last.state["stats"]}
  (averaged, averaged_loss), (iterate, iterate_loss) = score(last.variables), score(params)
  assert averaged >= iterate
  assert averaged_loss < iterate_loss
  assert averaged > 0.8


def test_stale_statistics_are_refreshed(finished):
  """Statistics that do not belong to the mean ruin it; refreshing forgets them, bit by bit."""
  experiment = build(config())
  average = at_epoch(finished[0], 9).state["average"]
  stale = {**average, "batch_stats": jax.tree.map(lambda s: np.float32(5 * s + 3), average["batch_stats"])}
  assert score(stale)[0] < score(average)[0] - 0.2
  refreshed = refresh(experiment, stale)
  jax.tree.map(np.testing.assert_array_equal, refreshed, average)


def refresh(experiment, average):
  frozen, statistics = step.frozen_inputs(experiment), step.make_batch_statistics(experiment)
  batches = ((t, feed.make_batch(experiment, t)) for t in range(experiment.steps_per_epoch))
  placed = jax.tree.map(jnp.asarray, average)
  return jax.device_get(averaging.refresh(placed, statistics, frozen, batches))


def test_refreshed_statistics_are_means_over_the_training_batches(finished):
  """Those of the first BatchNorm by numpy in float64: after a 3x3 convolution of the normalised images."""
  experiment = build(config())
  found = at_epoch(finished[0], 9).state["average"]
  kernel = np.float64(found["params"]["conv1"]["kernel"])
  dataset, means, variances = experiment.dataset, [], []
  for t in range(experiment.steps_per_epoch):
    images = np.float64(dataset.train.images[feed.make_batch(experiment, t)["index"]]) / 255
    x = (images - np.float64(dataset.mean)) / np.float64(dataset.std)
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    side = images.shape[1]
    windows = [x[:, i : i + side, j : j + side] @ kernel[i, j] for i in range(3) for j in range(3)]
    y = sum(windows)
    means.append(y.mean((0, 1, 2)))
    variances.append(y.var((0, 1, 2)))
  stats = found["batch_stats"]["bn1"]
  np.testing.assert_allclose(stats["mean"], np.mean(means, axis=0), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(stats["var"], np.mean(variances, axis=0), rtol=1e-4)
  running = at_epoch(finished[0], 9).state["stats"]["batch_stats"]["bn1"]
  assert np.abs(running["mean"] - np.mean(means, axis=0)).max() > 1e-3


class Killed(BaseException):
  pass


def test_a_killed_run_has_the_same_average(finished, tmp_path, monkeypatch):
  reference, result = finished
  original, folder = train._Loop._advance, tmp_path / "run"
  at = result.step * 7 // 9 + 2

  def dying(loop, count):
    if loop.end == at:
      raise Killed
    return original(loop, count)

  monkeypatch.setattr(train._Loop, "_advance", dying)
  with pytest.raises(Killed):
    train.train(config(), folder)
  monkeypatch.undo()
  train.train(config(), folder)
  states = [at_epoch(f, 9).state for f in (reference, folder)]
  jax.tree.map(np.testing.assert_array_equal, *states)


def test_the_mean_absorbs_one_after_the_other():
  experiment = build(config())
  absorb = averaging.make_absorb(experiment)
  values = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
  average = {"params": {"w": jnp.full(3, jnp.nan)}, "batch_stats": {"m": jnp.ones(2)}}
  for i, value in enumerate(values):
    average = absorb(average, {"w": jnp.asarray(value)}, jnp.int32(i))
    np.testing.assert_allclose(
      average["params"]["w"], np.float64(values[: i + 1]).mean(0), rtol=2e-6, atol=1e-7
    )
  np.testing.assert_array_equal(average["batch_stats"]["m"], 1)
  with pytest.raises(ValueError, match="no batches"):
    averaging.refresh(average, None, None, ())
