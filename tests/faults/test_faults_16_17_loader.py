"""A data worker that is killed, or raises: the run ends soon, says which, and keeps what it saved."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxkd import checkpoint, data, feed
from jaxkd.data import streaming
from jaxkd.data.source import LoaderFailure
from jaxkd.data.stored import StoredImages
from jaxkd.errors import UserError
from jaxkd.experiment import build
from tests import tiny

pytest.importorskip("grain")
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXKD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
  rng = np.random.default_rng(0)
  for c in "abcd":
    (tmp_path / "images" / c).mkdir(parents=True)
    for i in range(30):
      image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
      image.save(tmp_path / "images" / c / f"{i:02}.png")
  return tmp_path / "images"


def run_config(root, workers, **more):
  folder = {"name": "folder", "root": str(root), "channels": 3, "placement": "streamed", "workers": workers}
  return tiny.config(data=folder, **more)


def damage(path):
  """Cuts the content; size and time stay, so that the survey of the folder still holds."""
  before = path.stat()
  path.write_bytes(path.read_bytes()[:60].ljust(before.st_size, b"\0"))
  os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CONFIG = """
from tests.faults.test_faults_16_17_loader import run_config

def get_config(arg=None):
  return run_config({root!r}, 2, train={{"epochs": 1e5}}, log={{"every_steps": 1}}, checkpoint={{"every_epochs": 0.2}})
"""


def children(pid, word):
  """Processes started by `pid` whose command line holds `word`."""
  found = []
  for entry in Path("/proc").glob("[0-9]*"):
    try:
      parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
      if parent == pid and word in (entry / "cmdline").read_text():
        found.append(int(entry.name))
    except OSError:
      continue  # it ended meanwhile
  return found


def is_running(pid):
  return Path(f"/proc/{pid}").exists() and ") Z " not in Path(f"/proc/{pid}/stat").read_text()


@pytest.fixture
def running(root, tmp_path):
  """A run with two workers that has saved a checkpoint, and its folder."""
  config, folder = tmp_path / "config.py", tmp_path / "run"
  config.write_text(CONFIG.format(root=str(root)))
  command = [sys.executable, "-m", "jaxkd.main", f"--config={config}", f"--workdir={folder}"]
  env = {**os.environ, "PYTHONPATH": str(ROOT)}
  process = subprocess.Popen(
    command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
  )
  deadline = time.monotonic() + 200
  while not run_is_saved(folder) and process.poll() is None and time.monotonic() < deadline:
    time.sleep(0.1)
  yield process, folder
  process.kill()
  process.communicate()


def run_is_saved(folder):
  return any(p.name.isdigit() for p in (folder / "checkpoints").glob("*"))


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_a_killed_worker_ends_the_run_and_leaves_its_checkpoint(running):  # fault 16
  process, folder = running
  workers = children(process.pid, "spawn_main")
  assert len(workers) == 2, process.stderr.read() if process.poll() is not None else workers
  began = time.monotonic()
  os.kill(workers[0], signal.SIGKILL)
  _, errors = process.communicate(timeout=30)
  assert time.monotonic() - began < 30
  assert process.returncode == 1, errors
  assert f"error: data worker process {workers[0]} was killed by SIGKILL\nhint: " in errors
  assert "Traceback" not in errors
  assert not is_running(workers[1]), "the other worker must not outlive the run"
  assert checkpoint.load(folder).step > 0


READING = """
import time
from jaxkd.data.streaming import Stream

stream = Stream(range(10**9), workers=2)
print(next(stream), next(stream), flush=True)
time.sleep(300)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_workers_do_not_outlive_a_killed_run(tmp_path):
  env = {**os.environ, "PYTHONPATH": str(ROOT)}
  process = subprocess.Popen(
    [sys.executable, "-c", READING], env=env, stdout=subprocess.PIPE, text=True, cwd=tmp_path
  )
  assert process.stdout.readline() == "0 1\n"
  workers = children(process.pid, "spawn_main")
  assert len(workers) == 2
  process.kill()
  process.communicate()
  deadline = time.monotonic() + 10
  while any(map(is_running, workers)) and time.monotonic() < deadline:
    time.sleep(0.1)
  assert not any(map(is_running, workers))


def stopped(root, workers):
  """The error at which a feed stops, one training image having been damaged since the folder was surveyed."""
  experiment = build(run_config(root, 0))
  images: StoredImages = experiment.dataset.train.images
  damage(Path(images.paths[17]))
  again = build(run_config(root, workers))
  assert again.dataset.digest == experiment.dataset.digest
  with pytest.raises(UserError) as e, feed.Feed(again) as batches:
    for _ in batches:
      pass
  return e.value, images.paths[17]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_became_undecodable_is_named(root, workers):  # fault 17
  error, path = stopped(root, workers)
  assert error.code == 2
  assert error.message.startswith(f"image 17: cannot decode {path}: ")
  assert "data.on_error=skip" in error.hint


def test_an_image_that_went_away_is_named(root):
  experiment = build(run_config(root, 0))
  path = Path(experiment.dataset.train.images.paths[3])
  path.unlink()
  with pytest.raises(UserError, match=rf"image 3: cannot read {path}: No such file") as e:
    experiment.dataset.train.images[:]
  assert e.value.code == 2


def test_the_text_of_an_unforeseen_error_is_kept(root, monkeypatch):  # fault 17
  def failing(path, **_):
    raise ZeroDivisionError("boom")

  experiment = build(run_config(root, 0))
  train = experiment.dataset.train
  first = data.batch_indices(0, examples=len(train), batch_size=16, seed=0)[0]
  path = train.images.paths[first]
  monkeypatch.setattr("jaxkd.data.folder.read_image", failing)
  with pytest.raises(LoaderFailure) as e, feed.Feed(experiment) as batches:
    batches.batch(0)
  assert (e.value.message, e.value.code) == (f"image {first} ({path}): ZeroDivisionError: boom", 1)


class Failing:
  """Raises at its fourth item."""

  def __len__(self):
    return 10

  def __getitem__(self, number):
    if number == 3:
      raise KeyError("no such thing")
    return number


@pytest.mark.parametrize("workers", [0, 1])
def test_items_before_the_error_still_arrive(workers):
  with streaming.Stream(Failing(), workers=workers) as stream:
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(LoaderFailure, match="KeyError: 'no such thing'"):
      next(stream)


def test_a_pickled_error_keeps_its_hint():
  """As it comes out of a worker process."""
  import pickle

  error = pickle.loads(pickle.dumps(LoaderFailure("a", "b")))
  assert (error.message, error.hint, error.code) == ("a", "b", 1)
