"""k students in one program (`train.replicas`) against k runs of one: the same steps of the same students, in turns.

  python -m bench.replicas [--seconds 15] [--replicas 3] [--only digits ...] [--out results/bench_replicas.json]

Both ways end in the same states, which is checked before anything is timed. Reported are the k runs' seconds over the
one program's (above 1 the one program is faster), the compiled need for memory, and the first calls with compilation.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bench import interleave
from jaxkd import config as configs
from jaxkd import memory, replicas, step
from jaxkd.experiment import build
from jaxkd.feed import make_batch, place_batch

STEPS = 2  # of each student in one turn
CLOSE = 1e-5  # largest difference of parameters allowed, relative to the largest of their array
STUDENT = {"name": "deit", "patch_size": 4, "width": 64, "depth": 4, "heads": 4, "mlp_ratio": 2.0}
CNN = {"name": "adaptive_cnn", "widths": (16, 32, 64), "depths": (1, 1, 1), "stem_pool": False}
RESNET = {"name": "resnet18_cifar", "widths": (16, 32, 64), "depths": (1, 1, 1)}
GREY = {"crop": 1, "brightness": 0.2, "contrast": 0.2, "cutout": 4}
CE = {"ce": {"kind": "cross_entropy"}}
SMALL = {"name": "synthetic", "image_size": 16, "channels": 1, "augment": GREY}
LARGE = {"name": "synthetic", "image_size": 32, "channels": 3, "augment": {"crop": 4, "flip": True}}
KD = {
  "teachers": {"cnn": {"weights": "random", "model": CNN, "size": 16, "view": "clean"}},
  "terms": {**CE, "kd": {"kind": "soft_kd", "teacher": "cnn"}},
}
JOBS: dict[str, tuple[str, dict[str, Any]]] = {
  "digits": ("ViT of 4 blocks, width 64, 16 px", {"data": SMALL, "model": STUDENT}),
  "digits_batch8": (
    "ViT of 4 blocks, width 64, 16 px, batch 8",
    {"data": SMALL, "model": STUDENT, "train": {"steps": 1000, "batch_size": 8}},
  ),
  "digits_kd": ("ViT of 4 blocks from a live CNN shared by all", {"data": SMALL, "model": STUDENT, **KD}),
  "resnet": ("ResNet of 3 blocks, 16 px", {"data": SMALL, "model": RESNET}),
  "deit_tiny": (
    "DeiT-Tiny, 32 px",
    {"data": LARGE, "model": {"name": "deit_tiny"}, "train": {"steps": 1000, "batch_size": 32}},
  ),
}


def config(job: str, seeds: tuple[int, ...]) -> Any:
  """The run of all `seeds` together."""
  chosen: dict[str, Any] = {"train": {"steps": 1000, "batch_size": 64}, "terms": CE, **JOBS[job][1]}
  # Steps are compared, so that Adam's division by roots of squares near zero must not blow up rounding.
  chosen |= {"optim": {"eps": 1e-3}, "eval": {"metric": "none"}}
  chosen["train"] = {**chosen["train"], "replicas": seeds}
  return configs.complete(chosen)


class Way:
  """A compiled step with its own state; a call advances it by `STEPS` and waits."""

  def __init__(self, config: Any):
    self.experiment = build(config)
    self.frozen = step.frozen_inputs(self.experiment)
    self.state = step.place(self.experiment, step.init_state(self.experiment))
    self.run, self.number = step.make_train_step(self.experiment), 0
    start = time.perf_counter()
    self.advance(1)
    self.first_call_s = time.perf_counter() - start

  def advance(self, count: int = STEPS) -> None:
    for _ in range(count):
      batch = place_batch(self.experiment, make_batch(self.experiment, self.number))
      self.state, _ = self.run(self.state, batch, self.frozen)
      self.number += 1
    jax.block_until_ready(self.state)

  def bytes(self) -> int | None:
    return memory.step_bytes(self.run, self.state, make_batch(self.experiment, 0), self.frozen)


def check(together: Way, alone: list[Way]) -> float:
  """The largest difference of parameters between the two ways. Raises SystemExit for a large one."""
  found = 0.0
  for mine, way in zip(replicas.each(together.experiment, together.state.params), alone, strict=True):
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(way.state.params), strict=True):
      a, b = np.float64(a), np.float64(b)
      found = max(found, float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-3)))
  if not found < CLOSE:
    raise SystemExit(f"not the same work: parameters differ by {found:.1e}, {CLOSE:g} is allowed")
  return found


def measure(job: str, *, count: int, seconds: float) -> dict[str, Any]:
  seeds = tuple(range(count))
  whole = config(job, seeds)
  together, alone = Way(whole), [Way(replicas.single(whole, s)) for s in seeds]
  difference = check(together, alone)

  def one_by_one() -> None:
    for way in alone:
      way.advance()

  times = interleave.interleaved({"together": together.advance, "one by one": one_by_one}, seconds=seconds)
  spreads = {n: dataclasses.asdict(interleave.spread([s / STEPS for s in t])) for n, t in times.items()}
  return {
    "what": JOBS[job][0],
    "replicas": count,
    "batch": whole.train.batch_size,
    "largest difference of parameters": difference,
    "seconds per step of all": spreads,
    "speed of one program": dataclasses.asdict(interleave.ratio(times, "one by one", "together")),
    "compiled bytes": {"together": together.bytes(), "one": alone[0].bytes()},
    "first call s": {"together": together.first_call_s, "one": alone[0].first_call_s},
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--seconds", type=float, default=15, help="for the rounds of each job")
  parser.add_argument("--replicas", type=int, default=3)
  parser.add_argument("--only", nargs="+", choices=JOBS, default=tuple(JOBS))
  parser.add_argument("--out", type=Path)
  args = parser.parse_args()
  jobs = {job: measure(job, count=args.replicas, seconds=args.seconds) for job in args.only}
  text = json.dumps({"jobs": jobs, **interleave.about()}, indent=2)
  print(text)
  if args.out:
    args.out.write_text(text + "\n")


if __name__ == "__main__":
  main()
