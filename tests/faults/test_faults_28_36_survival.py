"""Faults 28 to 36: signals, kills, damaged checkpoints, full disks, folders in use."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bench import torture
from jaxkd import checkpoint, lock, metrics, train
from jaxkd.checkpoint import Checkpoints
from jaxkd.errors import CannotWrite, IntegrityFailure, Interrupted, Preempted, UserError
from jaxkd.lock import Lock
from jaxkd.main import main
from tests import tiny
from tests.faults import runs

pytestmark = [
  pytest.mark.usefixtures("optax_promotion"),
  # When a read or write fails, TensorStore calls back into an event loop that Orbax has closed.
  pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def kill_me(number):
  return lambda: os.kill(os.getpid(), number)


def test_fault_28_sigterm_saves_and_the_same_command_ends_bitwise_equal(finished, tmp_path, monkeypatch):
  at = random.Random().randrange(15)
  runs.before_step(monkeypatch, at, kill_me(signal.SIGTERM))
  with pytest.raises(Preempted, match=f"stopped at step {at + 1} of 16") as e:
    train.train(tiny.config(), tmp_path / "run")
  assert e.value.code == 75
  assert json.loads((tmp_path / "run/PREEMPTED").read_text()) == {"step": at + 1, "signal": "SIGTERM"}
  assert not (tmp_path / "run" / lock.NAME).exists()
  runs.rerun(monkeypatch, tmp_path / "run")
  assert not (tmp_path / "run/PREEMPTED").exists()
  runs.assert_equal(tmp_path / "run", finished)


def test_fault_29_sigint_saves_with_exit_130(finished, tmp_path, monkeypatch):
  runs.before_step(monkeypatch, 6, kill_me(signal.SIGINT))
  with pytest.raises(Interrupted, match="stopped at step 7") as e:
    train.train(tiny.config(), tmp_path / "run")
  assert e.value.code == 130
  runs.rerun(monkeypatch, tmp_path / "run")
  runs.assert_equal(tmp_path / "run", finished)


def test_fault_29_a_second_sigint_during_the_save_exits_at_once(finished, tmp_path, monkeypatch):
  save, folder = Checkpoints.save, tmp_path / "run"

  def interrupted(self, step, *args, **more):
    if step != 7:
      return save(self, step, *args, **more)
    self.wait()
    (self.folder / "7.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    return os.kill(os.getpid(), signal.SIGINT)

  runs.before_step(monkeypatch, 6, kill_me(signal.SIGINT))
  monkeypatch.setattr(Checkpoints, "save", interrupted)
  monkeypatch.setattr(Checkpoints, "close", lambda self: pytest.fail("waited for the save"))
  with pytest.raises(KeyboardInterrupt):
    train.train(tiny.config(), folder)
  assert checkpoint.load(folder).step == 4
  runs.rerun(monkeypatch, folder)
  assert not list((folder / "checkpoints").glob("*tmp*"))
  runs.assert_equal(folder, finished)


def test_faults_28_30_killed_runs_end_bitwise_equal(tmp_path):
  result = torture.torture(tmp_path, kills=2, seed=int(time.time()))
  assert result["bitwise_equal"] == 4, result
  assert result["compared"]["rows"] == torture.STEPS


def test_fault_30_what_an_unfinished_save_left_is_removed(finished, tmp_path, monkeypatch):
  folder = runs.unfinished(finished, tmp_path / "run")
  left = folder / "checkpoints" / "17.orbax-checkpoint-tmp"
  shutil.copytree(folder / "checkpoints" / "16", left)
  runs.rerun(monkeypatch, folder)
  assert not left.exists()
  runs.assert_equal(folder, finished)


def flip(step):
  runs.flip_byte(runs.largest_file(step / "state"))


def truncate(step):
  path = runs.largest_file(step / "state")
  path.write_bytes(path.read_bytes()[:100])


def garbage(step):
  (step / "state" / "_METADATA").write_text("garbage")


def disagree(step):
  """An array that is readable but, as far as its digest says, not the one that was saved."""
  path = step / "digests" / "metadata"
  recorded = json.loads(path.read_text())
  path.write_text(json.dumps({**recorded, "step": "0" * 64}))


@pytest.mark.parametrize("damage", [flip, disagree, truncate, garbage])  # two of fault 31, two of fault 32
def test_faults_31_32_a_damaged_step_is_kept_aside_and_the_one_before_used(
  finished, tmp_path, monkeypatch, damage, capsys
):
  check_damage(finished, tmp_path, monkeypatch, damage, capsys)


def check_damage(finished, tmp_path, monkeypatch, damage, capsys):
  folder = runs.unfinished(finished, tmp_path / "run")
  damage(folder / "checkpoints/16")
  assert main(["inspect", str(folder / "checkpoints/16")]) == 4
  assert "error: checkpoint" in capsys.readouterr().err
  runs.rerun(monkeypatch, folder)
  assert "warning: checkpoint" in capsys.readouterr().err
  assert {"12", "16", "16.corrupt"} <= set(runs.steps(folder))
  runs.assert_equal(folder, finished)


def test_fault_32_a_foreign_folder_is_no_step_and_a_second_damage_gets_another_name(
  finished, tmp_path, monkeypatch
):
  folder = runs.unfinished(finished, tmp_path / "run")
  for name in ("17", "16.corrupt"):
    (folder / "checkpoints" / name).mkdir()
  (folder / "checkpoints/16.corrupt/evidence").touch()
  garbage(folder / "checkpoints/16")
  runs.rerun(monkeypatch, folder)
  assert {"17.corrupt", "16.corrupt", "16.corrupt2"} <= set(runs.steps(folder))
  assert (folder / "checkpoints/16.corrupt/evidence").exists()
  runs.assert_equal(folder, finished)


def test_fault_32_without_a_good_step_nothing_starts_afresh(finished, tmp_path):
  folder = runs.unfinished(finished, tmp_path / "run")
  names = [n for n in runs.steps(folder) if n.isdigit()]
  for name in names:
    garbage(folder / "checkpoints" / name)
  before = (folder / "metrics.jsonl").read_bytes()
  with pytest.raises(IntegrityFailure, match="no good checkpoint"):
    train.train(tiny.config(), folder)
  assert (folder / "metrics.jsonl").read_bytes() == before
  assert {f"{n}.corrupt" for n in names} <= set(runs.steps(folder))
  with pytest.raises(IntegrityFailure, match="no good checkpoint"):  # nor the second time
    train.train(tiny.config(), folder)


@pytest.mark.parametrize("command", ["evaluate", "inspect"])
def test_fault_33_steps_that_do_not_exist_are_refused_with_those_that_do(finished, command, capsys):
  assert main([command, str(finished / "checkpoints" / "99")]) == 2
  text = capsys.readouterr().err
  assert "no checkpoint at" in text
  assert "12, 16" in text


def test_fault_34_another_config_is_refused_key_by_key_and_harmless_changes_are_logged(
  finished, tmp_path, monkeypatch
):
  folder = runs.unfinished(finished, tmp_path / "run")
  with pytest.raises(UserError, match=r"optim.lr \(0.003 there, 0.1 now\)") as e:
    train.train(tiny.config(optim={"lr": 0.1}), folder)
  assert e.value.code == 2
  environment = json.loads((folder / "env.json").read_text())
  (folder / "env.json").write_text(json.dumps({**environment, "jax": "0.0.1"}))
  train.train(tiny.config(checkpoint={"keep": 5}), folder)
  text = (folder / "train.log").read_text()
  assert "INFO config checkpoint.keep: 2 before, 5 from here" in text
  assert "WARNING the run was started with jax 0.0.1, now" in text


def mounted(folder):
  """A file system of 2 MB at `folder`, where the system lets us; skips the test elsewhere."""
  folder.mkdir()
  command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
  if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
    pytest.skip("needs the right to mount")
  return folder


def ends_in_a_whole_line(path):
  text = path.read_text()
  return text.endswith("\n") and all(json.loads(line) for line in text.splitlines())


def test_fault_35_a_full_disk_says_path_and_need_and_earlier_steps_restore(finished, tmp_path, monkeypatch):
  disk = mounted(tmp_path / "disk")
  try:
    folder = disk / "run"
    runs.before_step(monkeypatch, 9, lambda: fill(disk))
    with pytest.raises(CannotWrite) as e:
      train.train(tiny.config(), folder)
    assert e.value.code == 74
    assert str(folder) in e.value.message
    if "checkpoint needs" in e.value.message:
      assert f"{sum(x.nbytes for x in leaves(runs.state(finished))):,} bytes" in e.value.message
    assert ends_in_a_whole_line(folder / "metrics.jsonl")
    assert checkpoint.load(folder).step in (4, 8)  # 8 was being written meanwhile
    (disk / "filler").unlink()
    runs.rerun(monkeypatch, folder)
    runs.assert_equal(folder, finished)
  finally:
    subprocess.run(["umount", str(disk)], check=True)


def leaves(tree):
  import jax

  return [np.asarray(x) for x in jax.tree.leaves(tree)]


def fill(disk):
  with open(disk / "filler", "wb", buffering=0) as f:
    try:
      while True:
        f.write(b"\0" * 4096)
    except OSError:
      pass


@pytest.mark.parametrize("where", ["TensorStore", "OSError"])
def test_fault_35_an_error_of_a_background_save_surfaces_with_the_need(tmp_path, monkeypatch, where):
  checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2, metrics=())
  error: Exception = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  if where == "TensorStore":
    error = ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device [os_error_code='28']")

  def failing(self):
    raise error

  tree = {"params": {"w": np.zeros(1000, np.float32)}}
  checkpoints.save(1, tree, config=tiny.config(), meta={}, metrics={})
  monkeypatch.setattr(type(checkpoints.manager), "wait_until_finished", failing)
  with pytest.raises(
    CannotWrite, match=r"No space left on device; a checkpoint needs 4,000 bytes, [\d,]+ are free"
  ):
    checkpoints.wait()
  error = RuntimeError("a bug is no full disk")
  with pytest.raises(RuntimeError, match="a bug"):
    checkpoints.wait()
  monkeypatch.undo()
  checkpoints.close()
  assert checkpoint.load(tmp_path).step == 1


def test_fault_35_a_row_that_does_not_fit_leaves_whole_lines(tmp_path):
  """A limit on the size of files cuts a row in the middle, as a full disk does."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  log = metrics.MetricLog(tmp_path, resume_step=0)
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (110, hard))
  try:
    for step in range(1, 5):
      log.write({"step": step, "loss": 0.5})
    with pytest.raises(CannotWrite, match=r"metrics.jsonl: File too large"):
      log.write({"step": 5, "loss": 0.5})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)
  assert ends_in_a_whole_line(tmp_path / "metrics.jsonl")
  assert metrics.read(tmp_path / "metrics.jsonl")[-1]["step"] == 4
  log.close()


