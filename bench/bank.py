"""What the feature bank costs and saves: one training step with banked features, fed constants, labels only, live.

  python -m bench.bank [--rounds 7] [--live-rounds 4] [--batch 128]

DeiT-Tiny on 32 px images, token, correlation and CKA terms against DINOv2-S/14 (random weights, 224 px, four layers).
The variants run in turns within one process; medians and the spread over rounds. The live teacher, which is slow, gets
fewer rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bench import interleave
from jaxkd import bank as banks
from jaxkd import config as configs
from jaxkd import run_folder, step
from jaxkd.experiment import build
from jaxkd.feed import make_batch

LAYERS = tuple(f"block{i:02d}/tokens" for i in (3, 6, 9, 11))


def config(variant: str, folder: Path, batch: int, images: int) -> Any:
  """One variant: "live", "banked" (also fed constants), or "labels"."""
  taps = {"teacher": "dino", "student_taps": LAYERS}
  terms: dict[str, Any] = {"ce": {"kind": "cross_entropy"}}
  teachers = {}
  if variant != "labels":
    teacher = {"weights": "random", "model": {"name": "dinov2_vits14", "image_size": 224}, "size": 224}
    teachers = {"dino": {**teacher, "bank": "" if variant == "live" else str(folder)}}
    terms |= {
      "tokens": {"kind": "token_cosine", "head": "linear", **taps},
      "relation": {"kind": "correlation", "teacher": "dino", "student_taps": LAYERS[-1:]},
      "cka": {"kind": "cka", **taps},
    }
  return configs.complete(
    {
      "data": {
        "name": "synthetic",
        "image_size": 32,
        "channels": 3,
        "examples": images,
        "augment": {"crop": 4, "flip": True, "geometries": 1},
      },
      "model": {"name": "deit_tiny"},
      "teachers": teachers,
      "terms": terms,
      "train": {"steps": 1000, "batch_size": batch},
      "eval": {"metric": "none"},
    }
  )


class Variant:
  """A compiled step with its own state; `seconds()` times one call to its end."""

  def __init__(self, name: str, folder: Path, batch: int, images: int):
    constant = name == "constant"
    self.experiment = build(config("banked" if constant else name, folder, batch, images))
    self.banks = {
      n: banks.open_bank(self.experiment, n) for n, t in self.experiment.teachers.items() if t.bank
    }
    self.frozen = step.frozen_inputs(self.experiment, self.banks)
    self.features = {}
    if constant:  # the same arrays every step, no gather from the bank
      rows = {n: b.rows(np.arange(batch), np.zeros(batch, np.int32)) for n, b in self.banks.items()}
      self.features, self.frozen["banks"] = {"features": jax.device_put(rows)}, {}
    self.run = step.make_train_step(self.experiment)
    self.state = step.place(self.experiment, step.init_state(self.experiment))
    self.number = 0
    self.seconds()  # compiles

  def seconds(self) -> float:
    batch = make_batch(self.experiment, self.number, {}) | self.features
    self.number += 1
    start = time.perf_counter()
    self.state, metrics = self.run(self.state, batch, self.frozen)
    jax.block_until_ready((self.state, metrics))
    return time.perf_counter() - start


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--live-rounds", type=int, default=4)
  parser.add_argument("--batch", type=int, default=128)
  parser.add_argument("--images", type=int, default=200)
  args = parser.parse_args()
  times: dict[str, list[float]] = {}
  with tempfile.TemporaryDirectory() as folder:
    names = ("labels", "constant", "banked", "live")
    variants = {n: Variant(n, Path(folder) / "bank", args.batch, args.images) for n in names}
    for i in range(args.rounds):
      order = names if i % 2 else names[::-1]  # neither is always first after the live one
      for name in order:
        if name != "live" or i < args.live_rounds:
          times.setdefault(name, []).append(variants[name].seconds())
  medians = {n: float(np.median(t)) for n, t in times.items()}
  rounds = {
    f"{a} / {b}": [x / y for x, y in zip(times[c], times[d], strict=False)]  # the live one has fewer
    for a, b, c, d in (
      ("banked", "constant", "banked", "constant"),
      ("banked", "labels only", "banked", "labels"),
      ("live", "banked", "live", "banked"),
    )
  }
  result = {
    "batch": args.batch,
    "ms": {
      n: {"median": 1e3 * medians[n], "low": 1e3 * min(t), "high": 1e3 * max(t), "n": len(t)}
      for n, t in times.items()
    },
    "banked / constant": medians["banked"] / medians["constant"],
    "banked / labels only": medians["banked"] / medians["labels"],
    "live / banked": medians["live"] / medians["banked"],
    "by round": {n: dataclasses.asdict(interleave.spread(r)) for n, r in rounds.items()},
    "hardware": run_folder.hardware(),
  }
  print(json.dumps(result, indent=2))


if __name__ == "__main__":
  main()
