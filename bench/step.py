"""Times the training step of a config: compile time, then the median step with its spread, and images/s.

python -m bench.step --config=configs/quickstart.py --steps=100
"""

from __future__ import annotations

import argparse
import json
import time

import jax
import numpy as np

from jaxkd import config as configs
from jaxkd import run_folder
from jaxkd.experiment import build
from jaxkd.feed import make_batch, place_batch
from jaxkd.step import frozen_inputs, init_state, make_train_step, place


def measure(config, steps: int) -> dict[str, float | str]:
  """Seconds of the first call (compilation included) and quantiles of `steps` further ones, each waited for."""
  experiment = build(config)
  state, frozen = place(experiment, init_state(experiment)), frozen_inputs(experiment)
  train_step, size = make_train_step(experiment), config.train.batch_size
  times = []
  for step in range(steps + 1):
    start = time.perf_counter()
    batch = place_batch(experiment, make_batch(experiment, step))
    state, metrics = train_step(state, batch, frozen)
    jax.block_until_ready((state, metrics))
    times.append(time.perf_counter() - start)
  low, median, high = np.quantile(times[1:], [0.1, 0.5, 0.9])
  return {
    "first_call_s": times[0],
    "step_ms_p10": 1e3 * low,
    "step_ms_median": 1e3 * median,
    "step_ms_p90": 1e3 * high,
    "images_per_s": size / median,
    "hardware": run_folder.hardware(),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--config", default="configs/quickstart.py")
  parser.add_argument("--steps", type=int, default=100)
  args = parser.parse_args()
  print(json.dumps({"config": args.config, **measure(configs.load(args.config), args.steps)}, indent=2))


if __name__ == "__main__":
  main()
