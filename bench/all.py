"""Every comparison with PyTorch, the start-up and the whole runs, one process after the other: JSON, table and plot.

  python -m bench.all [--out results] [--seconds 20] [--only deit_tiny_train ...] [--no-compile]

Writes `bench_cpu.json`, `bench_cpu.md` and `bench_cpu.png`. With `--only` the other jobs' numbers are kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

JOBS = (
  "deit_tiny_train",
  "deit_tiny_inference",
  "resnet18_train",
  "convnextv2_tiny_train",
  "convnextv2_tiny_inference",
  "dinov2_small_inference",
  "kd_resnet18",
  "ss_dinov2_live",
  "ss_dinov2_banked",
)
WHOLE = "whole_runs"
EAGER, FAST = "torch", "torch.compile"
COLORS = {EAGER: "#0072B2", FAST: "#E69F00"}


def run(job: str, seconds: float, compile_too: bool) -> dict[str, Any]:
  """The numbers of one job, in a process of its own. Raises CalledProcessError when it fails."""
  command = [sys.executable, "-m"]
  if job == WHOLE:
    command += ["bench.whole_runs"]
  else:
    command += ["bench.against_torch", "--job", job, f"--seconds={seconds}"]
    command += [] if compile_too else ["--no-compile"]
  return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def table(results: dict[str, Any]) -> str:
  """Markdown: a row for each job, then start-up and whole runs."""
  jobs = {name: r for name, r in results.items() if name != WHOLE}
  lines = ["# jaxkd beside PyTorch on CPU", ""]
  if jobs:
    first = next(iter(jobs.values()))
    versions = ", ".join(f"{k} {v}" for k, v in first["versions"].items())
    lines += [
      f"{first['hardware']}, {first['threads']} threads, float32; {versions}. `make bench` writes this file.",
      "",
    ]
    lines += [
      "Speed: PyTorch's seconds over jaxkd's, median (lowest to highest round); above 1 jaxkd is faster. Share: of the",
      "higher of both libraries' float32 matrix products (2048 x 2048) in the same rounds.",
      "",
    ]
    lines += [
      "| job | batch | jaxkd ms | speed, eager | speed, torch.compile | share jaxkd | share torch | date |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    lines += [_row(r) for r in jobs.values()]
  if WHOLE in results:
    whole = results[WHOLE]
    lines += ["", f"## Start-up and whole runs ({whole['date']})", "", "| what | value |", "|---|---|"]
    lines += [f"| {name} | {value:.2f} s |" for name, value in whole["start-up s"].items()]
    lines += [
      f"| DeiT-Tiny step, first call, {name} | {value:.1f} s |"
      for name, value in whole["first call s"].items()
    ]
    lines += [f"| DeiT-Tiny, {name} | {value:.2f} |" for name, value in whole["whole run"].items()]
  return "\n".join([*lines, ""])


def _row(r: dict[str, Any]) -> str:
  def speed(name: str) -> str:
    s = r["speed against"].get(name)
    return f"**{s['median']:.2f}** ({s['low']:.2f} to {s['high']:.2f})" if s else "-"

  shares = [f"{r['share of peak'][name]:.0%}" for name in ("jaxkd", EAGER)]
  if r["what"].endswith("(PyTorch: in the step)"):
    shares[0] = "-"  # ours leaves most of the work out
  cells = [
    r["what"],
    str(r["batch"]),
    f"{1e3 * r['seconds']['jaxkd']['median']:.0f}",
    speed(EAGER),
    speed(FAST),
  ]
  return "| " + " | ".join([*cells, *shares, r["date"]]) + " |"


def plot(results: dict[str, Any], path: Path) -> None:
  """Speed of jaxkd relative to PyTorch: median and range of each job, on a log axis."""
  jobs = [r for name, r in results.items() if name != WHOLE]
  figure = Figure(figsize=(8, 0.55 * len(jobs) + 1.4), layout="constrained")
  axes = figure.subplots()
  for row, r in enumerate(jobs):
    for offset, name in ((-0.15, EAGER), (0.15, FAST)):
      if s := r["speed against"].get(name):
        around = [[s["median"] - s["low"]], [s["high"] - s["median"]]]
        axes.errorbar(
          s["median"], row + offset, xerr=around, fmt="o", color=COLORS[name], capsize=3, markersize=6
        )
        axes.annotate(
          f"{s['median']:.2f}",
          (s["high"], row + offset),
          (6, 0),
          textcoords="offset points",
          va="center",
          fontsize=8,
        )
  axes.axvline(1, color="0.4", linewidth=1)
  axes.set_xscale("log")
  ticks = [
    t for t in (0.25, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20) if axes.get_xlim()[0] <= t <= axes.get_xlim()[1]
  ]
  axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
  axes.set_xticks([], minor=True)
  axes.set_yticks(range(len(jobs)), [r["what"].replace(" (PyTorch", "\n(PyTorch") for r in jobs], fontsize=8)
  axes.invert_yaxis()
  axes.grid(axis="x", color="0.9")
  axes.set_axisbelow(True)
  axes.set_xlabel("times PyTorch's speed: median and range over rounds")
  for name, color in COLORS.items():
    axes.plot([], [], "o", color=color, label=f"against {'eager PyTorch' if name == EAGER else name}")
  figure.legend(loc="outside upper center", ncols=2, frameon=False)
  FigureCanvasAgg(figure).print_png(str(path))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", type=Path, default=Path("results"))
  parser.add_argument("--seconds", type=float, default=20, help="for the rounds of each job")
  parser.add_argument("--only", nargs="+", choices=(*JOBS, WHOLE), default=(*JOBS, WHOLE))
  parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
  args = parser.parse_args()
  path = args.out / "bench_cpu.json"
  results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
  for job in args.only:
    start = time.perf_counter()
    results[job] = run(job, args.seconds, not args.no_compile)
    print(f"{job}: {time.perf_counter() - start:.0f} s", flush=True)
    results = {name: results[name] for name in (*JOBS, WHOLE) if name in results}
    args.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
    (args.out / "bench_cpu.md").write_text(table(results))
    if any(name != WHOLE for name in results):
      plot(results, args.out / "bench_cpu.png")


if __name__ == "__main__":
  main()
