"""Time the loop itself takes per step, on the host: everything but the step's computation and saving a checkpoint.

The loop runs as in training, with a step that returns at once. Reported is what a step without a row costs, what a
row adds (guard, metrics.jsonl, TensorBoard, train.log, progress), what a save adds with its digests, and the share of
a step of 100 ms at one row each 10 steps and one save each 500.

python -m bench.overhead --config=configs/quickstart.py --steps=2000
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
import time
from pathlib import Path

import jax

from jaxkd import config as configs
from jaxkd import files, run_folder, train
from jaxkd.experiment import build

STEP_S, ROW_EVERY, SAVE_EVERY = 0.1, 10, 500


class InstantLoop(train._Loop):
  """The training loop, whose steps compute nothing: each returns the metrics of the first, which did."""

  computed: dict | None = None

  def _advance(self, count: int) -> dict:
    if self.computed is None:
      self.computed = super()._advance(count)
      jax.block_until_ready(self.computed)
      self.began = time.perf_counter()
    else:
      self.feed.batches(self.end, count)
      self.end += count
    self.ended = time.perf_counter()
    return self.computed


def seconds(config, *, steps: int, rows: int, saves: int = 0) -> float:
  """Of `steps` - 1 steps with a row every `rows` and a save every `saves` steps (0: none but the last)."""
  config = config.copy_and_resolve_references()
  with config.unlocked(), tempfile.TemporaryDirectory() as folder:
    config.train.steps, config.log.every_steps, config.log.shares_every = steps, rows, 0
    config.eval.metric = "none"
    config.checkpoint.every_epochs = (saves or steps) / build(config).steps_per_epoch
    loop = InstantLoop(build(config), Path(folder), "overhead")
    with run_folder.FileLog(Path(folder) / "train.log"):
      loop.run()
    return loop.ended - loop.began  # without the last save, for which the run waits


def measure(config, steps: int) -> dict[str, float | str]:
  """Milliseconds per step, row and save, by differences of runs."""
  bare = seconds(config, steps=steps, rows=steps)
  with_rows = seconds(config, steps=steps, rows=1)
  few = steps // 10
  with_saves = seconds(config, steps=few, rows=few, saves=few // 5)
  without_saves = seconds(config, steps=few, rows=few)
  step = bare / (steps - 1)
  row = max(with_rows - bare, 0.0) / (steps - 1)
  save = max(with_saves - without_saves, 0.0) / 4
  per_step = step + row / ROW_EVERY + save / SAVE_EVERY
  return {
    "step_ms": 1e3 * step,
    "row_ms": 1e3 * row,
    "save_ms": 1e3 * save,
    "share_of_100_ms_step": per_step / STEP_S,
    "share_with_a_row_each_step": (step + row + save / SAVE_EVERY) / STEP_S,
    "hardware": run_folder.hardware(),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--config", default="configs/quickstart.py")
  parser.add_argument("--steps", type=int, default=2000)
  parser.add_argument("--out", default="results/bench_overhead.json")
  args = parser.parse_args()
  found = {
    "command": f"python -m bench.overhead --config={args.config} --steps={args.steps}",
    "date": datetime.date.today().isoformat(),
    **measure(configs.load(args.config), args.steps),
  }
  files.write_json(Path(args.out), found)
  print(json.dumps(found, indent=2))


if __name__ == "__main__":
  main()
