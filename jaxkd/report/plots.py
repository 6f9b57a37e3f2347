"""The kinds of picture a report is made of: labelled rows, lines over an index, a matrix, values per part.

Nothing here knows what the numbers mean; `figures` does. Every function returns an unsaved matplotlib Figure.
"""

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from jaxkd.report.style import INK, PAPER_WIDTH, RC, SIZE, SMALL, SOFT, WIDTH, Mark, text_width, wrap
from jaxkd.report.text import finite

LINE = 0.17  # inches from one line of small text to the next

styled = matplotlib.rc_context(RC)  # a decorator: text and ticks read their settings when they are made


@dataclass(frozen=True)
class Row:
  """One labelled strip: a marker with an interval, its numbers in words, and further values as dots."""

  label: str
  mark: Mark
  value: float | None
  low: float | None = None
  high: float | None = None
  text: str = ""
  dots: Sequence[float | None] = ()


@dataclass(frozen=True)
class Series:
  """One line with an optional band around it."""

  label: str
  mark: Mark
  x: Sequence[float]
  y: Sequence[float | None]
  low: Sequence[float | None] | None = None
  high: Sequence[float | None] | None = None
  thin: Sequence[Sequence[float | None]] = field(default=())


@dataclass(frozen=True)
class Guide:
  """A dashed reference line."""

  value: float
  label: str


def _nan(values: Sequence[float | None]) -> np.ndarray:
  return np.array([v if finite(v) else math.nan for v in values], float)


def tick_text(value: float, position: int | None = None) -> str:
  """A short tick label: thousands and millions as k and M, tiny values in powers of ten."""
  for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
    if abs(value) >= size:
      return f"{value / (1e3 if suffix == 'k' else size):.4g}{suffix}".replace("-", "−")
  text = "0" if abs(value) < 1e-12 else f"{value:.4g}"
  return re.sub(r"e([+-])0*(\d+)", r"e\1\2", text).replace("-", "−")


