"""Every benchmark's ratios with spread and target in one table and one plot, read from the JSON files of `results/`.

  python -m bench.summary [--out results] [--beside FOLDER]

Writes `bench_cpu.md` and `bench_cpu.png` again; what was not measured is left out. With the files of another run in
FOLDER also `bench_cpu_twice.md`: every measure of both runs, and where they differ by more than a tenth.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

WHOLE = "whole_runs"
EAGER, FAST = "torch", "torch.compile"
REACHED, MISSED = "#009E73", "#D55E00"
EDGE, TICKS = 10, (0.1, 0.2, 0.5, 1, 2, 5, 10)  # of the plot: what is further out is an arrow there


@dataclasses.dataclass(frozen=True)
class Row:
  """One measure of a job. `target` is what `value` should reach ("at least") or not exceed; None: there is none."""

  job: str
  measure: str
  value: float
  low: float | None = None
  high: float | None = None
  target: float | None = None
  at_least: bool = True
  date: str = ""

  @property
  def reached(self) -> bool | None:
    if self.target is None:
      return None
    return self.value >= self.target if self.at_least else self.value <= self.target

  def relative(self, value: float) -> float:
    """`value` against the target: 1 is on it, above 1 is better."""
    assert self.target is not None
    return value / self.target if self.at_least else self.target / max(value, 1e-9)


def _spread(found: dict[str, Any]) -> dict[str, float]:
  """Median, low and high as a Row has them."""
  return {"value": found["median"], "low": found["low"], "high": found["high"]}


def _cpu(results: dict[str, Any]) -> Iterator[Row]:
  for name, r in results.items():
    if name == WHOLE:
      yield from _whole(r)
      continue
    target = 5.0 if name.endswith("_banked") else 1.0
    for other, s in r["speed against"].items():
      how = f"{'eager PyTorch' if other == EAGER else other}'s time / jaxkd's"
      goal = target if other == EAGER else None
      yield Row(r["what"], how, **_spread(s), target=goal, date=r["date"])


def _whole(r: dict[str, Any]) -> Iterator[Row]:
  date, job = r["date"], "start-up"
  yield Row(job, "seconds of --help", r["start-up s"]["--help"], target=1.0, at_least=False, date=date)
  for name in ("import jaxkd.train", "import torch"):
    yield Row(job, f"seconds of {name}", r["start-up s"][name], date=date)
  for name, value in r["first call s"].items():
    yield Row("DeiT-Tiny's first step", f"seconds with {name}", value, date=date)
  yield Row(
    "whole runs of train", "images/s over those of the step alone", r["whole run"]["share"], date=date
  )


def _hessian(r: dict[str, Any]) -> Iterator[Row]:
  rounds = r["jaxkd / torch by round"]
  spread = {"value": r["jaxkd / torch"], "low": min(rounds), "high": max(rounds)}
  yield Row(
    "Hutchinson probes, DeiT-Tiny", "probes/s over double backward's", **spread, target=1.2, date=r["date"]
  )


def _cka(r: dict[str, Any]) -> Iterator[Row]:
  ours = r["seconds"]["jaxkd"]["all"]
  for how in ("by pairs", "by layers"):
    rounds = [a / b for a, b in zip(r["seconds"][f"torch, {how}"]["all"], ours, strict=True)]
    spread = {
      "value": r[f"faster_than_torch_{how.replace(' ', '_')}"],
      "low": min(rounds),
      "high": max(rounds),
    }
    goal = 3.0 if how == "by pairs" else None
    yield Row("CKA of 12 x 12 layers", f"torch's time {how} / jaxkd's", **spread, target=goal, date=r["date"])


def _data(r: dict[str, Any]) -> Iterator[Row]:
  found = {k: v["round by round"] for k, v in r.items() if k.startswith("ratio to ")}
  if not found:
    found = {"ratio to a DataLoader": r["ratio, round by round"]}
  for i, (what, spread) in enumerate(found.items()):
    goal = None if i else 25.0
    yield Row("augmentation, 32 px", f"images/s, {what}", **_spread(spread), target=goal, date=r["date"])
  wait = r.get("training", {}).get("wait / step")
  if wait is not None:
    yield Row(
      "input of DeiT-Tiny", "wait for the batch / step", wait, target=0.01, at_least=False, date=r["date"]
    )


def _bank(r: dict[str, Any]) -> Iterator[Row]:
  for what, goal in (("banked / constant", 1.05), ("banked / labels only", 1.15), ("live / banked", None)):
    spread = r.get("by round", {}).get(what)
    found = _spread(spread) if spread else {"value": r[what]}
    yield Row("step with the feature bank", what, **found, target=goal, at_least=False, date=r["date"])


def _step(r: dict[str, Any]) -> Iterator[Row]:
  spread = {"value": r["step_ms_median"], "low": r["step_ms_p10"], "high": r["step_ms_p90"]}
  yield Row(f"step of {r['config']}", "milliseconds", **spread, date=r["date"])


def _overhead(r: dict[str, Any]) -> Iterator[Row]:
  yield Row("the loop's own time", "share of a step of 100 ms", r["share_of_100_ms_step"], date=r["date"])


def _replicas(r: dict[str, Any]) -> Iterator[Row]:
  for job in r["jobs"].values():
    what = f"{job['replicas']} replicas: {job['what']}"
    yield Row(
      what, "k runs' time / one program's", **_spread(job["speed of one program"]), target=1.0, date=r["date"]
    )


def _growth(r: dict[str, Any]) -> Iterator[Row]:
  for axis, found in r["axes"].items():
    for what in ("seconds", "bytes"):
      yield Row(
        "growth of a step", f"exponent of {what} in {axis}", found[f"exponent of {what}"], date=r["date"]
      )


READERS: dict[str, Callable[[dict[str, Any]], Iterator[Row]]] = {
  "cpu": _cpu,
  "hessian": _hessian,
  "cka": _cka,
  "data": _data,
  "bank": _bank,
  "step": _step,
  "overhead": _overhead,
  "replicas": _replicas,
  "growth": _growth,
}


def read(folder: Path, name: str) -> dict[str, Any] | None:
  """`bench_NAME.json`; of a file of several runs the last, with what it says of all. None where there is none."""
  path = folder / f"bench_{name}.json"
  if not path.exists():
    return None
  found = json.loads(path.read_text())
  return {**found, **found["runs"][-1]} if "runs" in found else found


def rows(folder: Path) -> list[Row]:
  """Of all benchmarks that were run, in the order of `READERS`."""
  return [row for name, reader in READERS.items() if (found := read(folder, name)) for row in reader(found)]


def _cells(row: Row) -> str:
  spread = "-" if row.low is None or row.high is None else f"{row.low:.3g} to {row.high:.3g}"
  target = "-" if row.target is None else f"{'at least' if row.at_least else 'at most'} {row.target:g}"
  verdict = {None: "", True: "reached", False: "missed"}[row.reached]
  cells = (row.job, row.measure, f"**{row.value:.3g}**", spread, target, verdict, row.date)
  return "| " + " | ".join(cells) + " |"


def table(folder: Path) -> str:
  """Markdown: all measures with their targets, then milliseconds and shares of the comparisons with PyTorch."""
  found, cpu = rows(folder), read(folder, "cpu") or {}
  first: dict[str, Any] = next((r for name, r in cpu.items() if name != WHOLE), {})
  lines = ["# Benchmarks on CPU", ""]
  if first:
    versions = ", ".join(f"{k} {v}" for k, v in first["versions"].items())
    lines += [f"{first['hardware']}, {first['threads']} threads, float32; {versions}."]
  lines += [
    "`make bench` measures all of it and writes this file; spreads are over rounds, in which all sides take turns.",
    "",
  ]
  lines += ["| job | measure | median | spread | target | | date |", "|---|---|---|---|---|---|---|"]
  lines += map(_cells, found)
  if first:
    lines += ["", "## Beside PyTorch", ""]
    lines += [
      "Share: of the higher of both libraries' float32 matrix products (2048 x 2048) in the same rounds.",
      "",
    ]
    lines += [
      "| job | batch | jaxkd ms | PyTorch ms | share jaxkd | share PyTorch |",
      "|---|---|---|---|---|---|",
    ]
    lines += [_shares(r) for name, r in cpu.items() if name != WHOLE]
  return "\n".join([*lines, ""])


def _shares(r: dict[str, Any]) -> str:
  shares = [f"{r['share of peak'][name]:.0%}" for name in ("jaxkd", EAGER)]
  if r["what"].endswith("(PyTorch: in the step)"):
    shares[0] = "-"  # ours leaves most of the work out
  times = [f"{1e3 * r['seconds'][name]['median']:.0f}" for name in ("jaxkd", EAGER)]
  return "| " + " | ".join([r["what"], str(r["batch"]), *times, *shares]) + " |"


def twice(folder: Path, other: Path) -> str:
  """Markdown: every measure of two runs, the later one in `folder`, and by how much it moved; both must have it."""
  before = {(r.job, r.measure): r for r in rows(other)}
  lines = [
    "# Two runs of make bench",
    "",
    "| job | measure | first | second | change | |",
    "|---|---|---|---|---|---|",
  ]
  for row in rows(folder):
    first = before[row.job, row.measure].value
    change = row.value / first - 1
    far = "more than a tenth" if abs(change) > 0.1 else ""
    lines += [f"| {row.job} | {row.measure} | {first:.3g} | {row.value:.3g} | {change:+.1%} | {far} |"]
  return "\n".join([*lines, ""])


def plot(folder: Path) -> Figure:
  """Every measure that has a target, relative to it: median and range, on a log axis that ends at `EDGE`."""
  found = [r for r in rows(folder) if r.target is not None]
  figure = Figure(figsize=(9, 0.42 * len(found) + 1.0), layout="constrained")
  axes = figure.subplots()
  for i, row in enumerate(found):
    _draw(axes, i, row)
  axes.axvline(1, color="0.3", linewidth=1)
  axes.set_xscale("log")
  axes.set_xlim(1 / EDGE, EDGE)
  axes.set_xticks(TICKS, [f"{t:g}" for t in TICKS])
  axes.set_xticks([], minor=True)
  axes.set_yticks(range(len(found)), [f"{r.job}\n{r.measure}" for r in found], fontsize=7.5)
  axes.set_ylim(len(found) - 0.5, -0.5)
  axes.grid(axis="x", color="0.9")
  axes.set_axisbelow(True)
  axes.set_xlabel("relative to the target, reached right of 1; in numbers: value (target)", fontsize=9)
  return figure


def _draw(axes: Any, i: int, row: Row) -> None:
  color = REACHED if row.reached else MISSED
  middle = float(np.clip(row.relative(row.value), 1 / EDGE, EDGE))
  if row.low is not None and row.high is not None:
    ends = np.clip([row.relative(row.low), row.relative(row.high)], 1 / EDGE, EDGE)
    axes.plot(ends, [i, i], color=color, linewidth=2, solid_capstyle="butt", alpha=0.5)
  marker = ">" if middle == EDGE else "<" if middle == 1 / EDGE else "o" if row.reached else "D"
  axes.plot([middle], [i], marker, color=color, markersize=6, clip_on=False)
  sign = "\u2265" if row.at_least else "\u2264"
  text = f"{row.value:.3g} ({sign} {row.target:g})"
  at = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center", "fontsize": 8}
  axes.annotate(text, (1, i), xytext=(9, 0), **at)


def write(folder: Path) -> None:
  (folder / "bench_cpu.md").write_text(table(folder))
  if any(r.target is not None for r in rows(folder)):
    FigureCanvasAgg(plot(folder)).print_png(str(folder / "bench_cpu.png"))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", type=Path, default=Path("results"))
  parser.add_argument("--beside", type=Path, help="the folder with another run's files")
  args = parser.parse_args()
  write(args.out)
  if args.beside:
    (args.out / "bench_cpu_twice.md").write_text(twice(args.out, args.beside))


if __name__ == "__main__":
  main()
