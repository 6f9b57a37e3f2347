"""Further kinds of picture: a confusion matrix, a reliability diagram, ROC curves, a grid of small images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from jaxkd.report.plots import legend, plain_ticks, styled, tick_text
from jaxkd.report.style import COLORS, INK, SMALL, SOFT, WIDTH, Mark, wrap

DASHES = ("-", "--", ":", "-.")
NAMED = 12  # classes up to which rows and columns carry names and numbers
COLUMNS = 4  # of a grid of pictures


@styled
def confusion(counts: Sequence[Sequence[int]], names: Sequence[str]) -> Figure:
  """Counts [c c] by true and predicted class; numbers and names where there is room."""
  share = np.array([[n / max(sum(row), 1) for n in row] for row in counts])
  figure = Figure(figsize=(WIDTH, WIDTH), layout="constrained")
  axes = figure.add_subplot()
  axes.grid(False)
  axes.imshow(share, cmap="YlGnBu", vmin=0.0, vmax=1.0)
  if len(names) <= NAMED:
    size = SMALL - (1.5 if max(map(max, counts)) > 999 else 0)
    for (i, j), value in np.ndenumerate(share):
      color = "white" if value > 0.6 else INK
      if counts[i][j]:
        axes.text(j, i, str(counts[i][j]), ha="center", va="center", fontsize=size, color=color)
    short = [wrap(n, 72, SMALL, lines=1)[0] for n in names]
    axes.set_xticks(range(len(names)), short, rotation=90 if max(map(len, short)) > 2 else 0)
    axes.set_yticks(range(len(names)), short)
  axes.set_xlabel("predicted class", fontsize=SMALL, color=SOFT)
  axes.set_ylabel("true class", fontsize=SMALL, color=SOFT)
  axes.tick_params(length=0)
  for spine in axes.spines.values():
    spine.set_visible(False)
  return figure


@styled
def reliability(bins: Sequence[Mapping[str, Any]]) -> Figure:
  """Accuracy against confidence with intervals, and images per bin on a logarithmic scale below."""
  figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
  top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
  kept = [b for b in bins if b["count"]]
  x, y = [b["confidence"] for b in kept], [b["accuracy"] for b in kept]
  error = [
    [b["accuracy"] - b["accuracy_low"] for b in kept],
    [b["accuracy_high"] - b["accuracy"] for b in kept],
  ]
  top.plot([0, 1], [0, 1], color=SOFT, lw=1.1, ls=(0, (4, 3)))
  top.errorbar(
    x, y, yerr=np.maximum(error, 0), ls="", marker="o", ms=5.5, color=COLORS[2], mec="white", elinewidth=1.6
  )
  top.set_ylim(-0.02, 1.02)
  top.set_xlim(0, 1.01)
  top.set_title("share correct", loc="left", fontsize=SMALL, color=SOFT)
  left = [b["low"] for b in kept]
  bottom.bar(
    left, [b["count"] for b in kept], width=0.92 / len(bins), align="edge", color=COLORS[2], alpha=0.55
  )
  bottom.set_yscale("log")
  bottom.set_ylim(0.7, None)
  bottom.yaxis.set_major_formatter(FuncFormatter(tick_text))
  bottom.minorticks_off()
  bottom.set_title("images", loc="left", fontsize=SMALL, color=SOFT)
  bottom.set_xlabel("probability of the predicted class", fontsize=SMALL, color=SOFT)
  plain_ticks(top, "y")
  plain_ticks(bottom, "x")
  return figure


@styled
def roc(curves: Mapping[str, tuple[Sequence[float], Sequence[float], float]]) -> Figure:
  """True against false positive rate by class: (fpr, tpr, area). Named where they are at most ten."""
  figure = Figure(figsize=(WIDTH, WIDTH), layout="constrained")
  axes = figure.add_subplot()
  entries = []
  for i, (name, (fpr, tpr, area)) in enumerate(curves.items()):
    mark = Mark(COLORS[i % len(COLORS)], "", DASHES[i // len(COLORS) % 4])
    axes.plot(fpr, tpr, color=mark.color, ls=mark.dash, lw=1.4)
    entries.append((f"{name} ({area:.3f})", mark))
  chance = [10 ** (-k / 20) for k in range(80)]  # a curve on this axis
  axes.plot(chance, chance, color="#999999", lw=0.8, ls=":")
  axes.set_xscale("symlog", linthresh=0.01)
  axes.set_xlim(0, 1)
  axes.set_xticks([0, 0.01, 0.1, 1], ["0", "0.01", "0.1", "1"])
  axes.minorticks_off()
  axes.set_ylim(0, 1.01)
  axes.set_xlabel("false positive rate", fontsize=SMALL, color=SOFT)
  axes.set_title("true positive rate", loc="left", fontsize=SMALL, color=SOFT)
  if len(entries) <= 10:
    height = legend(figure, entries, width=WIDTH)
    figure.set_size_inches(WIDTH, 3.6 + height)
  return figure


@styled
def picture_grid(
  pictures: Sequence[Any], notes: Sequence[str], *, columns: int = COLUMNS, cmap: str = "gray"
) -> Figure:
  """Images [h w c], or maps [h w], in [0, 1], left to right and down, each with its note below."""
  columns = min(columns, len(pictures))
  rows, cell = math.ceil(len(pictures) / columns), WIDTH / columns
  texts = [wrap(n, 72 * cell - 10, SMALL - 1.5, lines=3) for n in notes]
  below = 0.16 * max(map(len, texts)) + 0.08
  size = (WIDTH, rows * (cell + below))
  figure = Figure(figsize=size)
  for k, (picture, lines) in enumerate(zip(pictures, texts, strict=True)):
    i, j = divmod(k, columns)
    bottom = 1 - (i * (cell + below) + cell) / size[1]
    axes = figure.add_axes((j * cell / WIDTH + 0.01, bottom, cell / WIDTH - 0.02, (cell - 0.06) / size[1]))
    _show(axes, picture, cmap)
    for n, line in enumerate(lines):
      y = bottom - (0.14 + 0.16 * n) / size[1]
      figure.text((j + 0.5) * cell / WIDTH, y, line, ha="center", fontsize=SMALL - 1.5)
  return figure


@styled
def picture_rows(rows: Sequence[tuple[str, Any, Any]], *, cmap: str = "gray") -> Figure:
  """Rows of (name, images [k h w c], heat maps [k h w] over them or None), each row with its name above."""
  count = max(len(images) for _, images, _ in rows)
  cell, title = WIDTH / count, 0.24
  height = len(rows) * (cell + title)
  figure = Figure(figsize=(WIDTH, height))
  for i, (name, images, heat) in enumerate(rows):
    top = height - i * (cell + title)
    figure.text(
      0.005, (top - 0.17) / height, wrap(name, WIDTH * 72, SMALL, lines=1)[0], fontsize=SMALL, color=SOFT
    )
    for k, image in enumerate(images):
      box = (
        k / count + 0.004,
        (top - title - cell + 0.03) / height,
        1 / count - 0.008,
        (cell - 0.03) / height,
      )
      axes = figure.add_axes(box)
      _show(axes, image, cmap)
      if heat is not None:
        axes.imshow(heat[k], cmap="inferno", vmin=0.0, vmax=1.0, alpha=0.62, interpolation="nearest")
  return figure


@styled
def overlays(image: Any, heat: Sequence[Any], notes: Sequence[str], title: str) -> Figure:
  """One image [h w c], and heat maps [h w] over it, side by side under a title, each with its note below."""
  count, cell = 1 + len(heat), 1.8
  head, foot = 0.34, 0.42
  size = (cell * count, cell + head + foot)
  figure = Figure(figsize=size)
  line = wrap(title, 72 * size[0] - 12, SMALL, lines=1)[0]
  figure.text(0.05 / size[0], 1 - 0.22 / size[1], line, fontsize=SMALL)
  for k, note in enumerate(notes):
    axes = figure.add_axes(((k + 0.02) / count, foot / size[1], 0.96 / count, (cell - 0.04 * cell) / size[1]))
    _show(axes, image, "gray")
    if k:
      axes.imshow(heat[k - 1], cmap="inferno", vmin=0.0, vmax=1.0, alpha=0.62, interpolation="nearest")
    for n, text in enumerate(wrap(note, 72 * cell - 8, SMALL - 1, lines=2)):
      y = (foot - 0.17 - 0.16 * n) / size[1]
      figure.text((k + 0.5) / count, y, text, ha="center", fontsize=SMALL - 1)
  return figure


def _show(axes: Axes, picture: Any, cmap: str) -> None:
  axes.set_axis_off()
  image = np.asarray(picture, float)
  image = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
  axes.imshow(np.clip(image, 0, 1), cmap=cmap, vmin=0.0, vmax=1.0, interpolation="nearest")


@styled
def landscapes(planes: Sequence[Any], steps: Sequence[float], names: Sequence[str]) -> Figure:
  """Losses [k k] on planes with the same steps, one panel each, contours on one logarithmic scale of colours."""
  values = [
    np.array([[math.nan if v is None else v for v in row] for row in plane], float) for plane in planes
  ]
  low = max(min(np.nanmin(v) for v in values), 1e-4)
  high = max(max(np.nanmax(v) for v in values), 2 * low)
  columns = min(2, len(values))
  rows = math.ceil(len(values) / columns)
  size = WIDTH / columns
  titles = [wrap(n, 72 * size - 24, SMALL, lines=3) for n in names]
  height = rows * (size + 0.17 * max(map(len, titles))) + 0.5
  figure = Figure(figsize=(WIDTH, height), layout="constrained")
  levels = np.geomspace(low, high, 13)
  norm = LogNorm(low, high)
  panels = list(figure.subplots(rows, columns, squeeze=False).flat)
  for axes, value, lines in zip(panels, values, titles, strict=False):
    shown = axes.contourf(steps, steps, np.clip(value, low, high), levels=levels, norm=norm, cmap="YlGnBu_r")
    axes.contour(
      steps, steps, np.clip(value, low, high), levels=levels, norm=norm, colors="white", linewidths=0.4
    )
    axes.plot([0], [0], marker="+", color=INK, ms=9, mew=1.4)
    axes.set_title("\n".join(lines), loc="left", fontsize=SMALL)
    axes.set_aspect("equal")
    axes.set_xticks([-1, 0, 1], ["−1", "0", "1"])
    axes.set_yticks([-1, 0, 1], ["−1", "0", "1"])
    axes.grid(False)
  for axes in panels[len(values) :]:
    axes.set_visible(False)
  bar = figure.colorbar(shown, ax=panels, location="bottom", shrink=0.8, aspect=36, pad=0.02)
  ticks = [t for t in (m * 10.0**e for e in range(-4, 5) for m in (1, 3)) if low <= t <= high]
  bar.set_ticks(ticks, labels=[tick_text(t) for t in ticks])
  bar.ax.minorticks_off()
  bar.set_label("loss", fontsize=SMALL, color=SOFT)
  bar.outline.set_visible(False)  # type: ignore[operator]
  return figure
