"""Figures and a table of curvature beyond the trace: layer types, heads, eigenvalues, density, landscape, sharpness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxkd.report import charts, plots
from jaxkd.report.figures import Marks, Panel, ranking, trace_digits
from jaxkd.report.plots import Series
from jaxkd.report.tables import Cell, Table
from jaxkd.report.text import MISSING, error_digits, finite, listing, number

FLOOR = 1e-8  # of the density, whose axis is logarithmic
ORDINALS = ("1st", "2nd", "3rd", "4th", "5th")


def per_type(result: Mapping[str, Any], marks: Marks) -> Panel | None:
  """The trace split over kinds of layer."""
  models = [m for m in result["models"] if (m.get("hessian") or {}).get("per_type")]
  if not models:
    return None
  totals: dict[str, float] = {}
  for m in models:
    for name, (value, _) in m["hessian"]["per_type"].items():
      totals[name] = max(totals.get(name, 0.0), abs(value))
  kinds = sorted(totals, key=lambda k: -totals[k])
  items = []
  for m in models:
    cells = [m["hessian"]["per_type"].get(k, (None, None)) for k in kinds]
    items.append((m["name"], marks[m["name"]], [(v, 2 * e if finite(e) else None) for v, e in cells]))
  tops = []
  for name, _, cells in items[:4]:
    best = max((v, k) for (v, _), k in zip(cells, kinds, strict=True) if finite(v))
    tops.append(f"{best[1]} in {name} ({number(best[0], trace_digits(result))})")
  read = (
    "The trace split over the kinds of layer, over all blocks: they add up to the whole trace. Bars are two standard "
    "errors over probes."
  )
  figure = plots.parts(kinds, items, xlabel="Hessian trace of all layers of this kind")
  return Panel(
    "hessian_types", "Curvature by kind of layer", read, f"The largest share is {listing(tops)}.", figure
  )


def per_head(result: Mapping[str, Any], marks: Marks) -> Panel | None:
  """The trace of every attention head, as dots by model."""
  models = [m for m in result["models"] if (m.get("hessian") or {}).get("per_head")]
  if not models:
    return None
  rows, largest = [], {}
  for m in models:
    heads = {k: v for k, (v, _) in m["hessian"]["per_head"].items() if finite(v)}
    top = max(heads, key=lambda k: heads[k])
    largest[m["name"]] = f"{top} in {m['name']} ({number(heads[top])})"
    average = sum(heads.values()) / len(heads)
    text = f"mean {number(average)}"
    rows.append(plots.Row(m["name"], marks[m["name"]], average, text=text, dots=list(heads.values())))
  read = (
    "Each pale dot is one attention head: the trace of its columns of qkv and rows of the projection; the large marker "
    "is the mean of all heads."
  )
  figure = plots.rows(rows, xlabel="Hessian trace of a head", zero=True)
  return Panel("hessian_heads", "Curvature by head", read, f"Largest: {listing(largest.values())}.", figure)


def eigenvalues(result: Mapping[str, Any], marks: Marks) -> list[Panel]:
  """The largest eigenvalues with error bounds, and the density of all."""
  models = [m for m in result["models"] if m.get("eigenvalues")]
  if not models:
    return []
  count = max(len(m["eigenvalues"]["values"]) for m in models)
  items, density = [], []
  for m in models:
    e = m["eigenvalues"]
    cells = list(zip(e["values"], e["errors"], strict=True)) + [(None, None)] * (count - len(e["values"]))
    items.append((m["name"], marks[m["name"]], cells))
    d = e["density"]
    y = [max(v, FLOOR) if finite(v) else None for v in d["value"]]
    density.append(Series(m["name"], marks[m["name"]], d["points"], y))
  read = (
    "The largest eigenvalues of the Hessian (Lanczos): the curvature along the steepest directions. Bars are error "
    "bounds: an eigenvalue lies within."
  )
  first = {name: cells[0][0] for name, _, cells in items}
  figure = plots.parts(ORDINALS[:count], items, xlabel="eigenvalue of the Hessian")
  panels = [Panel("eigenvalues", "Largest eigenvalues", read, f"Largest: {ranking(first, None)}.", figure)]
  read = (
    "Density of the Hessian's eigenvalues (stochastic Lanczos quadrature, every node a Gaussian of 1 % of the range), "
    "on a logarithmic axis: almost all lie near 0, and the few on the right make the loss sharp."
  )
  below = {m["name"]: 100 * m["eigenvalues"]["negative_share"][0] for m in models}
  shows = f"Share of eigenvalues below minus 0.1 % of the range: {ranking(below, 2, ' %')}."
  figure = plots.lines(density, xlabel="eigenvalue", ylabel="density", log=True, markers=False)
  return [*panels, Panel("eigenvalue_density", "Density of eigenvalues", read, shows, figure)]


def landscape(result: Mapping[str, Any]) -> Panel | None:
  """The loss on a plane of random directions, a panel for each model on one scale."""
  models = [m for m in result["models"] if m.get("landscape")]
  if not models:
    return None
  planes = [m["landscape"]["plane"] for m in models]
  rise = {m["name"]: _mean_rise(m["landscape"]["plane"]) for m in models}
  read = (
    "The loss on a plane through the trained weights (centre), spanned by two random directions in which every filter "
    "has its own length; 1 is one such length. Colours are logarithmic and shared."
  )
  shows = f"Mean rise over the plane: {ranking(rise, 2)}."
  figure = charts.landscapes(planes, models[0]["landscape"]["steps"], [m["name"] for m in models])
  return Panel("landscape", "Loss landscape", read, shows, figure)


def _mean_rise(plane: list[list[float | None]]) -> float | None:
  centre = plane[len(plane) // 2][len(plane) // 2]
  values = [v for row in plane for v in row if v is not None]
  return sum(values) / len(values) - centre if centre is not None and values else None


def sharpness_table(result: Mapping[str, Any], marks: Marks) -> Table | None:
  """Sharpness in a ball, plain and scale-invariant, the Gauss-Newton trace, and the largest eigenvalue."""
  models = [m for m in result["models"] if m.get("landscape")]
  if not models:
    return None
  rows = []
  for m in models:
    ball, ggn = m["landscape"]["sharpness"], m["landscape"]["ggn"]
    digits = error_digits(ggn["stderr"])
    top = (m.get("eigenvalues") or {}).get("values")
    rows.append(
      [
        Cell(m["name"], mark=marks[m["name"]]),
        *(Cell(number(ball[k]["value"]), f"radius {ball[k]['rho']:g}") for k in ("plain", "adaptive")),
        Cell(number(ggn["trace"], digits), f"± {number(ggn['stderr'], digits)}"),
        Cell(number(top[0]) if top else MISSING),
      ]
    )
  columns = ["Model", "Sharpness (SAM)", "Scale-invariant (ASAM)", "Gauss-Newton trace", "Largest eigenvalue"]
  note = (
    "Sharpness: the largest rise of the loss found within the radius of the weights, by one step of ascent, a lower "
    "bound; the scale-invariant one measures the radius in units of each weight. The Gauss-Newton trace is the part of "
    "the Hessian's that does not depend on the labels; its second line is the standard error over probes."
  )
  return Table("Flatness in other measures", columns, rows, frozenset(range(1, 5)), note)


def curvature_panels(result: Mapping[str, Any], marks: Marks) -> list[Panel]:
  """All further figures of curvature that the result has."""
  panels = [per_type(result, marks), per_head(result, marks), *eigenvalues(result, marks), landscape(result)]
  return [p for p in panels if p]
