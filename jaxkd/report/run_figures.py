"""The figures and tables of training runs: one run by itself, or several over each other."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxkd.report import plots
from jaxkd.report.figures import Marks, Panel, ranking
from jaxkd.report.plots import Series
from jaxkd.report.study_figures import curve, share_panel, term_series, terms_panel
from jaxkd.report.style import term_marks
from jaxkd.report.tables import Cell, Table
from jaxkd.report.text import finite, number, setting, slugs

Run = Mapping[str, Any]
Columns = dict[str, tuple[list[float], list[float | None]]]
VALUES = {
  "loss": ("total loss", "Sum of all terms, each times its weight, on the training images; lower is better."),
  "validation/accuracy_cls": (
    "validation accuracy (%)",
    "Accuracy on the validation images, which choose the checkpoint.",
  ),
  "lr": ("learning rate", "Step size of the optimiser after warm-up and schedule."),
}
SEVERAL = " Runs with other terms have other total losses: compare the shapes, not the heights."


def flattened(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """{"terms": {"kd": 1}} -> {"terms/kd": 1}."""
  result: dict[str, Any] = {}
  for key, value in row.items():
    result |= flattened(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {prefix + key: value}
  return result


def run_columns(run: Run) -> Columns:
  """Every logged number as (steps, values), over the rows that have it."""
  columns: Columns = {}
  for row in run["rows"]:
    for key, value in row.items():
      if key != "step" and isinstance(value, (int, float)) and not isinstance(value, bool):
        steps, values = columns.setdefault(key, ([], []))
        steps.append(row["step"])
        values.append(value)
  return columns


def run_panels(runs: Sequence[Run], marks: Marks) -> list[Panel]:
  """Total loss, validation accuracy, learning rate, terms and gradient shares.

  Of several runs the terms are drawn one by one, all runs in each, and the shares by run.
  """
  columns = {run["name"]: run_columns(run) for run in runs}
  panels = [p for key in VALUES if (p := _value_panel(key, columns, marks))]
  terms = term_marks(k.removeprefix("loss/") for c in columns.values() for k in c if k.startswith("loss/"))
  panels += _own_terms(columns, terms) if len(runs) == 1 else _shared_terms(columns, terms, marks)
  files = slugs(list(columns))
  for (name, own), file in zip(columns.items(), files, strict=True):
    norms = [k for k in own if k.startswith("gradient/")]
    if len(norms) > 1:
      items = term_series(_shares(runs[list(columns).index(name)], norms), terms)
      key, title = ("gradient_share", "Gradient shares")
      if len(runs) > 1:
        key, title = f"{key}_{file}", f"{title}: {name}"
      panels.append(share_panel(key, title, items))
  return panels


def _value_panel(key: str, columns: Mapping[str, Columns], marks: Marks) -> Panel | None:
  """One logged value over steps, every run that has it."""
  ylabel, read = VALUES[key]
  scale = 100.0 if ylabel.endswith("(%)") else 1.0
  items = [
    curve(name, marks[name], c[key][0], {"mean": c[key][1]}, scale) for name, c in columns.items() if key in c
  ]
  if not items:
    return None
  if len(columns) > 1 and key == "loss":
    read += SEVERAL
  figure = plots.lines(items, xlabel="step", ylabel=ylabel, markers=False)
  title = ylabel.removesuffix(" (%)")
  shows = _finding(items[0], key) if len(columns) == 1 else _comparison(items, key)
  return Panel(title.replace(" ", "_"), title.capitalize(), read, shows, figure)


def _best(item: Series, key: str) -> tuple[float | None, float]:
  kept = [(v, s) for v, s in zip(item.y, item.x, strict=True) if v is not None and finite(v)]
  return (min if key == "loss" else max)(kept, default=(None, 0.0))


def _finding(item: Series, key: str) -> str:
  value, step = _best(item, key)
  end = next((v for v in reversed(item.y) if finite(v)), None)
  word = "Lowest" if key == "loss" else "Highest"
  return f"{word} at step {number(round(step))}: {number(value)}; at the end {number(end)}."


def _comparison(items: Sequence[Series], key: str) -> str:
  best = {s.label: _best(s, key)[0] for s in items}
  digits, unit = (1, " %") if key == "validation/accuracy_cls" else (None, "")
  return f"{'Lowest' if key == 'loss' else 'Highest'} values: {ranking(best, digits, unit)}."


def _own_terms(columns: Mapping[str, Columns], terms: Marks) -> list[Panel]:
  [own] = columns.values()
  values = {k.removeprefix("loss/"): c for k, c in own.items() if k.startswith("loss/")}
  items = term_series(values, terms)
  return [terms_panel("terms", "Loss terms", items)] if items else []


def _shared_terms(columns: Mapping[str, Columns], terms: Marks, marks: Marks) -> list[Panel]:
  """A panel for each term with all runs that have it."""
  panels = []
  for term, file in zip(terms, slugs(list(terms)), strict=True):
    found = {name: c[f"loss/{term}"] for name, c in columns.items() if f"loss/{term}" in c}
    items = term_series(found, marks)
    if items:
      panels.append(terms_panel(f"term_{file}", f"Loss term {term}", items))
  return panels


def _shares(run: Run, norms: Iterable[str]) -> dict[str, tuple[list[float], list[Any]]]:
  """Each term's gradient norm over the sum of all, at the steps where they were measured."""
  norms = list(norms)
  rows = [row for row in run["rows"] if all(finite(row.get(k)) for k in norms)]
  steps = [row["step"] for row in rows]
  totals = [sum(row[k] for k in norms) or 1.0 for row in rows]
  return {
    k.removeprefix("gradient/"): (steps, [row[k] / t for row, t in zip(rows, totals, strict=True)])
    for k in norms
  }


