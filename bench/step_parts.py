"""Where the milliseconds of a training step go: views, teacher, student forward, backward, update; by training job.

  python -m bench.step_parts [--jobs deit_tiny kd_resnet18 ...] [--seconds 15] [--out results/bench_step_parts.json]

Each part is the difference between two compiled programs, of which the longer does what the shorter does and that part
besides; they run in turns. Medians of float32 steps on 32 px images; what is negative is below the noise. The last of
the programs is the step of `train` itself, but that its state is not donated.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from bench import bank, interleave, whole_runs
from jaxkd import bank as banks
from jaxkd import config as configs
from jaxkd import step
from jaxkd.experiment import Experiment, build
from jaxkd.feed import make_batch

RESNET = {"name": "resnet18_cifar"}
KD = {"kind": "soft_kd", "teacher": "cnn", "weight": 0.5, "temperature": 4.0}
JOBS: dict[str, tuple[str, Callable[[Path], Any]]] = {
  "deit_tiny": ("DeiT-Tiny, labels, batch 128", lambda _: whole_runs.config(10)),
  "resnet18": ("ResNet-18, labels, batch 64", lambda _: _changed(64, model=RESNET)),
  "kd_resnet18": (
    "DeiT-Tiny from a live ResNet-18, batch 64",
    lambda _: _changed(64, teachers={"cnn": {"weights": "random", "model": RESNET}}, terms={"kd": KD}),
  ),
  "ss_dinov2_live": (
    "DeiT-Tiny from a live DINOv2-S, batch 32",
    lambda folder: bank.config("live", folder, 32, 200),
  ),
  "ss_dinov2_banked": (
    "DeiT-Tiny from the bank of DINOv2-S, batch 32",
    lambda folder: bank.config("banked", folder, 32, 200),
  ),
}
PARTS = ("views", "teacher", "student forward, losses", "backward", "update, checks, metrics")


def _changed(batch: int, *, terms: dict[str, Any] | None = None, **parts: Any) -> Any:
  """The config of `bench.whole_runs` with another model, teachers, terms or batch size."""
  base = whole_runs.config(10)
  given = {k: base[k].to_dict() for k in ("data", "train", "eval")}
  given["train"] = {"steps": 10, "batch_size": batch}
  return configs.complete(
    {
      "model": {"name": "deit_tiny"},
      **given,
      **parts,
      "terms": {"ce": {"kind": "cross_entropy"}, **(terms or {})},
    }
  )


def programs(experiment: Experiment) -> dict[str, Callable[..., Any]]:
  """What ends with each of `PARTS`: functions of state, batch and frozen inputs."""

  def views(state, batch, frozen):
    return step._views(experiment, batch, frozen, step._keys(frozen, state.step)[0])

  def targets(state, batch, frozen):
    seen, labels = views(state, batch, frozen)
    return (
      seen,
      labels,
      {n: step._targets(experiment, n, state, batch, frozen, seen) for n in experiment.teachers},
    )

  def forward(state, batch, frozen):
    return step.loss_function(experiment, state, batch, frozen)(state.params)

  def gradient(state, batch, frozen):
    return step._gradient(experiment, step.loss_function(experiment, state, batch, frozen), state.params)

  def whole(state, batch, frozen):
    return step._step(experiment, state, batch, frozen)

  functions = (views, targets, forward, gradient, whole)
  return {part: jax.jit(f) for part, f in zip(PARTS, functions, strict=True)}


def measure(config: Any, seconds: float) -> dict[str, float]:
  """{part: milliseconds} of a step of this config, and "step", their sum."""
  experiment = build(config)
  opened = {n: banks.open_bank(experiment, n) for n, t in experiment.teachers.items() if t.bank}
  frozen = step.frozen_inputs(experiment, opened)
  state = step.place(experiment, step.init_state(experiment))
  given = (state, make_batch(experiment, 0, opened), frozen)
  ways = {
    part: lambda program=program: jax.block_until_ready(program(*given))
    for part, program in programs(experiment).items()
  }
  ends = interleave.milliseconds(ways, seconds=seconds)
  begin, found = 0.0, {}
  for part, end in ends.items():
    found[part], begin = end - begin, end
  return {**found, "step": begin}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
  parser.add_argument("--seconds", type=float, default=15.0)
  parser.add_argument("--out", type=Path, default=Path("results/bench_step_parts.json"))
  args = parser.parse_args()
  found = {}
  for job in args.jobs:
    what, config = JOBS[job]
    with tempfile.TemporaryDirectory() as folder:
      found[job] = {"what": what, "ms": measure(config(Path(folder) / "bank"), args.seconds)}
  args.out.write_text(
    json.dumps({"command": "python -m bench.step_parts", "jobs": found, **interleave.about()}, indent=2)
    + "\n"
  )
  print("| job | " + " | ".join(PARTS) + " | step |\n" + "|---" * (len(PARTS) + 2) + "|")
  for job in found.values():
    print(f"| {job['what']} | " + " | ".join(f"{v:.0f}" for v in job["ms"].values()) + " |")


if __name__ == "__main__":
  main()
