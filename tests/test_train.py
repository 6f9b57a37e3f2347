"""The real loop on a tiny config: learning, resume, refusals, the guard, one device against eight."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxkd import checkpoint, feed, metrics, step, train
from jaxkd.errors import IntegrityFailure, NumericFailure, UserError
from jaxkd.experiment import build
from tests import tiny

pytestmark = pytest.mark.usefixtures("optax_promotion")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def finished(tmp_path_factory, optax_promotion):
  folder = tmp_path_factory.mktemp("run") / "plain"
  return folder, train.train(tiny.config(), folder)


def rows_without_time(folder):
  rows = metrics.read(folder / "metrics.jsonl")
  return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def arrays(folder, at):
  return checkpoint.load(folder / "checkpoints" / str(at)).state


def assert_equal_runs(a, b, at):
  jax.tree.map(np.testing.assert_array_equal, arrays(a, at), arrays(b, at))
  assert rows_without_time(a) == rows_without_time(b)


def test_a_run_learns_and_leaves_its_folder(finished):
  folder, result = finished
  rows = metrics.read(folder / "metrics.jsonl")
  assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
  assert rows[-1]["validation/accuracy_cls"] > 0.5  # chance is 0.25
  assert [r["step"] for r in rows] == [4, 8, 12, 16]
  for name in (
    "config.json",
    "command.txt",
    "env.json",
    "train.log",
    "metrics.jsonl",
    "tb",
    "best.json",
    "DONE",
  ):
    assert (folder / name).exists(), name
  best = json.loads((folder / "best.json").read_text())
  scores = {r["step"]: r["validation/accuracy_cls"] for r in rows if "validation/accuracy_cls" in r}
  assert best["metrics"]["validation/accuracy_cls"] == max(scores.values())
  assert result.step == 16


def test_the_same_command_again_returns_at_once(finished):
  folder, _ = finished
  before = (folder / "metrics.jsonl").stat().st_mtime_ns
  assert train.train(tiny.config(), folder).step == 16
  assert (folder / "metrics.jsonl").stat().st_mtime_ns == before


def test_a_used_folder_with_another_config_is_refused(finished):  # fault 34
  folder, _ = finished
  with pytest.raises(UserError, match=r"optim.lr \(0.003 there, 0.1 now\)"):
    train.train(tiny.config(optim={"lr": 0.1}), folder)
  assert train.train(tiny.config(log={"every_steps": 1}), folder).step == 16


class Killed(BaseException):
  pass


@pytest.mark.parametrize("at", [5, 8, 11])
def test_a_killed_run_resumes_bitwise(finished, tmp_path, monkeypatch, at):
  reference, _ = finished
  original = feed.make_batch

  def dying(experiment, step, banks):
    if step == at:
      raise Killed
    return original(experiment, step, banks)

  monkeypatch.setattr(feed, "make_batch", dying)
  with pytest.raises(Killed):
    train.train(tiny.config(), tmp_path / "run")
  monkeypatch.undo()
  train.train(tiny.config(), tmp_path / "run")
  assert_equal_runs(reference, tmp_path / "run", 16)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])  # faults 28, 29
def test_a_signal_saves_and_the_same_command_continues(tmp_path, number, code):
  config = tmp_path / "tiny_config.py"
  config.write_text(
    "from tests import tiny\n\ndef get_config(arg=None):\n  return tiny.config(train={'epochs': 400.0})\n"
  )
  command = [sys.executable, "-m", "jaxkd.main", f"--config={config}", f"--workdir={tmp_path / 'run'}"]
  env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAXKD_CACHE": str(tmp_path / "cache")}
  process = subprocess.Popen(
    command, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path
  )
  rows = tmp_path / "run" / "metrics.jsonl"
  deadline = time.monotonic() + 120
  while (
    not (rows.exists() and rows.stat().st_size) and process.poll() is None and time.monotonic() < deadline
  ):
    time.sleep(0.05)
  process.send_signal(number)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == code, errors
  assert "run the same command again" in errors
  stopped = json.loads((tmp_path / "run" / "PREEMPTED").read_text())["step"]
  assert 0 < stopped < 1600
  assert checkpoint.load(tmp_path / "run").step == stopped


def test_a_flipped_byte_is_found_and_the_previous_step_used(finished, tmp_path):  # fault 31
  reference, _ = finished
  folder = tmp_path / "run"
  subprocess.run(["cp", "-r", str(reference), str(folder)], check=True)
  for name in ("DONE", "best.json"):
    (folder / name).unlink()
  newest = max(
    (folder / "checkpoints" / "16").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0
  )
  damaged = bytearray(newest.read_bytes())
  damaged[len(damaged) // 2] ^= 1
  newest.write_bytes(damaged)
  with pytest.raises(IntegrityFailure):
    checkpoint.load(folder / "checkpoints" / "16")
  train.train(tiny.config(), folder)
  assert (folder / "checkpoints" / "16.corrupt").is_dir()
  assert_equal_runs(reference, folder, 16)


def test_steps_that_do_not_exist_are_refused_with_those_that_do(finished):  # fault 33
  with pytest.raises(UserError, match="no checkpoint at") as e:
    checkpoint.load(finished[0] / "checkpoints" / "99")
  assert "16" in e.value.hint


@pytest.fixture
def nan_loss(monkeypatch):
  """Programs traced in this test have a loss that is not a number; none of them outlives it."""
  step.make_train_step.cache_clear()
  monkeypatch.setattr("jaxkd.losses.cross_entropy", lambda logits, labels, **_: logits.sum() * float("nan"))
  yield
  step.make_train_step.cache_clear()


def test_a_non_finite_loss_stops_the_run_and_names_the_term(tmp_path, nan_loss):  # fault 37
  with pytest.raises(NumericFailure, match="terms ce"):
    train.train(tiny.config(), tmp_path / "run")
  failed = json.loads((tmp_path / "run" / "FAILED.json").read_text())
  assert failed["row"]["skipped"] > 0
  assert not (tmp_path / "run" / "DONE").exists()


def test_a_skipped_update_leaves_the_parameters_alone(nan_loss):
  experiment = build(tiny.config())
  state = step.init_state(experiment)
  before = jax.tree.map(np.array, state.params)
  state, _ = step.make_train_step(experiment)(
    state, {"index": np.arange(16, dtype=np.int32)}, step.frozen_inputs(experiment)
  )
  jax.tree.map(np.testing.assert_array_equal, before, state.params)
  assert (int(state.step), int(state.skipped)) == (1, 1)


def test_a_collapsed_dino_stops_with_exit_3(tmp_path):
  config = tiny.dino_config()
  with config.unlocked():
    config.optim.lr, config.optim.clip, config.optim.weight_decay = 1e-12, 0.0, 0.0
    config.terms.dino.teacher_temperature = config.terms.dino.teacher_temperature_start = 100.0
  with pytest.raises(NumericFailure, match="collapsed") as e:
    train.train(config, tmp_path / "run")
  assert e.value.code == 3