def run_numbers(run: Run) -> dict[str, Any]:
  """The numbers by which runs are compared; None where a run did not log them."""
  columns = run_columns(run)
  accuracy, loss, speed = (
    columns.get(k, ([], [])) for k in ("validation/accuracy_cls", "loss", "time/images_per_s")
  )
  kept = [(v, -s) for s, v in zip(*accuracy, strict=True) if v is not None and finite(v)]
  best = max(kept, default=(None, 0))
  return {
    "name": run["name"],
    "steps": max(row["step"] for row in run["rows"]),
    "best_validation_accuracy": best[0],
    "at_step": -int(best[1]) if kept else None,
    "last_validation_accuracy": accuracy[1][-1] if accuracy[1] else None,
    "last_loss": loss[1][-1] if loss[1] else None,
    "median_images_per_s": statistics.median(v for v in speed[1] if v is not None) if speed[1] else None,
  }


def runs_table(runs: Sequence[Run], marks: Marks) -> Table:
  """Steps, accuracies, loss and speed of every run."""
  rows = []
  for n in map(run_numbers, runs):
    best = n["best_validation_accuracy"]
    rows.append(
      [
        Cell(n["name"], mark=marks[n["name"]]),
        Cell(number(n["steps"])),
        Cell(_percent(best), f"step {number(n['at_step'])}" if best is not None else ""),
        Cell(_percent(n["last_validation_accuracy"])),
        Cell(number(n["last_loss"])),
        Cell(number(n["median_images_per_s"], 0)),
      ]
    )
  columns = ["Run", "Steps", "Best validation accuracy (%)", "Last (%)", "Last loss", "Images/s (median)"]
  note = "Accuracy of the cls head on the validation images. One run of each: differences may be chance."
  return Table("The runs in numbers", columns, rows, frozenset(range(1, 6)), note)


def _percent(share: float | None) -> str:
  return number(None if share is None else 100 * share, 2)


def run_table(run: Run) -> Table:
  """First and last value of every logged number."""
  rows = [
    [Cell(key), Cell(number(values[0])), Cell(number(values[-1])), Cell(number(steps[-1]))]
    for key, (steps, values) in sorted(run_columns(run).items())
  ]
  return Table("Every logged value", ["Value", "First", "Last", "At step"], rows, frozenset({1, 2, 3}))


def settings_table(runs: Sequence[Run], marks: Marks) -> Table | None:
  """The configuration keys in which runs differ, a row for each run."""
  flat = {run["name"]: flattened(run.get("config") or {}) for run in runs}
  keys = sorted({k for f in flat.values() for k in f})
  differ = [k for k in keys if len({setting(f.get(k)) for f in flat.values()}) > 1]
  if len(runs) < 2 or not differ:
    return None
  rows = [
    [
      Cell(name, mark=marks[name]),
      Cell("; ".join(f"{k} = {setting(f[k])}" for k in differ if k in f) or "none"),
    ]
    for name, f in flat.items()
  ]
  return Table("Settings in which the runs differ", ["Run", "Settings"], rows)
