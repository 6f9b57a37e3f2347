"""Early stopping and plateaus: the counts, and the loop that follows them, killed and resumed too."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import checkpoint, metrics, stopping, train
from jaxkd.errors import UserError
from jaxkd.experiment import build, coupled_terms
from tests import tiny

pytestmark = pytest.mark.usefixtures("optax_promotion")

# So slow that validation accuracy never changes after the first time.
STILL = {
  "optim": {
    "lr": 1e-9,
    "warmup_epochs": 0.0,
    "schedule": "plateau",
    "plateau_factor": 0.5,
    "plateau_patience": 0,
    "final_lr": 0.2,
  },
  "train": {"epochs": 20.0, "batch_size": 16, "patience": 4},
  "eval": {"every_epochs": 1.0, "metric": "accuracy"},
}


def bads(values):
  watch, found = stopping.fresh(), []
  for value in values:
    watch = stopping.observe(watch, value)
    found.append(int(watch["bad"]))
  assert (watch["best"].dtype, watch["bad"].dtype) == (jnp.float32, jnp.int32)
  return found


def test_validations_without_improvement():
  assert bads([0.5, 0.4, 0.5, 0.6, float("nan"), 0.6]) == [0, 1, 2, 0, 1, 2]
  assert bads([float("nan"), 0.1]) == [1, 0]
  assert bads([0.1, 0.2, 0.3]) == [0, 0, 0]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, optax_promotion):
  folder = tmp_path_factory.mktemp("stopped") / "run"
  return folder, train.train(tiny.config(**STILL), folder)


def rows_of(folder):
  rows = metrics.read(folder / "metrics.jsonl")
  return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def test_a_run_without_improvement_stops(stopped):
  folder, result = stopped
  assert result.step == 4 * 5, "one validation that improves on nothing, four that do not"
  done = json.loads((folder / "DONE").read_text())
  assert done["step"] == result.step
  assert "stopped early: 4 validations without a better accuracy" in done["reason"]
  assert checkpoint.load(folder / "checkpoints").step == result.step
  assert [row["step"] for row in rows_of(folder)] == [4, 8, 12, 16, 20]
  assert train.train(tiny.config(**STILL), folder).step == result.step


def test_the_rate_falls_on_the_plateau_and_not_below_its_floor(stopped):
  rates = [row["lr"] / 1e-9 for row in rows_of(stopped[0])]
  np.testing.assert_allclose(rates, [1, 1, 0.5, 0.25, 0.2], rtol=1e-6)


class Killed(BaseException):
  pass


@pytest.mark.parametrize("at", [9, 20])
def test_a_killed_run_stops_at_the_same_step(stopped, tmp_path, monkeypatch, at):
  """Killed in the middle, and between the last save and DONE."""
  reference, _ = stopped
  folder = tmp_path / "run"

  def dying(loop, *args):
    raise Killed

  original = train._Loop._advance

  def advance(loop, count):
    return dying(loop) if loop.end == at else original(loop, count)

  monkeypatch.setattr(train._Loop, "_advance", advance)
  monkeypatch.setattr(train._Loop, "_finish", dying)
  with pytest.raises(Killed):
    train.train(tiny.config(**STILL), folder)
  monkeypatch.undo()
  assert not (folder / "DONE").exists()
  assert train.train(tiny.config(**STILL), folder).step == 20
  assert rows_of(folder) == rows_of(reference)
  states = [checkpoint.load(f / "checkpoints" / "20").state for f in (folder, reference)]
  jax.tree.map(np.testing.assert_array_equal, *states)
  assert states[0]["watch"]["bad"] == 4


@pytest.mark.parametrize(
  "change", [{"optim": {"schedule": "plateau"}}, {"train": {"epochs": 4.0, "batch_size": 16, "patience": 2}}]
)
def test_nothing_to_follow(change):
  with pytest.raises(UserError, match=r"follows a metric on validation, and eval.metric is none"):
    build(tiny.config(eval={"metric": "none"}, **change))


def test_terms_that_see_a_part_of_an_update_are_named(caplog):
  term = {"teacher": "t", "student_taps": ("block01/tokens",)}
  terms = {
    "ce": tiny.CE,
    "cka": {"kind": "cka", **term},
    "samples": {"kind": "cka", "over": "samples", **term},
    "rkd": {"kind": "rkd", **term},
    "classes": {"kind": "dist", "gamma": 0.0, "teacher": "t"},
    "dist": {"kind": "dist", "teacher": "t"},
  }
  config = tiny.config(teachers={"t": {"weights": "somewhere"}}, terms=terms, optim={"accumulate": 4})
  assert sorted(coupled_terms(config)) == ["dist", "rkd", "samples"]
  train._Loop._announce(SimpleNamespace(config=config))
  assert len(caplog.messages) == 3
  assert (
    "optim.accumulate=4: term 'rkd' sees distances and angles between samples of 16 images" in caplog.text
  )
  caplog.clear()
  with config.unlocked():
    config.optim.accumulate = 1
  train._Loop._announce(SimpleNamespace(config=config))
  assert not caplog.messages
