"""Start-up and whole runs: --help, imports, compiling with empty and filled cache, images/s of `train`.

  python -m bench.whole_runs [--steps 30]

The images/s of `train` are those between two lengths of run of DeiT-Tiny on 32 px images, without what is done once;
reading, logging, checkpoints and waiting for them are in. Beside it the compiled step alone, by `bench.step`'s measure.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import interleave, step
from jaxkd import config as configs
from jaxkd import train

BATCH = 128
STATEMENTS = {
  "--help": ["-m", "jaxkd.main", "--help"],
  "import jaxkd.models": ["-c", "import jaxkd.models"],
  "import jaxkd.train": ["-c", "import jaxkd.train"],
  "import torch": ["-c", "import torch"],
}


def child(arguments: list[str], **environment: str) -> float:
  """Seconds of a Python process from start to end. Raises CalledProcessError when it fails."""
  start = time.perf_counter()
  subprocess.run(
    [sys.executable, *arguments], env={**os.environ, **environment}, capture_output=True, check=True
  )
  return time.perf_counter() - start


def start_up(rounds: int = 5) -> dict[str, float]:
  """Median seconds of each statement, in turns."""
  times = {
    name: [child(arguments)] for name, arguments in STATEMENTS.items()
  }  # the first one fills the disk cache
  for _ in range(rounds):
    for name, arguments in STATEMENTS.items():
      times[name].append(child(arguments))
  return {name: statistics.median(t[1:]) for name, t in times.items()}


def config(steps: int) -> Any:
  return configs.complete(
    {
      "data": {
        "name": "synthetic",
        "image_size": 32,
        "channels": 3,
        "examples": 2560,
        "augment": {"crop": 4, "flip": True},
      },
      "model": {"name": "deit_tiny"},
      "terms": {"ce": {"kind": "cross_entropy"}},
      "train": {"steps": steps, "batch_size": BATCH},
      "eval": {"metric": "none"},
    }
  )


def compiling() -> dict[str, float]:
  """Seconds of the first call of DeiT-Tiny's step in a new process, with empty and filled compilation cache."""
  code = "from bench import step, whole_runs; print(step.measure(whole_runs.config(9), 1)['first_call_s'])"
  with tempfile.TemporaryDirectory() as cache:
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
    outputs = [
      subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
      ).stdout
      for _ in range(2)
    ]
  return dict(zip(("empty cache", "filled cache"), (float(out.split()[-1]) for out in outputs), strict=True))


def whole(steps: int) -> dict[str, float]:
  """images/s of `train` between runs of `steps` // 3 and `steps` steps, and of the bare step."""
  seconds = {}
  for length in (steps // 3, steps // 3, steps):  # the first one fills the compilation cache
    with tempfile.TemporaryDirectory() as folder:
      start = time.perf_counter()
      train.train(config(length), Path(folder) / "run")
      seconds[length] = time.perf_counter() - start
  run = BATCH * (steps - steps // 3) / (seconds[steps] - seconds[steps // 3])
  bare = step.measure(config(9), max(steps // 3, 5))["images_per_s"]
  return {"train images/s": run, "step alone images/s": float(bare), "share": run / float(bare)}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--steps", type=int, default=30)
  args = parser.parse_args()
  found = {"start-up s": start_up(), "first call s": compiling(), "whole run": whole(args.steps)}
  print(json.dumps({**found, **interleave.about()}, indent=2))


if __name__ == "__main__":
  main()