def plain_ticks(axes: Axes, which: str = "both", *, count: int = 5, integer: bool = False) -> None:
  for name in ("x", "y") if which == "both" else (which,):
    axis = getattr(axes, f"{name}axis")
    axis.set_major_locator(MaxNLocator(count, integer=integer, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(tick_text))


def draw_row(axes: Axes, row: Row, y: float, *, dots_below: float = 0.11) -> None:
  """The interval and marker of a row at height y, its dots a little below."""
  color = row.mark.color
  if row.dots:
    spread = (np.arange(len(row.dots)) * 0.618034 % 1 - 0.5) * (0.10 if len(row.dots) > 10 else 0)
    axes.plot(
      _nan(row.dots), y + dots_below + spread, ls="", marker="o", ms=4.2, color=color, alpha=0.45, mec="none"
    )
  low, value, high = _nan([row.low, row.value, row.high])  # what is missing is not drawn
  axes.plot([low, high], [y, y], color=color, lw=2.2, solid_capstyle="butt")
  axes.plot([low, high], [y, y], color=color, ls="", marker="|", ms=8, mew=1.6)
  axes.plot([value], [y], color=color, ls="", marker=row.mark.marker, ms=7.5, mec="white", mew=0.8, zorder=4)


@styled
def rows(items: Sequence[Row], *, xlabel: str, guides: Sequence[Guide] = (), zero: bool = False) -> Figure:
  """Rows from top to bottom, label and numbers above each strip, so that long names have room."""
  side, inner = 0.22, WIDTH - 0.44
  labels, heights = [], []
  for row in items:
    room = inner * 72 - (text_width(row.text, SMALL) + 14 if row.text else 0)
    lines = wrap(row.label, max(room, 60), SMALL, lines=4)
    labels.append(lines)
    heights.append(LINE * len(lines) + (0.48 if row.dots else 0.36))
  guide_lines = 1 if guides else 0
  below = wrap(xlabel, inner * 72, SMALL, lines=2)
  top, bottom, total = 0.06 + 0.24 * guide_lines, 0.6 + 0.15 * (len(below) - 1), sum(heights) + 0.06
  figure = Figure(figsize=(WIDTH, top + total + bottom))
  axes = figure.add_axes(
    (side / WIDTH, bottom / (top + total + bottom), inner / WIDTH, total / (top + total + bottom))
  )
  axes.set_ylim(total, 0)
  start = 0.0
  for k, (row, lines, height) in enumerate(zip(items, labels, heights, strict=True)):
    # White behind the words, over grid and guides: a line through a label makes both hard to read.
    axes.axhspan(start, start + 0.07 + LINE * len(lines), color="white", lw=0, zorder=2.2)
    if k:
      axes.axhline(start, color=RC["grid.color"], lw=0.8, zorder=2.3)
    place = axes.get_yaxis_transform()
    for n, line in enumerate(lines):
      axes.text(0, start + 0.02 + LINE * (n + 1), line, transform=place, fontsize=SMALL)
    if row.text:
      axes.text(1, start + 0.02 + LINE, row.text, transform=place, fontsize=SMALL, ha="right")
    draw_row(axes, row, start + LINE * len(lines) + 0.22)
    start += height
  _row_guides(axes, guides)
  if zero:
    axes.axvline(0, color=INK, lw=1.1)
  axes.margins(x=0.06)
  plain_ticks(axes, "x")
  axes.yaxis.set_visible(False)
  axes.spines["left"].set_visible(False)
  axes.set_xlabel("\n".join(below), fontsize=SMALL, color=SOFT)
  return figure


def _row_guides(axes: Axes, guides: Sequence[Guide]) -> None:
  """Vertical dashed lines with their labels above the axes, on the side of the line where there is room."""
  for guide in guides:
    axes.axvline(guide.value, color=SOFT, lw=1.1, ls=(0, (4, 3)))
  low, high = axes.get_xlim()
  for guide in guides:
    left = (guide.value - low) / (high - low) > 0.5
    axes.annotate(
      guide.label + " ▸" if left else "◂ " + guide.label,
      (guide.value, 1),
      xycoords=("data", "axes fraction"),
      xytext=(-1 if left else 1, 3),
      textcoords="offset points",
      ha="right" if left else "left",
      va="bottom",
      fontsize=SMALL,
      color=SOFT,
    )


def draw_lines(
  axes: Axes, items: Sequence[Series], *, guides: Sequence[Guide] = (), markers: bool = True
) -> None:
  """Lines with bands, thin companions and dashed guides."""
  for item in items:
    x, y = np.asarray(item.x, float), _nan(item.y)
    kept = np.isfinite(y)
    if item.low is not None and item.high is not None:
      axes.fill_between(
        x[kept], _nan(item.low)[kept], _nan(item.high)[kept], color=item.mark.color, alpha=0.16, lw=0
      )
    for other in item.thin:
      axes.plot(x, _nan(other), color=item.mark.color, lw=0.8, alpha=0.4)
    every = 1 if markers else max(1, len(x[kept]) // 6)
    axes.plot(
      x[kept],
      y[kept],
      color=item.mark.color,
      ls=item.mark.dash,
      lw=1.8,
      marker=item.mark.marker,
      ms=5.5,
      mec="white",
      mew=0.7,
      markevery=every,
    )
  for guide in guides:
    axes.axhline(guide.value, color=SOFT, lw=1.1, ls=(0, (4, 3)))


def legend(
  figure: Figure, entries: Sequence[tuple[str, Mark]], guides: Sequence[Guide] = (), *, width: float
) -> float:
  """A legend below the axes with wrapped labels, in as many columns as fit; returns its height in inches."""
  room = width * 72 - 12
  names = [e[0] for e in entries] + [g.label for g in guides]
  widest = max(text_width(n, SMALL) for n in names) + 38
  columns = max(1, min(len(names), int(room // widest)))
  texts = ["\n".join(wrap(n, room / columns - 38, SMALL)) for n in names]
  handles = [
    Line2D([], [], color=m.color, ls=m.dash, lw=1.8, marker=m.marker, ms=6, mec="white", mew=0.7)
    for _, m in entries
  ] + [Line2D([], [], color=SOFT, lw=1.1, ls=(0, (4, 3))) for _ in guides]
  figure.legend(
    handles,
    texts,
    loc="outside lower left",
    ncols=columns,
    handlelength=1.9,
    columnspacing=1.4,
    labelspacing=0.45,
    borderaxespad=0.2,
  )
  per_column = math.ceil(len(texts) / columns)
  return (
    max(sum(LINE * (t.count("\n") + 1) + 0.06 for t in texts[c::columns]) for c in range(columns))
    if columns > 1
    else sum(LINE * (t.count("\n") + 1) + 0.06 for t in texts[:per_column])
  )


@styled
def lines(
  items: Sequence[Series],
  *,
  xlabel: str,
  ylabel: str,
  guides: Sequence[Guide] = (),
  floor: float | None = None,
  log: bool = False,
  index: bool = False,
  markers: bool = True,
) -> Figure:
  """Lines over an index (`index`: one tick per whole number) or over steps, the legend below the axes."""
  figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
  axes = figure.add_subplot()
  draw_lines(axes, items, guides=guides, markers=markers)
  finish_lines(axes, items, xlabel=xlabel, ylabel=ylabel, floor=floor, log=log, index=index, width=WIDTH)
  height = legend(figure, [(s.label, s.mark) for s in items], guides, width=WIDTH)
  figure.set_size_inches(WIDTH, 2.85 + height)
  return figure


def finish_lines(
  axes: Axes,
  items: Sequence[Series],
  *,
  xlabel: str,
  ylabel: str,
  width: float,
  floor: float | None = None,
  log: bool = False,
  index: bool = False,
) -> None:
  """Scales, ticks and titles of a line plot; the value's name stands upright above the axes."""
  if log:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(tick_text))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda v, p: ""))
  else:
    plain_ticks(axes, "y")
    if floor is not None:
      top = axes.dataLim.y1
      axes.set_ylim(floor, floor + 1.08 * (top - floor) if top > floor else floor + 1)
  if index:
    last = max((max(s.x) for s in items), default=0)
    axes.xaxis.set_major_locator(FixedLocator(list(np.arange(0, last + 1, math.ceil((last + 1) / 14)))))
    axes.set_xlim(-0.5, last + 0.5)
    axes.grid(axis="x", visible=False)
  else:
    plain_ticks(axes, "x")
  axes.set_xlabel(xlabel, fontsize=SMALL, color=SOFT)
  axes.set_title(
    "\n".join(wrap(ylabel, width * 72 - 40, SMALL, lines=2)), loc="left", fontsize=SMALL, color=SOFT
  )


def short_layer(name: str) -> str:
  """`block03/tokens` -> `3`, `norm/tokens` -> `norm`; other names as they are."""
  name = name.removesuffix("/tokens")
  return str(int(name[5:])) if re.fullmatch(r"block\d+", name) else name


def _layer_ticks(names: Sequence[str], room: float) -> tuple[list[int], list[str]]:
  """Positions and short labels of at most as many layers as the room in points has place for."""
  step = max(1, math.ceil(len(names) * 1.5 * SMALL / room))
  positions = list(range(0, len(names), step))
  return positions, [wrap(short_layer(names[k]), 72, SMALL, lines=1)[0] for k in positions]


@styled
def heatmap(
  matrix: Sequence[Sequence[float | None]],
  *,
  rows_name: str,
  columns_name: str,
  row_labels: Sequence[str],
  column_labels: Sequence[str],
  value_name: str,
) -> Figure:
  """A matrix of similarities as colours from 0 (and below) to 1, with numbers if there is room."""
  values = np.array([[v if finite(v) else math.nan for v in row] for row in matrix], float)
  height, width = values.shape
  cell = min(3.1 / width, 3.1 / height)
  figure = Figure(figsize=(WIDTH, 1.0 + max(1.2, cell * height)), layout="constrained")
  axes = figure.add_subplot()
  axes.grid(False)
  image = axes.imshow(values, cmap="YlGnBu", vmin=0.0, vmax=1.0, aspect="equal")
  if max(height, width) <= 8:
    for (i, j), value in np.ndenumerate(values):
      if math.isfinite(value):
        axes.text(
          j,
          i,
          f"{value:.2f}".replace("0.", ".").replace("-", "−"),
          ha="center",
          va="center",
          fontsize=SMALL - 0.5,
          color="white" if value > 0.6 else INK,
        )
  positions, texts = _layer_ticks(column_labels, 3.1 * 72)
  axes.set_xticks(positions, texts, rotation=90 if max(map(len, texts)) > 2 else 0)
  axes.set_yticks(*_layer_ticks(row_labels, cell * height * 72))
  axes.tick_params(length=0)
  name = wrap(columns_name, 3.1 * 72, SMALL, lines=3)
  axes.set_xlabel("\n".join(name), fontsize=SMALL)
  side = wrap(rows_name, max(1.2, cell * height) * 72, SMALL, lines=3)
  axes.set_ylabel("\n".join(side), fontsize=SMALL)
  for spine in axes.spines.values():
    spine.set_visible(False)
  bar = figure.colorbar(image, ax=axes, shrink=0.9, aspect=24, pad=0.03)
  bar.outline.set_visible(False)  # type: ignore[operator]
  bar.ax.tick_params(length=0)
  bar.ax.yaxis.set_major_formatter(FuncFormatter(tick_text))
  bar.ax.set_title(value_name, fontsize=SMALL, color=SOFT)
  figure.set_size_inches(WIDTH, 0.95 + max(1.2, cell * height) + 0.15 * (len(name) - 1))
  return figure


@styled
def parts(
  categories: Sequence[str],
  items: Sequence[tuple[str, Mark, Sequence[tuple[float | None, float | None]]]],
  *,
  xlabel: str,
  zero: bool = True,
) -> Figure:
  """Value and half-width per category (top to bottom) and model; models of a category are dodged; `zero` marks 0."""
  labels = [wrap(c, 88, SMALL, lines=2) for c in categories]
  pitch = max(0.38 if any(len(text) > 1 for text in labels) else 0.26, 0.085 * len(items) + 0.1)
  figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
  axes = figure.add_subplot()
  for k, (_, mark, values) in enumerate(items):
    y = np.arange(len(categories)) + ((k + 0.5) / len(items) - 0.5) * (0.085 * len(items) / pitch)
    centre, half = _nan([v for v, _ in values]), _nan([h for _, h in values])
    axes.errorbar(
      centre,
      y,
      xerr=half,
      ls="",
      marker=mark.marker,
      ms=5.5,
      color=mark.color,
      mec="white",
      mew=0.6,
      elinewidth=1.6,
    )
  for k in range(1, len(categories)):
    axes.axhline(k - 0.5, color=RC["grid.color"], lw=0.8)
  if zero:
    axes.axvline(0, color=SOFT, lw=1)
  axes.set_ylim(len(categories) - 0.5, -0.5)
  axes.set_yticks(range(len(categories)), ["\n".join(text) for text in labels])
  axes.grid(axis="y", visible=False)
  axes.tick_params(axis="y", length=0)
  plain_ticks(axes, "x")
  axes.set_xlabel("\n".join(wrap(xlabel, WIDTH * 72 - 90, SMALL, lines=2)), fontsize=SMALL, color=SOFT)
  height = legend(figure, [(name, mark) for name, mark, _ in items], width=WIDTH)
  figure.set_size_inches(WIDTH, 0.75 + pitch * len(categories) + height)
  return figure


def draw_points(axes: Axes, items: Sequence[Row], *, xlabel: str, width: float) -> None:
  """Rows without labels, for a panel whose figure has a shared legend."""
  for k, row in enumerate(items):
    draw_row(axes, row, k, dots_below=0.28)
  axes.set_ylim(len(items) - 0.4, -0.6)
  axes.set_yticks([])
  axes.spines["left"].set_visible(False)
  axes.margins(x=0.08)
  plain_ticks(axes, "x", count=4)
  axes.set_title(
    "\n".join(wrap(xlabel, width * 72 - 20, SIZE - 1, lines=2)), loc="left", fontsize=SMALL, color=SOFT
  )


@contextlib.contextmanager
def paper(models: int) -> Iterator[tuple[Figure, list[Axes]]]:
  """A figure of two by two lettered panels, as wide as a page, for the caller to fill and give a legend."""
  with matplotlib.rc_context(RC):
    figure = Figure(figsize=(PAPER_WIDTH, 5.0 + 0.12 * models), layout="constrained")
    axes = list(figure.subplots(2, 2).flat)
    for letter, one in zip("abcd", axes, strict=True):
      one.text(
        -0.02,
        1.02,
        f"({letter})",
        transform=one.transAxes,
        ha="right",
        va="bottom",
        fontsize=SMALL,
        weight="bold",
      )
    yield figure, axes