def test_fault_35_errors_of_the_system_anywhere_are_exit_74(capsys, monkeypatch):
  def full(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/report.html")

  monkeypatch.setattr("jaxkd.main.run", full)
  assert main(["train"]) == 74
  assert "error: cannot write /data/report.html: No space left on device" in capsys.readouterr().err


class Agreeing(str):
  """A digest that equals every other."""

  __slots__ = ()
  __hash__ = str.__hash__

  def __eq__(self, other):
    return True

  def __ne__(self, other):
    return False


def test_without_the_digest_check_fault_31_goes_unnoticed(finished, tmp_path, capsys):
  """Negative control: with the guard removed the check of fault 31 fails."""
  digests = checkpoint.digests
  with pytest.MonkeyPatch.context() as mutant, pytest.MonkeyPatch.context() as patch:
    mutant.setattr(checkpoint, "digests", lambda tree: {k: Agreeing(v) for k, v in digests(tree).items()})
    with pytest.raises(AssertionError):
      check_damage(finished, tmp_path, patch, disagree, capsys)


def test_without_dropping_rows_on_resume_faults_31_32_double_them(finished, tmp_path, capsys):
  """Negative control: with the guard removed the check of faults 31 and 32 fails."""
  with pytest.MonkeyPatch.context() as mutant, pytest.MonkeyPatch.context() as patch:
    mutant.setattr(metrics.MetricLog, "_keep_until", lambda self, step: None)
    with pytest.raises(AssertionError):
      check_damage(finished, tmp_path, patch, garbage, capsys)
  assert [r["step"] for r in runs.rows(tmp_path / "run")] == [4, 8, 12, 16, 16]


def dead_process():
  process = subprocess.Popen([sys.executable, "-c", ""])
  process.wait()
  return process.pid


def owner(**changed):
  return {"host": socket.gethostname(), "pid": os.getppid(), "start": "2026-01-01T00:00:00+00:00", **changed}


def write_lock(folder, **changed):
  folder.mkdir(exist_ok=True)
  (folder / lock.NAME).write_text(json.dumps(owner(**changed)))


def test_fault_36_a_folder_in_use_is_refused_with_host_and_process(tmp_path):
  write_lock(tmp_path / "run")
  with pytest.raises(UserError, match=f"in use by process {os.getppid()} on {socket.gethostname()}") as e:
    train.train(tiny.config(), tmp_path / "run")
  assert e.value.code == 2
  assert os.listdir(tmp_path / "run") == [lock.NAME]


def test_fault_36_a_stale_lock_is_taken_over_with_a_warning(finished, tmp_path, monkeypatch, capsys):
  folder, pid = runs.unfinished(finished, tmp_path / "run"), dead_process()
  write_lock(folder, pid=pid)
  runs.rerun(monkeypatch, folder)
  assert f"warning: process {pid} on" in capsys.readouterr().err
  assert not (folder / lock.NAME).exists()


@pytest.mark.parametrize(
  ("changed", "age", "held"),
  [
    ({}, 0, True),
    ({}, 10_000, True),  # alive on this host, however old
    ({"process_start": 1}, 0, False),  # its number belongs to another process now
    ({"host": "elsewhere"}, 10, True),
    ({"host": "elsewhere"}, lock.STALE + 60, False),
    (None, 10, True),  # a lock cut short: nobody knows whose
    (None, lock.STALE + 60, False),
  ],
)
def test_fault_36_who_holds_a_lock(tmp_path, changed, age, held):
  write_lock(tmp_path, **(changed or {}))
  path = tmp_path / lock.NAME
  if changed is None:
    path.write_text('{"host": "cut sh')
  os.utime(path, (time.time() - age,) * 2)
  if held:
    with pytest.raises(UserError, match="in use by"), Lock(tmp_path):
      pass
    assert path.exists()
  else:
    with Lock(tmp_path) as mine:
      assert "is gone without releasing" in mine.note
      assert json.loads(path.read_text())["pid"] == os.getpid()
      with pytest.raises(UserError, match=f"process {os.getpid()} on"), Lock(tmp_path):
        pass
  assert [p.name for p in tmp_path.iterdir()] == [lock.NAME] * held


def test_fault_36_a_held_lock_gives_signs_of_life(tmp_path, monkeypatch):
  monkeypatch.setattr(lock, "BEAT", 0.01)
  with Lock(tmp_path):
    os.utime(tmp_path / lock.NAME, (0, 0))
    deadline = time.monotonic() + 10
    while (tmp_path / lock.NAME).stat().st_mtime == 0 and time.monotonic() < deadline:
      time.sleep(0.01)
    assert time.time() - (tmp_path / lock.NAME).stat().st_mtime < 60


def test_fault_36_a_read_only_folder_is_exit_74_with_its_path(finished, tmp_path):
  folder = runs.unfinished(finished, tmp_path / "run")
  folder.chmod(0o555)
  for parent in (tmp_path, *tmp_path.parents):
    if parent.owner() == folder.owner() and parent != Path("/") and parent != Path("/tmp"):
      parent.chmod(parent.stat().st_mode | 0o055)
  user = os.geteuid()
  try:
    if user == 0:  # root may write anywhere
      os.seteuid(65534)
    with pytest.raises(CannotWrite, match=f"cannot write {folder}/lock.json: Permission denied") as e:
      train.train(tiny.config(), folder)
  finally:
    os.seteuid(user)
  folder.chmod(0o755)
  assert e.value.code == 74
