"""Real processes on loopback: one run whatever their number, stopped together, killed, resumed."""

import json
import shutil
import signal

import jax
import numpy as np
import pytest

from jaxkd import checkpoint, metrics

from .launch import scheduler_port, train

STEPS = 32


def rows(folder):
  found = metrics.read(folder / "metrics.jsonl")
  return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in found]


def state(folder, step=STEPS):
  return checkpoint.read_step(folder / "checkpoints" / str(step)).state


def assert_equal(folder, reference):
  jax.tree.map(np.testing.assert_array_equal, state(folder), state(reference))
  assert rows(folder) == rows(reference)


def assert_close(folder, reference, step=STEPS):
  """The same run but for the order in which floats were added."""
  assert [r["step"] for r in rows(folder)] == [r["step"] for r in rows(reference)]
  for a, b in zip(rows(folder), rows(reference), strict=True):
    assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    state(folder, step),
    state(reference, step),
  )


def cut(reference, folder, step):
  """A copy of a finished run as if it had been killed after `step`."""
  shutil.copytree(reference, folder)
  for name in ("DONE", "best.json"):
    (folder / name).unlink()
  for path in (folder / "checkpoints").iterdir():
    if path.name.isdigit() and int(path.name) > step:
      shutil.rmtree(path)
  return folder


def ok(found):
  codes, _, errors, _ = found
  assert not any(codes), errors


@pytest.fixture(scope="module")
def one(tmp_path_factory):
  folder = tmp_path_factory.mktemp("one") / "run"
  ok(train(1, folder))
  return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
  """(run folder, paths written by process 0 and 1, what they printed)."""
  base = tmp_path_factory.mktemp("two")
  own = {i: {"TEST_WRITES": base / f"writes{i}"} for i in range(2)}
  found = train(2, base / "run", own=own)
  ok(found)
  return base / "run", [(base / f"writes{i}").read_text().splitlines() for i in range(2)], found


def test_two_processes_train_as_one(one, two):
  assert_close(two[0], one)
  assert rows(two[0])[-1]["loss"] < rows(two[0])[0]["loss"]
  assert json.loads((two[0] / "env.json").read_text())["processes"] == 2


def test_only_the_first_process_writes_and_prints(two):
  folder, written, (_, printed, errors, _) = two
  inside = [[p for p in paths if str(folder) in p] for paths in written]
  assert any("metrics.jsonl" in p for p in inside[0])
  assert inside[1] == []
  assert "done: step 32" in printed[0]
  assert [line for line in printed[1].splitlines() if not line.startswith("[Gloo]")] == []
  assert "warning" not in errors[1]
  assert len(list((folder / "tb").iterdir())) == 1


def test_a_checkpoint_of_two_goes_on_with_four_then_one(one, two, tmp_path):
  """SIGTERM to one of the four stops all of them after the same step."""
  folder = cut(two[0], tmp_path / "run", 8)
  codes, _, errors, _ = train(4, folder, own={2: {"TEST_SIGNAL": f"{signal.SIGTERM:d}@10"}}, TEST_SLOW=0.1)
  assert codes == [75] * 4, errors
  stopped = json.loads((folder / "PREEMPTED").read_text())
  assert stopped["signal"] == "SIGTERM"
  assert 10 < stopped["step"] < STEPS
  assert all(f"stopped at step {stopped['step']} of {STEPS}; saved" in e for e in errors)
  assert checkpoint.load(folder).step == stopped["step"]
  ok(train(1, folder))
  assert_close(folder, one)


def open_mpi(port, process):
  """What `mpirun -np 2` of Open MPI 4 sets; the job's number makes jax's formula give `port`."""
  job = (port - 61440) * 4096
  return {
    "OMPI_MCA_orte_hnp_uri": f"{job}.0;tcp://127.0.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": 2,
    "OMPI_COMM_WORLD_RANK": process,
    "OMPI_COMM_WORLD_LOCAL_SIZE": 2,
    "OMPI_COMM_WORLD_LOCAL_RANK": process,
  }


def slurm(port, process):
  """What `srun --ntasks=2` sets."""
  return {
    "SLURM_JOB_ID": port - 61440,
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_STEP_NUM_TASKS": 2,
    "SLURM_NTASKS": 2,
    "SLURM_PROCID": process,
    "SLURM_LOCALID": process,
    "SLURM_STEP_TASKS_PER_NODE": "2",
    "SLURM_NODEID": 0,
  }


def test_a_checkpoint_of_one_goes_on_with_two_under_open_mpi(one, tmp_path):
  folder, port = cut(one, tmp_path / "run", 16), scheduler_port()
  own = {i: open_mpi(port, i) for i in range(2)}
  split = "--config.sharding.fsdp=2"  # no part of what is computed; each process has half of the large arrays
  ok(train(2, folder, "plain", split, own=own, flags=False, JAXKD_DISTRIBUTED="auto"))
  assert json.loads((folder / "env.json").read_text())["processes"] == 2
  assert_close(folder, one)


def test_a_killed_process_ends_both_and_the_same_command_continues(two, tmp_path):  # fault 40
  folder = tmp_path / "run"
  codes, _, errors, seconds = train(2, folder, own={1: {"TEST_SIGNAL": f"{signal.SIGKILL:d}@18"}})
  assert codes[1] == -signal.SIGKILL
  assert codes[0] in (134, -signal.SIGABRT), errors[0]
  assert seconds < 60
  assert not (folder / "DONE").exists()
  port = scheduler_port()
  ok(train(2, folder, own={i: slurm(port, i) for i in range(2)}, flags=False))  # detected, not asked for
  assert_equal(folder, two[0])


def test_early_stopping_plateau_and_averages_agree(tmp_path):
  folders = [tmp_path / "one", tmp_path / "two"]
  for count, folder in zip((1, 2), folders, strict=True):
    ok(train(count, folder, "everything"))
  done = [json.loads((f / "DONE").read_text()) for f in folders]
  assert done[0] == done[1]
  assert "stopped early" in done[0]["reason"]
  assert len({r["lr"] for r in rows(folders[0])}) > 1, "the plateau cut the learning rate"
  assert_close(folders[1], folders[0], step=done[0]["step"])
