"""Run folders in the states in which faults leave them."""

import shutil

import jax
import numpy as np

from jaxkd import checkpoint, metrics, train
from tests import tiny

LAST = 16  # steps of the tiny run; it saves at 4, 8, 12 and 16, and keeps two and the best


def rows(folder):
  found = metrics.read(folder / "metrics.jsonl")
  return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in found]


def state(folder, step=LAST):
  return checkpoint.read_step(folder / "checkpoints" / str(step)).state


def assert_equal(folder, reference):
  jax.tree.map(np.testing.assert_array_equal, state(folder), state(reference))
  assert rows(folder) == rows(reference)


def steps(folder):
  """Names in the checkpoint folder."""
  return sorted(p.name for p in (folder / "checkpoints").iterdir())


def unfinished(reference, folder):
  """A copy of the finished run as if it had been killed after its last save."""
  shutil.copytree(reference, folder)
  for name in ("DONE", "best.json"):
    (folder / name).unlink()
  return folder


def before_step(monkeypatch, at, act):
  """Lets `act()` happen just before step `at` (0-based) of the next run is dispatched."""
  advance = train._Loop._advance

  def wrapped(loop, count):
    if loop.end == at:
      act()
    return advance(loop, count)

  monkeypatch.setattr(train._Loop, "_advance", wrapped)


def rerun(monkeypatch, folder):
  """The same command again, undisturbed."""
  monkeypatch.undo()
  return train.train(tiny.config(), folder)


def largest_file(folder):
  return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_byte(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
