"""How a training step's time and memory grow with batch, width, tokens and replicas: measured, fitted, drawn.

  python -m bench.growth [--seconds 4] [--out results/bench_growth.json]

A ViT of four blocks. Along each axis the other sizes stay; all its sizes take turns in rounds. Bytes are what the
compiled step needs. The exponent is the slope of the logarithms between the larger sizes (the upper half), where what
does not grow counts least. The plot lies beside the JSON file.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench import interleave
from jaxkd import config as configs
from jaxkd import memory, step
from jaxkd.experiment import build
from jaxkd.feed import make_batch, place_batch

PATCH = 4
BASE = {"batch": 32, "width": 64, "tokens": 16, "replicas": 1}
AXES = {
  "batch": (8, 16, 32, 64, 128, 256),
  "width": (32, 64, 128, 256, 512),
  "tokens": (16, 36, 64, 144, 256),  # patches, of square images
  "replicas": (1, 2, 4, 8),
}
# What counting says of large sizes, in seconds and bytes: rows times kernels, kernels, maps of tokens by tokens.
COUNTED = {"batch": (1, 1), "width": (2, 2), "tokens": (2, 2), "replicas": (1, 1)}


def config(sizes: dict[str, int]) -> Any:
  model = {
    "name": "deit",
    "patch_size": PATCH,
    "depth": 4,
    "heads": 4,
    "mlp_ratio": 4.0,
    "width": sizes["width"],
  }
  side = round(sizes["tokens"] ** 0.5) * PATCH
  return configs.complete(
    {
      "data": {"name": "synthetic", "image_size": side, "channels": 1, "augment": {"crop": 1}},
      "model": model,
      "terms": {"ce": {"kind": "cross_entropy"}},
      "train": {"steps": 10_000, "batch_size": sizes["batch"], "replicas": tuple(range(sizes["replicas"]))},
      "eval": {"metric": "none"},
    }
  )


class Step:
  """A compiled step with its state; a call takes one and waits."""

  def __init__(self, sizes: dict[str, int]):
    self.experiment = build(config(sizes))
    self.frozen = step.frozen_inputs(self.experiment)
    self.state = step.place(self.experiment, step.init_state(self.experiment))
    self.batch = place_batch(self.experiment, make_batch(self.experiment, 0))
    self.run = step.fresh_train_step(self.experiment).lower(self.state, self.batch, self.frozen).compile()
    self.bytes = memory.compiled_bytes(self.run)

  def __call__(self) -> None:
    self.state, metrics = self.run(self.state, self.batch, self.frozen)
    jax.block_until_ready((self.state, metrics))


@functools.cache
def made(sizes: tuple[int, ...]) -> Step:
  """The step of these sizes (in the order of `BASE`); the base is a point of every axis."""
  return Step(dict(zip(BASE, sizes, strict=True)))


def exponent(sizes: list[int], values: list[float]) -> float:
  """Least-squares slope of the logarithms over the upper half of the sizes."""
  half = len(sizes) // 2
  return float(np.polyfit(np.log(sizes[half:]), np.log(values[half:]), 1)[0])


def along(axis: str, seconds: float) -> dict[str, Any]:
  steps = {size: made(tuple({**BASE, axis: size}.values())) for size in AXES[axis]}
  times = interleave.interleaved({str(k): run for k, run in steps.items()}, seconds=seconds, most=50)
  spreads = [interleave.spread(times[str(k)]) for k in steps]
  sizes, needs = list(steps), [float(s.bytes or np.nan) for s in steps.values()]
  return {
    "sizes": sizes,
    "seconds": [dataclasses.asdict(s) for s in spreads],
    "bytes": needs,
    "exponent of seconds": exponent(sizes, [s.median for s in spreads]),
    "exponent of bytes": exponent(sizes, needs),
    "counted exponents": COUNTED[axis],
  }


def plot(axes: dict[str, Any]) -> Figure:
  """Seconds above, bytes below, one column for each axis; a dotted line has the counted exponent."""
  figure = Figure(figsize=(11, 5.2), layout="constrained")
  panels = figure.subplots(2, len(axes), squeeze=False, sharey="row", sharex="col")
  for column, (axis, found) in enumerate(axes.items()):
    sizes = np.array(found["sizes"], float)
    medians = np.array([s["median"] for s in found["seconds"]])
    ends = [[m - s["low"], s["high"] - m] for m, s in zip(medians, found["seconds"], strict=True)]
    for row, (values, error, what) in enumerate(
      ((1e3 * medians, 1e3 * np.array(ends).T, "seconds"), (np.array(found["bytes"]) / 2**20, None, "bytes"))
    ):
      panel = panels[row][column]
      panel.errorbar(
        sizes, values, yerr=error, fmt="o-", color="#0072B2", markersize=4, capsize=2, linewidth=1.2
      )
      power = found["counted exponents"][row]
      line = values[-1] * (sizes / sizes[-1]) ** power
      shown = line > values.min() / 3
      panel.plot(sizes[shown], line[shown], ":", color="0.4")
      panel.set(xscale="log", yscale="log")
      panel.set_title(f"exponent {found[f'exponent of {what}']:.2f} (dotted: {power})", fontsize=9)
      panel.set_xticks(sizes, [f"{s:g}" for s in sizes])
      panel.set_xticks([], minor=True)
      panel.grid(color="0.92")
    panels[1][column].set_xlabel("patch tokens" if axis == "tokens" else axis)
  panels[0][0].set_ylabel("step, ms")
  panels[1][0].set_ylabel("compiled need, MiB")
  return figure


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--seconds", type=float, default=4, help="for the rounds of each axis")
  parser.add_argument("--out", type=Path, help="the JSON file; the plot is beside it")
  args = parser.parse_args()
  found = {axis: along(axis, args.seconds) for axis in AXES}
  text = json.dumps({"base": BASE, "axes": found, **interleave.about()}, indent=2)
  print(text)
  if args.out:
    args.out.write_text(text + "\n")
    FigureCanvasAgg(plot(found)).print_png(str(args.out.with_suffix(".png")))


if __name__ == "__main__":
  main()
