"""Start-up and whole runs: --help, imports, compiling with empty and filled cache, images/s of `train`.

  python -m bench.whole_runs [--steps 40]

The images/s of `train` are those its log has for DeiT-Tiny on 32 px images, with a row every 10 and a checkpoint every
20 steps; reading, logging and saving are in, what is done once is not. Beside it the compiled step alone, by
`bench.step`'s measure.
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
from jaxkd import metrics, train

BATCH, ROW = 128, 10  # images a step, steps a row
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
      "log": {"every_steps": ROW},
      "checkpoint": {"every_epochs": 1.0},
    }
  )


def compiling() -> dict[str, float]:
  """Seconds of the first call of DeiT-Tiny's step in a new process, with empty and filled compilation cache."""
  code = "from bench import step, whole_runs; print(step.measure(whole_runs.config(10), 1)['first_call_s'])"
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
  """images/s of `train` over `steps` steps after the first row of its log, and of the bare step."""
  with tempfile.TemporaryDirectory() as folder:
    train.train(config(ROW + steps), Path(folder) / "run")
    rows = metrics.read(Path(folder) / "run/metrics.jsonl")[1:]  # the first has the compilation in it
  run = statistics.harmonic_mean(r["time/images_per_s"] for r in rows)
  bare = float(step.measure(config(ROW), max(steps // 3, 5))["images_per_s"])
  return {"train images/s": run, "step alone images/s": bare, "share": run / bare}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--steps", type=int, default=40)
  args = parser.parse_args()
  found = {"start-up s": start_up(), "first call s": compiling(), "whole run": whole(args.steps)}
  print(json.dumps({**found, **interleave.about()}, indent=2))


if __name__ == "__main__":
  main()
