"""The figures of a study over seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from jaxkd.report import plots
from jaxkd.report.figures import Marks, Panel, mean, ranking, widest_gap
from jaxkd.report.plots import Guide, Row, Series
from jaxkd.report.style import PAPER_WIDTH, term_marks
from jaxkd.report.text import finite, interval, listing, number, percent, plural, slugs

POINTS = 400  # a curve is drawn with at most this many points
CURVES = (
  (
    "train_loss",
    "Training loss",
    "training loss",
    "Total training loss (every term times its weight). Arms have different terms, so compare the shapes, "
    "not the heights.",
  ),
  (
    "validation_accuracy",
    "Validation accuracy",
    "validation accuracy (%)",
    "Accuracy on the validation images, from which the checkpoints are chosen; the test images play no part.",
  ),
)


def shown(value: Any, metric: Mapping[str, Any]) -> float | None:
  """A stored value in the unit the report shows."""
  return value * metric["scale"] if finite(value) else None


def axis_name(metric: Mapping[str, Any]) -> str:
  """`Accuracy (cls head), %`."""
  return f"{metric['label']}, {metric['unit']}" if metric["unit"] else metric["label"]


def _direction(metric: Mapping[str, Any]) -> str:
  return f", → {metric['higher_is']}" if metric.get("higher_is") else ""


def _arm_rows(study: Mapping[str, Any], metric: Mapping[str, Any], marks: Marks) -> list[Row]:
  items = []
  for arm in study["arms"].values():
    summary = arm["summary"].get(metric["key"])
    dots = [shown(run.get(metric["key"]), metric) for run in arm["runs"]]
    if summary is None or not any(finite(d) for d in dots):
      continue
    value, low, high = (shown(summary[k], metric) for k in ("mean", "low", "high"))
    text = number(value, metric["digits"])
    if finite(low) and finite(high):
      text += " " + interval(low, high, metric["digits"])
    items.append(Row(arm["label"], marks[arm["label"]], value, low, high, text, dots))
  return items


def seeds(
  study: Mapping[str, Any], metric: Mapping[str, Any], marks: Marks, *, uniform: float | None = None
) -> Panel | None:
  """One metric per arm: every seed as a dot, the mean and its interval."""
  items = _arm_rows(study, metric, marks)
  if not items:
    return None
  count = plural(len(study["seeds"]), "seed")
  read = (
    f"{metric['label']} of every arm. Each pale dot is one seed; the marker above is the mean, the bar its "
    f"95 % t interval over {count}."
  )
  higher = f" Higher is {metric['higher_is']}." if metric.get("higher_is") else ""
  unit = f" {metric['unit']}" if metric["unit"] else ""
  shows = f"Means: {ranking({r.label: r.value for r in items}, metric['digits'], unit)}."
  guides = [Guide(uniform, "uniform attention")] if metric["key"] == "mean_distance" and uniform else []
  figure = plots.rows(items, xlabel=axis_name(metric) + _direction(metric), guides=guides)
  return Panel(f"study_{metric['key']}", metric["label"], read + higher, shows, figure)


def against_baseline(
  study: Mapping[str, Any], metric: str
) -> list[tuple[str, float | None, float | None, float | None, Any]]:
  """Arm, difference arm - baseline, its interval, and the comparison, in the order of the arms."""
  base, found = study["baseline"], {}
  for row in study["comparisons"]:
    if row["metric"] == metric and row["a"] == base:
      found[row["b"]] = (row["mean"], row["low"], row["high"], row)
    elif (
      row["metric"] == metric and row["b"] == base
    ):  # stored the other way round: a - b has the ends swapped
      ends = [-x if finite(x) else None for x in (row["mean"], row["high"], row["low"])]
      found[row["a"]] = (*ends, row)  # type: ignore[assignment]
  return [(arm, *found[arm]) for arm in study["arms"] if arm in found]


def forest(study: Mapping[str, Any], metric: Mapping[str, Any], marks: Marks) -> Panel | None:
  """Paired differences to the baseline with intervals."""
  base = study["arms"][study["baseline"]]["label"]
  items, levels = [], set()
  for arm, *numbers, row in against_baseline(study, metric["key"]):
    value, low, high = (shown(n, metric) for n in numbers)
    label = study["arms"][arm]["label"]
    levels.add(row["level"])
    text = number(value, metric["digits"], sign=True)
    if finite(low) and finite(high):
      text += " " + interval(low, high, metric["digits"], sign=True)
    items.append(Row(label, marks[label], value, low, high, text))
  if not items:
    return None
  level = percent(next(iter(levels))) if len(levels) == 1 else "Holm-adjusted 95 %"
  read = (
    f"{metric['label']}: difference of each arm to {base}, paired by seed, with {level} intervals. A bar "
    "that crosses the line at 0 leaves the sign of the difference open."
  )
  clear = [r.label for r in items if finite(r.low) and finite(r.high) and (r.low > 0 or r.high < 0)]  # type: ignore[operator]
  shows = (
    f"The interval excludes 0 for {listing(clear)}."
    if clear
    else "Every interval includes 0."
    if any(finite(r.low) for r in items)
    else "Too few seeds for an interval."
  )
  unit = "percentage points" if metric["unit"] == "%" else metric["unit"]
  name = f"difference to {base}" + (f" ({unit})" if unit else "") + _direction(metric)
  return Panel(
    f"difference_{metric['key']}",
    f"{metric['label']}, against the baseline",
    read,
    shows,
    plots.rows(items, xlabel=name, zero=True),
  )


def _depth_series(study: Mapping[str, Any], marks: Marks) -> list[Series]:
  items = []
  for arm in study["arms"].values():
    if per_seed := arm.get("distance_per_layer"):
      columns = [[v for v in column if finite(v)] for column in zip(*per_seed, strict=True)]
      low, high = [min(c, default=None) for c in columns], [max(c, default=None) for c in columns]
      x, y = list(range(len(columns))), [mean(c) for c in columns]
      items.append(Series(arm["label"], marks[arm["label"]], x, y, low, high, per_seed))
  return items


def depth(study: Mapping[str, Any], marks: Marks, *, uniform: float | None = None) -> Panel | None:
  """Attention distance over depth per arm, over seeds."""
  items = _depth_series(study, marks)
  if not items:
    return None
  read = (
    "Mean attention distance (patches) of each block, from 0, the first. Thick lines are means over seeds, "
    "thin lines the seeds themselves, bands span the lowest to the highest seed. Higher is more global."
  )
  shows = f"Averaged over blocks: {ranking({s.label: mean(s.y) for s in items}, 2)}.{widest_gap(items, 2)}"
  guides = [Guide(uniform, f"uniform attention ({number(uniform, 2)})")] if uniform else []
  figure = plots.lines(
    items,
    xlabel="block (0 = first)",
    ylabel="mean attention distance (patches)",
    floor=0.0,
    index=True,
    guides=guides,
  )
  return Panel("study_distance_per_layer", "Attention distance over depth, all seeds", read, shows, figure)


def thinned(values: Sequence[Any]) -> list[float | None]:
  """At most POINTS values: means over equal stretches of the finite ones."""
  size = -(-len(values) // POINTS)
  return list(values) if size <= 1 else [mean(values[k : k + size]) for k in range(0, len(values), size)]


def curve(label: str, mark: Any, steps: Sequence[float], curve: Mapping[str, Any], scale: float) -> Series:
  steps = curve.get("step") or steps

  def column(key: str) -> list[float | None] | None:
    values = curve.get(key)
    return None if values is None else [v * scale if v is not None else None for v in thinned(values)]

  y = column("mean") or []
  return Series(label, mark, [v or 0.0 for v in thinned(steps)][: len(y)], y, column("low"), column("high"))


def curve_panels(study: Mapping[str, Any], marks: Marks) -> list[Panel]:
  """Training loss and validation accuracy of all arms."""
  panels = []
  for key, title, ylabel, read in CURVES:
    items = []
    for arm, curves in (study.get("curves") or {}).items():
      if curves.get(key) and any(map(finite, curves[key]["mean"])):
        label = study["arms"][arm]["label"]
        scale = 100.0 if key == "validation_accuracy" else 1.0
        items.append(curve(label, marks[label], curves["step"], curves[key], scale))
    if not items:
      continue
    band = (
      " Lines are means over seeds, bands their intervals." if any(s.low is not None for s in items) else ""
    )
    last = {s.label: next((v for v in reversed(s.y) if finite(v)), None) for s in items}
    digits, unit = (1, " %") if key == "validation_accuracy" else (3, "")
    figure = plots.lines(items, xlabel="step", ylabel=ylabel, markers=False)
    panels.append(
      Panel(f"curves_{key}", title, read + band, f"At the end: {ranking(last, digits, unit)}.", figure)
    )
  return panels


def share_panels(study: Mapping[str, Any]) -> list[Panel]:
  """Values and gradient shares of the terms, for every arm with more than one term."""
  found = {a: c for a, c in (study.get("curves") or {}).items() if len(c.get("terms") or {}) > 1}
  terms = term_marks(t for c in found.values() for t in c["terms"])
  panels = []
  for (arm, curves), file in zip(found.items(), slugs(list(found)), strict=True):
    label, steps = study["arms"][arm]["label"], curves["step"]
    values = {n: (steps, v) for n, v in curves["terms"].items()}
    shares = {n: (steps, v) for n, v in (curves.get("gradient_share") or {}).items()}
    panels.append(terms_panel(f"terms_{file}", f"Loss terms: {label}", term_series(values, terms)))
    if items := term_series(shares, terms):
      panels.append(share_panel(f"gradient_share_{file}", f"Gradient shares: {label}", items))
  return panels


def term_series(columns: Mapping[str, tuple[Sequence[float], Sequence[Any]]], terms: Marks) -> list[Series]:
  """One line per term with any value; gaps are dropped (gradient norms are measured in some rows only)."""
  items = []
  for name, (steps, values) in columns.items():
    kept = [(s, v) for s, v in zip(steps, values, strict=True) if finite(v)]
    if kept:
      items.append(curve(name, terms[name], [s for s, _ in kept], {"mean": [v for _, v in kept]}, 1.0))
  return items


def terms_panel(key: str, title: str, items: Sequence[Series]) -> Panel:
  values = [v for s in items for v in s.y if v is not None]
  log = bool(values) and min(values) > 0 and max(values) > 100 * min(values)
  last = {s.label: s.y[-1] for s in items}
  read = "Value of every loss term before its weight" + (", on a logarithmic axis." if log else ".")
  figure = plots.lines(items, xlabel="step", ylabel="value of the term", log=log, markers=False)
  return Panel(key, title, read, f"At the end: {ranking(last, 3)}.", figure)


def share_panel(key: str, title: str, items: Sequence[Series]) -> Panel:
  read = (
    "Norm of the gradient that each weighted loss term sends to the student, over the sum of all terms' "
    "norms. A term near 0 does nothing, whatever its value."
  )
  average = {s.label: mean(s.y) for s in items}
  figure = plots.lines(items, xlabel="step", ylabel="gradient share", floor=0.0, markers=False)
  return Panel(key, title, read, f"Averaged over training: {ranking(average, 3)}.", figure)


def summary(study: Mapping[str, Any], marks: Marks, *, uniform: float | None = None) -> Figure:
  """Four panels for a paper: accuracy, attention distance over depth, curvature, CLS dispersion."""
  width = PAPER_WIDTH / 2
  known = {m["key"]: m for m in study["metrics"]}
  wanted = [known[k] for k in ("accuracy_cls", "hessian_trace", "cls_dispersion") if k in known]
  wanted += [m for m in study["metrics"] if m not in wanted]
  depth_items = _depth_series(study, marks)
  guide = [Guide(uniform, "uniform attention")] if uniform and depth_items else []
  with plots.paper(len(study["arms"])) as (figure, axes):
    for one, metric in zip([axes[0], *axes[2:]], wanted, strict=False):
      plots.draw_points(one, _arm_rows(study, metric, marks), xlabel=axis_name(metric), width=width)
    if depth_items:
      plots.draw_lines(axes[1], depth_items, guides=guide)
      plots.finish_lines(
        axes[1],
        depth_items,
        xlabel="block",
        ylabel="mean attention distance (patches)",
        index=True,
        width=width,
        floor=0,
      )
    plots.legend(
      figure, [(a["label"], marks[a["label"]]) for a in study["arms"].values()], guide, width=PAPER_WIDTH
    )
  return figure


def study_panels(
  study: Mapping[str, Any], marks: Marks, *, uniform: float | None = None
) -> dict[str, list[Panel]]:
  """All figures of a study by section: accuracy, locality, other metrics, differences, training, shares."""
  accuracy = [m for m in study["metrics"] if m["key"].startswith("accuracy")]
  local = [m for m in study["metrics"] if m["key"] in {"mean_distance", "cls_dispersion", "collapsed_heads"}]
  rest = [m for m in study["metrics"] if m not in accuracy and m not in local]

  def each(metrics: Sequence[Mapping[str, Any]]) -> list[Panel]:
    return [p for m in metrics if (p := seeds(study, m, marks, uniform=uniform))]

  over_depth = depth(study, marks, uniform=uniform)
  return {
    "accuracy": each(accuracy),
    "locality": [*each(local), *([over_depth] if over_depth else [])],
    "other": each(rest),
    "differences": [p for m in study["metrics"] if (p := forest(study, m, marks))],
    "training": curve_panels(study, marks),
    "shares": share_panels(study),
  }
