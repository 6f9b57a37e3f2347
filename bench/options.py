"""A DeiT-Tiny training step under settings of malloc and of XLA's CPU compiler, each in a process of its own, in turns.

  python -m bench.options [--job deit_tiny_train] [--rounds 3] [--steps 4]

Prints a table in Markdown: seconds of a step (median over rounds, lowest and highest) and its page faults. "malloc's
default" is what a program gets that does not come through jaxkd's commands (`jaxkd/allocator.py`). Needs torch, as the
job is one of `bench.against_torch`; its torch side does not run.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time

ONEDNN = (
  "--xla_cpu_use_onednn=true --xla_cpu_experimental_onednn_fusion_type=dot "
  "--xla_cpu_experimental_ynn_fusion_type=-dot"
)
# What is added to the environment.
SETTINGS: dict[str, dict[str, str]] = {
  "jaxkd": {},
  "malloc's default": {"MALLOC_ARENA_MAX": "0"},  # 0 is glibc's default; that it is set keeps ours away
  "huge pages": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
  "oneDNN's products": {"XLA_FLAGS": ONEDNN},
  "Eigen's products": {"XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type=-dot"},
  "vectors of 512 bits": {"XLA_FLAGS": "--xla_cpu_prefer_vector_width=512"},
  "fast math": {"XLA_FLAGS": "--xla_cpu_enable_fast_math=true"},
}


def timed_step(job: str, steps: int) -> str:
  """Seconds and page faults of one step after two others, as a line."""
  from bench import against_torch  # sets malloc, imports JAX

  run = against_torch.JOBS[job]().ours
  for _ in range(2):
    run()
  before, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
  for _ in range(steps):
    run()
  seconds = (time.perf_counter() - start) / steps
  return f"{seconds} {(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / steps}"


def in_own_process(job: str, steps: int, setting: str) -> tuple[float, float]:
  command = [sys.executable, "-m", "bench.options", "--job", job, "--steps", str(steps), "--here"]
  found = subprocess.run(
    command, env={**os.environ, **SETTINGS[setting]}, stdout=subprocess.PIPE, text=True, check=True
  )
  seconds, faults = map(float, found.stdout.split()[-2:])
  return seconds, faults


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--job", default="deit_tiny_train")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--steps", type=int, default=4)
  parser.add_argument("--here", action="store_true", help="in this process, under its own settings")
  args = parser.parse_args()
  if args.here:
    print(timed_step(args.job, args.steps))
    return
  found: dict[str, list[tuple[float, float]]] = {name: [] for name in SETTINGS}
  for i in range(args.rounds):
    for name in list(SETTINGS)[:: -1 if i % 2 else 1]:
      found[name].append(in_own_process(args.job, args.steps, name))
  print(f"| {args.job} | seconds a step | page faults |\n|---|---|---|")
  for name, runs in found.items():
    seconds, faults = zip(*runs, strict=True)
    spread = f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
    print(f"| {name} | {spread} | {statistics.median(faults):,.0f} |")


if __name__ == "__main__":
  main()
