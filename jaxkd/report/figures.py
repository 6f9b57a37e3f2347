"""The figures of a forensics result, each with its title, reading instructions, finding and text
alternative."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from jaxkd.report import plots
from jaxkd.report.plots import Guide, Row, Series
from jaxkd.report.style import PAPER_WIDTH, Mark
from jaxkd.report.text import error_digits, finite, interval, listing, number, slugs

Marks = Mapping[str, Mark]
DISTANCE = "mean attention distance"


@dataclass(frozen=True)
class Panel:
  """One figure and its words: `read` is what is drawn and how to read it, `shows` what it looks like here."""

  key: str
  title: str
  read: str
  shows: str
  figure: Figure

  @property
  def alt(self) -> str:
    return f"{self.title}. {self.shows}"


def mean(values: Sequence[float | None]) -> float | None:
  """The mean of the finite values, None if there is none."""
  kept = [v for v in values if finite(v) and v is not None]
  return sum(kept) / len(kept) if kept else None


def flat(matrix: Sequence[Sequence[Any]]) -> list[Any]:
  """The entries of a matrix, row by row."""
  return [v for row in matrix for v in row]


def ranking(values: Mapping[str, float | None], digits: int | None, unit: str = "") -> str:
  """`A 1.2 < B 2.3 ≈ C 2.3` (≈ between values that round to the same); only both ends of more than four."""
  order = sorted((v, k) for k, v in values.items() if v is not None and finite(v))
  shown = [number(v, digits) + unit for v, _ in order]
  words = [f"{name} {text}" for text, (_, name) in zip(shown, order, strict=True)]
  if not words:
    return "no value could be computed"
  if len(words) > 4:
    return f"lowest {words[0]}, highest {words[-1]}, {len(words) - 2} more between"
  return words[0] + "".join(
    (" ≈ " if a == b else " < ") + w for a, b, w in zip(shown, shown[1:], words[1:], strict=False)
  )


def overlap(intervals: Mapping[str, tuple[float | None, float | None, float | None]]) -> str:
  """Whether the intervals (value, low, high) of the lowest and the highest model overlap, as a sentence."""
  kept = sorted((v, k) for k, v in intervals.items() if all(finite(x) for x in v))
  if len(kept) < 2:
    return ""
  (lowest, a), (highest, b) = kept[0], kept[-1]
  verb = "overlap" if lowest[2] >= highest[1] else "do not overlap"  # type: ignore[operator]
  return f"The intervals of {a} and {b} {verb}."


def _with_attention(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
  return [m for m in result["models"] if m.get("attention")]


def _left_out(result: Mapping[str, Any], key: str, why: str) -> str:
  names = [m["name"] for m in result["models"] if not m.get(key)]
  return f" Left out, because {why}: {listing(names)}." if names else ""


def distance_scale(
  models: Sequence[Mapping[str, Any]],
) -> tuple[Callable[[Mapping[str, Any]], float], str, float]:
  """The factor per model, the unit, and uniform attention in it: patches on one grid, a ratio on several."""
  uniform = {m["name"]: m["attention"]["uniform_distance"] for m in models}
  if len({round(u, 6) for u in uniform.values()}) == 1:
    return (lambda m: 1.0), "patches", next(iter(uniform.values()))
  return (lambda m: 1.0 / uniform[m["name"]]), "times uniform attention", 1.0


def accuracy(result: Mapping[str, Any], marks: Marks) -> Panel | None:
  """The cls accuracy of every model with its Wilson interval, other heads as dots."""
  found: dict[str, Any] = {}
  items = []
  for m in result["models"]:
    if not (entry := m["accuracy"].get("cls")):
      continue
    value, low, high = (100 * entry[k] if finite(entry[k]) else None for k in ("value", "low", "high"))
    others = [100 * e["value"] for k, e in m["accuracy"].items() if k != "cls" and finite(e["value"])]
    found[m["name"]] = (value, low, high)
    items.append(
      Row(
        m["name"], marks[m["name"]], value, low, high, f"{number(value, 1)} {interval(low, high, 1)}", others
      )
    )
  if not items:
    return None
  headless = [m["name"] for m in result["models"] if not m["accuracy"].get("cls")]
  read = (
    f"Share of correctly classified {result['data']['split']} images ({number(result['data']['images'])}) "
    "by the cls head, "
    "with Wilson 95 % intervals over images; pale dots below are the other heads of the same model."
    + (f" Left out, because they have no cls head: {listing(headless)}." if headless else "")
  )
  shows = f"Accuracy: {ranking({k: v[0] for k, v in found.items()}, 1, ' %')}. {overlap(found)}"
  return Panel("accuracy", "Accuracy", read, shows, plots.rows(items, xlabel="accuracy (%), → better"))


def locality_spectrum(result: Mapping[str, Any], marks: Marks) -> Panel | None:
  """Every attention head of every model on one axis from local to global."""
  models = _with_attention(result)
  if not models:
    return None
  factor, unit, uniform = distance_scale(models)
  items, means, collapsed = [], {}, {}
  for m in models:
    heads = [v * factor(m) for v in flat(m["attention"]["mean_distance"]) if finite(v)]
    means[m["name"]] = mean(heads)
    collapsed[m["name"]] = sum(map(bool, flat(m["attention"]["collapsed"])))
    items.append(
      Row(
        m["name"], marks[m["name"]], means[m["name"]], text=f"mean {number(means[m['name']], 2)}", dots=heads
      )
    )
  read = (
    f"Each pale dot is one attention head: how far, on average, a patch looks ({unit}); the large marker "
    "is the mean of all heads. "
    "Left is local (0: a patch sees itself only), right is global. The dashed lines are uniform attention "
    f"({number(uniform, 2)}) and the bound below which a head counts as collapsed."
    + _left_out(result, "attention", "they have no attention")
  )
  total = {m["name"]: len(flat(m["attention"]["mean_distance"])) for m in models}
  counts = (
    listing(f"{collapsed[k]} of {total[k]} in {k}" for k in collapsed)
    if len(models) <= 4
    else str(sum(collapsed.values()))
  )
  shows = f"Mean over heads: {ranking(means, 2)}. Collapsed heads: {counts}."
  guides = [Guide(0.3626 * uniform, "collapsed"), Guide(uniform, "uniform")]
  figure = plots.rows(items, xlabel=f"{DISTANCE} of a head ({unit})", guides=guides)
  return Panel("locality_spectrum", "Locality spectrum: where every head looks", read, shows, figure)


def _layer_series(models: Sequence[Mapping[str, Any]], marks: Marks) -> tuple[list[Series], str, float]:
  factor, unit, uniform = distance_scale(models)
  items = []
  for m in models:
    scale, layers = factor(m), m["attention"]["layer_distance"]
    y = [v * scale if finite(v) else None for v in layers["mean"]]
    half = [2 * scale * (e or 0.0) for e in layers["stderr"]]
    low = [v - h if v is not None else None for v, h in zip(y, half, strict=True)]
    high = [v + h if v is not None else None for v, h in zip(y, half, strict=True)]
    items.append(Series(m["name"], marks[m["name"]], list(range(len(y))), y, low, high))
  return items, unit, uniform


def widest_gap(items: Sequence[Series], digits: int, place: str = "block") -> str:
  """Where the lines are furthest apart, as a sentence; empty for one line, lines of different length, or numbers
  that are equal as they are shown."""
  if len(items) < 2 or len({len(s.y) for s in items}) > 1:
    return ""

  def ends(k: int) -> tuple[tuple[float, str], tuple[float, str]] | None:
    column = sorted((s.y[k], s.label) for s in items if s.y[k] is not None)
    return (column[0], column[-1]) if len(column) > 1 else None  # type: ignore[return-value]

  gaps = [(e[1][0] - e[0][0], k) for k in range(len(items[0].y)) if (e := ends(k))]
  if not gaps:
    return ""
  k = max(gaps)[1]
  (low, a), (high, b) = ends(k)  # type: ignore[misc]
  if number(low, digits) == number(high, digits):
    return ""
  return f" They differ most at {place} {k}: {a} {number(low, digits)}, {b} {number(high, digits)}."


def layer_progression(result: Mapping[str, Any], marks: Marks) -> Panel | None:
  """Mean attention distance over depth."""
  models = _with_attention(result)
  if not models:
    return None
  items, unit, uniform = _layer_series(models, marks)
  read = (
    f"Mean attention distance ({unit}) of each block, averaged over heads and images; bands are two "
    "standard errors over "
    "images and are often thinner than the line. Higher is more global; the dashed line is uniform "
    "attention. "
    "Blocks count from 0 (the first)." + _left_out(result, "attention", "they have no attention")
  )
  shows = f"Averaged over blocks: {ranking({s.label: mean(s.y) for s in items}, 2)}.{widest_gap(items, 2)}"
  figure = plots.lines(
    items,
    xlabel="block (0 = first)",
    ylabel=f"{DISTANCE} ({unit})",
    floor=0.0,
    index=True,
    guides=[Guide(uniform, f"uniform attention ({number(uniform, 2)})")],
  )
  return Panel("layer_progression", "Attention distance over depth", read, shows, figure)


def per_layer(
  result: Mapping[str, Any], marks: Marks, key: str, title: str, ylabel: str, read: str
) -> Panel | None:
  """The mean over heads of one attention statistic per block."""
  models = [m for m in _with_attention(result) if m["attention"].get(key)]
  if not models:
    return None
  items = []
  for m in models:
    y = [mean(row) for row in m["attention"][key]]
    items.append(Series(m["name"], marks[m["name"]], list(range(len(y))), y))
  shows = f"Averaged over blocks: {ranking({s.label: mean(s.y) for s in items}, 2)}.{widest_gap(items, 2)}"
  figure = plots.lines(items, xlabel="block (0 = first)", ylabel=ylabel, floor=0.0, index=True)
  return Panel(key, title, read, shows, figure)


def trace_digits(result: Mapping[str, Any]) -> int | None:
  """Decimals for a list of traces: those of the smallest standard error."""
  return error_digits(
    min((m["hessian"]["stderr"] for m in result["models"] if m.get("hessian")), default=None)
  )


def _traces(result: Mapping[str, Any], marks: Marks) -> list[Row]:
  items = []
  for m in result["models"]:
    if h := m.get("hessian"):
      low, high = h["trace"] - 2 * h["stderr"], h["trace"] + 2 * h["stderr"]
      digits = error_digits(h["stderr"])
      text = f"{number(h['trace'], digits)} ± {number(h['stderr'], digits)}"
      items.append(Row(m["name"], marks[m["name"]], h["trace"], low, high, text))
  return items


def hessian_trace(result: Mapping[str, Any], marks: Marks) -> Panel | None:
  """The Hessian trace of every model with two standard errors."""
  items = _traces(result, marks)
  if not items:
    return None
  budgets = {(m["hessian"]["probes"], m["hessian"]["images"]) for m in result["models"] if m.get("hessian")}
  budget = listing(f"{number(p)} probes on {number(i)} images" for p, i in sorted(budgets))
  read = (
    f"Trace of the Hessian of the evaluation loss over all parameters (Hutchinson, {budget}). Numbers are "
    "estimate ± one standard error over probes, bars are two. A larger trace is a sharper minimum."
    + _left_out(result, "hessian", "no trace was computed for them")
  )
  found = {r.label: (r.value, r.low, r.high) for r in items}
  shows = f"Trace: {ranking({r.label: r.value for r in items}, trace_digits(result))}. {overlap(found)}"
  return Panel(
    "hessian_trace", "Loss curvature", read, shows, plots.rows(items, xlabel="Hessian trace, ← flatter")
  )


def depth_order(networks: Sequence[Sequence[str]]) -> list[str]:
  """The parts of all networks from the input to the head, blocks and stages merged by relative depth."""
  place: dict[str, tuple[int, float, str]] = {}
  for parts in networks:
    numbered = sorted(p for p in parts if re.match(r"(block|stage|layer)s?_?\d", p))
    for part in parts:
      last = re.match(r"head|fc|classifier", part)
      rank = 1 if part in numbered else 3 if last else 2 if part.startswith("norm") else 0
      relative = (numbered.index(part) + 1) / len(numbered) if rank == 1 else 0.0
      place.setdefault(part, (rank, relative, part))
  return sorted(place, key=place.__getitem__)


def hessian_per_block(result: Mapping[str, Any], marks: Marks) -> Panel | None:
  """The Hessian trace split over the parts of every model."""
  models = [m for m in result["models"] if m.get("hessian") and m["hessian"].get("per_block")]
  if not models:
    return None
  categories = depth_order([list(m["hessian"]["per_block"]) for m in models])
  items = []
  for m in models:
    cells = [m["hessian"]["per_block"].get(c, (None, None)) for c in categories]
    items.append((m["name"], marks[m["name"]], [(v, 2 * e if finite(e) else None) for v, e in cells]))
  tops = []
  for name, _, cells in items[:4]:
    best = max((v, c) for (v, _), c in zip(cells, categories, strict=True) if finite(v))
    tops.append(f"{best[1]} in {name} ({number(best[0], trace_digits(result))})")
  read = (
    "The trace split over the parts of the network, from the input (top) to the head (bottom): the "
    "diagonal blocks of the Hessian, "
    "which add up to the whole trace. Bars are two standard errors over probes."
  )
  figure = plots.parts(categories, items, xlabel="Hessian trace of the part")
  return Panel(
    "hessian_per_block", "Curvature by part", read, f"The largest share is {listing(tops)}.", figure
  )


def cka_panels(result: Mapping[str, Any]) -> Iterator[Panel]:
  """One heatmap per CKA matrix, pairs in the order they come in."""
  names = [m["name"] for m in result["models"]]
  files = dict(zip(names, slugs(names), strict=True))
  for entry in result["cka"]:
    a, b = entry["a"], entry["b"]
    read = (
      f"CKA ({entry['estimator']}, {number(entry['images'])} images) between the layers of {a} (rows) and "
      f"of {b} (columns): dark is 1 (the same up to rotation and scale), pale is 0 and below (unrelated). "
      + (
        "A dark block is a stretch of layers that say the same."
        if a == b
        else "A dark diagonal means equal depth, equal content."
      )
    )
    figure = plots.heatmap(
      entry["matrix"],
      rows_name=a,
      columns_name=b,
      row_labels=entry["layers_a"],
      column_labels=entry["layers_b"],
      value_name="CKA",
    )
    title = f"Similarity inside {a}" if a == b else f"Similarity of {a} and {b}"
    key, kernel = f"cka_{files[a]}__{files[b]}", entry.get("kernel", "linear")
    if kernel != "linear":
      key, title = f"{key}__{kernel}", f"{title} ({kernel.upper()} kernel)"
    yield Panel(key, title, read, _cka_finding(entry), figure)


def _cka_finding(entry: Mapping[str, Any]) -> str:
  matrix, rows, columns = entry["matrix"], entry["layers_a"], entry["layers_b"]
  cells = [(v, i, j) for i, row in enumerate(matrix) for j, v in enumerate(row) if finite(v)]
  if entry["a"] == entry["b"]:
    cells = [c for c in cells if c[1] != c[2]]
  if not cells:
    return "There is a single layer to compare."

  def place(cell: tuple[float, int, int]) -> str:
    return (
      f"{plots.short_layer(rows[cell[1]])} with {plots.short_layer(columns[cell[2]])} ({number(cell[0], 2)})"
    )

  average = number(mean([c[0] for c in cells]), 2)
  if entry["a"] == entry["b"]:
    return f"Different layers agree by {average} on average; the least similar are {place(min(cells))}."
  last = number(matrix[-1][-1], 2)
  most = place(max(cells))
  return f"The average is {average}, the last layers agree by {last}, and the most similar are {most}."


def summary(result: Mapping[str, Any], marks: Marks) -> Figure:
  """Four panels for a paper: attention distance and CLS dispersion over depth, curvature, accuracy."""
  models = _with_attention(result)
  width = PAPER_WIDTH / 2
  guide: list[Guide] = []
  with plots.paper(len(result["models"])) as (figure, axes):
    if models:
      items, unit, uniform = _layer_series(models, marks)
      guide = [Guide(uniform, "uniform attention")]
      plots.draw_lines(axes[0], items, guides=guide)
      plots.finish_lines(
        axes[0], items, xlabel="block", ylabel=f"{DISTANCE} ({unit})", index=True, width=width, floor=0
      )
      means = [
        Series(m["name"], marks[m["name"]], list(range(len(rows))), [mean(r) for r in rows])
        for m in models
        if (rows := m["attention"].get("cls_dispersion"))
      ]
      plots.draw_lines(axes[1], means)
      plots.finish_lines(
        axes[1], means, xlabel="block", ylabel="CLS dispersion (patches²)", index=True, width=width, floor=0
      )
    plots.draw_points(
      axes[2], _traces(result, marks), xlabel="Hessian trace, ± 2 standard errors", width=width
    )
    points = []
    for m in result["models"]:
      if cls := m["accuracy"].get("cls"):
        value, low, high = (100 * cls[k] if finite(cls[k]) else None for k in ("value", "low", "high"))
        points.append(Row(m["name"], marks[m["name"]], value, low, high))
    plots.draw_points(axes[3], points, xlabel="accuracy of the cls head (%), 95 % interval", width=width)
    plots.legend(figure, [(m["name"], marks[m["name"]]) for m in result["models"]], guide, width=PAPER_WIDTH)
  return figure


def forensics_panels(result: Mapping[str, Any], marks: Marks) -> dict[str, list[Panel]]:
  """All figures by section: overview, attention, curvature, similarity, self_similarity."""
  attention = [
    locality_spectrum(result, marks),
    layer_progression(result, marks),
    per_layer(
      result,
      marks,
      "cls_dispersion",
      "How widely the class token looks",
      "CLS dispersion (patches²)",
      "Spatial second moment of the class token's attention over the patches, averaged over heads and "
      "images: small means it looks at one place, large means at the whole image (uniform 8 × 8: 10.5).",
    ),
    per_layer(
      result,
      marks,
      "entropy",
      "Attention entropy",
      "entropy (nats)",
      "Mean entropy of the attention rows in nats, averaged over heads and images: low means that few "
      "patches are looked at, high means many (uniform over n patches: ln n).",
    ),
  ]
  curvature = [hessian_trace(result, marks), hessian_per_block(result, marks)]
  similarity = list(cka_panels(result))
  own = {f"cka_{s}__{s}{k}" for s in slugs([m["name"] for m in result["models"]]) for k in ("", "__rbf")}
  return {
    "overview": [p for p in [accuracy(result, marks)] if p],
    "attention": [p for p in attention if p],
    "curvature": [p for p in curvature if p],
    "similarity": [p for p in similarity if p.key not in own],
    "self_similarity": [p for p in similarity if p.key in own],
  }
