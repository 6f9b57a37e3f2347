"""Kills a training run again and again, reruns it, and compares the end with a run that nobody disturbed.

  python -m bench.torture --kills 20

`--kills` runs get SIGTERM at a random step, as many SIGKILL at a random instant, every second of these while a
checkpoint is being written. Each is then run once more to its end, which must be bitwise that of the undisturbed run:
every array of the last checkpoint (parameters, moving average, optimiser, ...) and metrics.jsonl, `time/*` aside.
The result goes to `--out`; the exit code is 4 if any run ended otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIMIT = 300  # seconds for one run
STEPS = 30


def config():
  """Small, but with state of several kinds: moments, moving average, gradients accumulated over two steps."""
  from jaxkd import config as configs

  made = configs.complete(
    {
      "data": {"name": "synthetic", "examples": 120, "classes": 4, "channels": 1, "image_size": 8},
      "model": {"name": "deit", "patch_size": 4, "width": 16, "depth": 2, "heads": 2, "mlp_ratio": 2.0},
      "terms": {"ce": {"kind": "cross_entropy"}},
      "optim": {"accumulate": 2},
      "train": {"steps": STEPS, "batch_size": 16, "ema": 0.9},
      "eval": {"every_epochs": 1.0},
      "checkpoint": {"every_epochs": 0.8},
      "log": {"every_steps": 1},
    }
  )
  configs.validate(made)
  return made


def run(folder: Path, cache: Path, term_at: int | None) -> None:
  """The body of a child process: trains in `folder`, sends itself SIGTERM before step `term_at`."""
  sys.stdout = sys.stderr = open(folder.with_suffix(".log"), "a")  # noqa: SIM115 - until the process ends
  import jax

  from jaxkd import train
  from jaxkd.main import guarded

  jax.config.update("jax_compilation_cache_dir", str(cache))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
  if term_at is not None:
    train._Loop._advance = _terminating(train._Loop._advance, term_at)
  code = guarded(lambda _: (train.train(config(), folder), 0)[1], [])
  sys.stdout.flush()
  os._exit(code)


def _terminating(advance, at: int):
  """The loop's `_advance`, with SIGTERM arriving just before step `at` is dispatched."""

  def wrapped(loop, count: int):
    if loop.end == at:
      os.kill(os.getpid(), signal.SIGTERM)
    return advance(loop, count)

  return wrapped


class Torture:
  """Runs in children of a server that has imported everything, so that one costs a second or two."""

  def __init__(self, folder: Path):
    self.folder, self.cache = folder, folder / "cache"
    self.context = multiprocessing.get_context("forkserver")
    self.context.set_forkserver_preload(["jaxkd.train"])
    self.finish(self.path("warm"))  # compiles
    start = time.monotonic()
    self.reference = self.finish(self.path("reference"))
    self.seconds = time.monotonic() - start

  def path(self, name: str) -> Path:
    return self.folder / name

  def start(self, folder: Path, term_at: int | None = None):
    process = self.context.Process(target=run, args=(folder, self.cache, term_at))
    process.start()
    return process

  def finish(self, folder: Path) -> tuple[Any, ...]:
    """Runs `folder` to its end; what the end is."""
    process = self.start(folder)
    _join(process, folder, 0)
    return ending(folder)

  def terminated(self, i: int, random_: random.Random) -> dict[str, Any]:
    """One run with SIGTERM at a random step, then run again."""
    folder, at = self.path(f"term{i}"), random_.randrange(STEPS - 1)
    _join(self.start(folder, at), folder, 75)
    return {"step": at, "equal": self.finish(folder) == self.reference}

  def killed(self, i: int, random_: random.Random) -> dict[str, Any]:
    """One run with SIGKILL at a random instant, or shortly after a save has begun; then run again."""
    folder = self.path(f"kill{i}")
    process, start = self.start(folder), time.monotonic()
    if i % 2:
      saves = random_.randrange(1, 7)
      _until(lambda: len(_saves(folder)) >= saves or not process.is_alive())
      time.sleep(random_.uniform(0, 0.03))
    else:
      time.sleep(random_.uniform(0, self.seconds))
    with contextlib.suppress(ProcessLookupError):
      os.kill(process.pid, signal.SIGKILL)
    process.join(LIMIT)
    if process.exitcode != -signal.SIGKILL:  # it had ended before: that was no kill
      shutil.rmtree(folder)
      self.seconds *= 0.8
      return self.killed(i, random_)
    unfinished = bool(list((folder / "checkpoints").glob("*tmp*")))
    after = round(time.monotonic() - start, 3)
    equal = self.finish(folder) == self.reference
    clean = not list((folder / "checkpoints").glob("*tmp*"))
    return {"after_s": after, "during_save": unfinished, "equal": equal and clean}


def _saves(folder: Path) -> set[str]:
  return {p.name.partition(".")[0] for p in (folder / "checkpoints").glob("*")}


def _until(condition: Callable[[], bool]) -> None:
  deadline = time.monotonic() + LIMIT
  while not condition() and time.monotonic() < deadline:
    time.sleep(0.001)


def _join(process, folder: Path, code: int) -> None:
  process.join(LIMIT)
  if process.exitcode != code:
    text = folder.with_suffix(".log").read_text()[-2000:]
    raise RuntimeError(f"{folder.name} ended with {process.exitcode} instead of {code}:\n{text}")


def ending(folder: Path) -> tuple[Any, ...]:
  """All that must be equal: digests of the last checkpoint's arrays, rows without times, the best step."""
  from jaxkd import checkpoint, files, metrics

  last = checkpoint.read_step(folder / "checkpoints" / str(STEPS))
  rows = metrics.read(folder / "metrics.jsonl")
  kept = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]
  return checkpoint.digests(last.state), kept, files.read_json(folder / "best.json")


def torture(folder: Path, *, kills: int, seed: int) -> dict[str, Any]:
  """`kills` runs of each kind in `folder`, and what became of them."""
  harness, random_ = Torture(folder), random.Random(seed)
  terminated = [harness.terminated(i, random_) for i in range(kills)]
  killed = [harness.killed(i, random_) for i in range(kills)]
  digests, rows, _ = harness.reference
  return {
    "kills": {"SIGTERM": len(terminated), "SIGKILL": len(killed)},
    "killed_during_save": sum(k["during_save"] for k in killed),
    "bitwise_equal": sum(k["equal"] for k in terminated + killed),
    "compared": {"arrays": len(digests), "rows": len(rows)},
    "SIGTERM": terminated,
    "SIGKILL": killed,
    "seed": seed,
  }


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--kills", type=int, default=20, help="of each kind")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--out", default="results/torture.json")
  args = parser.parse_args()
  from jaxkd import files, run_folder

  start = time.monotonic()
  with tempfile.TemporaryDirectory() as folder:
    result = torture(Path(folder), kills=args.kills, seed=args.seed)
  about = {
    "date": datetime.date.today().isoformat(),
    "command": f"python -m bench.torture --kills {args.kills} --seed {args.seed}",
    "hardware": run_folder.hardware(),
    "seconds": round(time.monotonic() - start),
  }
  files.write_json(Path(args.out), {**about, **result})
  total = 2 * args.kills
  print(
    f"{result['bitwise_equal']} of {total} bitwise equal, {result['killed_during_save']} killed during a save"
  )
  return 0 if result["bitwise_equal"] == total else 4


if __name__ == "__main__":
  sys.exit(main())
