"""Every benchmark, one process after the other; JSON files, then one table and one plot of all (`bench.summary`).

  python -m bench.all [--out results] [--seconds 12] [--only deit_tiny_train hessian ...] [--no-compile]

Comparisons with PyTorch go into `bench_cpu.json`, any other job into `bench_NAME.json`. With `--only` the other jobs'
numbers are kept. A job that fails is named at the end, and the others still run. All take half an hour on 2 cores.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench import summary

AGAINST_TORCH = (
  "deit_tiny_train",
  "deit_tiny_inference",
  "resnet18_train",
  "adaptive_cnn_train",
  "convnextv2_tiny_train",
  "convnextv2_tiny_inference",
  "dinov2_small_inference",
  "kd_resnet18",
  "ss_dinov2_live",
  "ss_dinov2_banked",
  "attention_statistics",
)
# Modules of their own with the options that let all of them end in time.
OWN: dict[str, tuple[str, ...]] = {
  "hessian": ("--rounds=3", "--brief"),
  "cka": ("--rounds=3",),
  "data": ("--rounds=3",),
  "bank": ("--rounds=5", "--live-rounds=2", "--batch=64"),
  "step": (),
  "overhead": (),
  "replicas": ("--seconds=6",),
  "growth": (),
}
WRITERS = ("hessian", "cka", "replicas", "growth")  # these keep their JSON file themselves
JOBS = (*AGAINST_TORCH, summary.WHOLE, *OWN)


def run(job: str, out: Path, *, seconds: float, compile_too: bool) -> None:
  """Measures one job in a process of its own and keeps its numbers. Raises CalledProcessError when it fails."""
  if job in OWN:
    arguments = [f"bench.{job}", *OWN[job]]
    given = [f"--out={out / f'bench_{job}.json'}"] if job in WRITERS else []
    found = _json_of([*arguments, *given])
    if job not in WRITERS:
      head = {"command": f"python -m {' '.join(arguments)}", "date": datetime.date.today().isoformat()}
      _keep(out / f"bench_{job}.json", {**head, **found})
    return
  arguments = [f"bench.{job}"]
  if job != summary.WHOLE:
    arguments = ["bench.against_torch", "--job", job, f"--seconds={seconds}"]
    arguments += [] if compile_too else ["--no-compile"]
  path = out / "bench_cpu.json"
  results = (json.loads(path.read_text()) if path.exists() else {}) | {job: _json_of(arguments)}
  _write(path, {name: results[name] for name in JOBS if name in results})


def _keep(path: Path, run: dict[str, Any]) -> None:
  """Writes `run`, or adds it where the file holds a list of runs."""
  old = json.loads(path.read_text()) if path.exists() else {}
  _write(path, {**old, "runs": [*old["runs"], run]} if "runs" in old else run)


def _json_of(arguments: list[str]) -> dict[str, Any]:
  """What `python -m ARGUMENTS` prints."""
  done = subprocess.run([sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True, check=True)
  return json.loads(done.stdout[done.stdout.index("{") :])


def _write(path: Path, value: Any) -> None:
  path.write_text(json.dumps(value, indent=2) + "\n")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", type=Path, default=Path("results"))
  parser.add_argument("--seconds", type=float, default=12, help="for the rounds of each comparison")
  parser.add_argument("--only", nargs="+", choices=JOBS, default=JOBS)
  parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
  args = parser.parse_args()
  args.out.mkdir(parents=True, exist_ok=True)
  failed, began = [], time.perf_counter()
  for job in args.only:
    start = time.perf_counter()
    try:
      run(job, args.out, seconds=args.seconds, compile_too=not args.no_compile)
    except subprocess.CalledProcessError as e:
      failed.append(f"{job} (exit {e.returncode})")
    print(f"{job}: {time.perf_counter() - start:.0f} s", flush=True)
    summary.write(args.out)
  print(f"all: {(time.perf_counter() - began) / 60:.1f} min; {args.out / 'bench_cpu.md'}")
  if failed:
    raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
  main()
