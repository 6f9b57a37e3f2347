"""The picture grid of `preview`: a row for each image, a column for each branch, what was drawn under each picture."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxkd.report.style import RC, SOFT, wrap
from jaxkd.report.text import clean

# In points.
CELL, GAP, MARGIN = 96.0, 14.0, 14.0
TITLE, HEADER, NOTE = 12.0, 9.0, 7.0
LINE = 1.3  # line height by font size
MOST = 8  # lines of a note
WIDTH = 0.94 * CELL  # of text: hinting makes it a little wider than it is measured


def preview_figure(grid: Mapping[str, Any], path: Path) -> None:
  """Writes the grid that `jaxkd.preview.preview` returns as a PNG of 150 dots per inch."""
  with matplotlib.rc_context(RC):
    figure = _figure(grid)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(buffer.getvalue())


def _figure(grid: Mapping[str, Any]) -> Figure:
  columns = grid["columns"]
  notes = [[_note(text) for text in c["notes"]] for c in columns]
  headers = [wrap(clean(c["title"]), WIDTH, HEADER, lines=2) for c in columns]
  heights = [CELL + LINE * NOTE * max(map(len, row)) + GAP for row in zip(*notes, strict=True)]
  width = 2 * MARGIN + len(columns) * (CELL + GAP) - GAP
  subtitle = wrap(clean(grid["subtitle"]), width - 2 * MARGIN, NOTE + 1, lines=8)
  title = wrap(clean(grid["title"]), width - 2 * MARGIN, TITLE, lines=3)
  head = MARGIN + LINE * (TITLE * len(title) + (NOTE + 1) * len(subtitle)) + GAP / 2
  top = head + LINE * HEADER * max(map(len, headers)) + 3
  page = _Page(width, top + sum(heights))
  page.write(MARGIN, MARGIN, title, TITLE, weight="bold")
  page.write(MARGIN, MARGIN + LINE * TITLE * len(title), subtitle, NOTE + 1, color=SOFT)
  for i, column in enumerate(columns):
    left, y = MARGIN + i * (CELL + GAP), top
    page.write(left, head, headers[i], HEADER, weight="bold")
    for image, note, height in zip(column["images"], notes[i], heights, strict=True):
      page.show(left, y, image)
      page.write(left, y + CELL + 2, note, NOTE, color=SOFT)
      y += height
  return page.figure


def _note(text: str) -> list[str]:
  """Lines of whole operations: the spaces within one do not break."""
  operations = clean(text).split(", ")
  return wrap(", ".join(o.replace(" ", "\u00a0") for o in operations), WIDTH, NOTE, lines=MOST)


class _Page:
  """A figure measured in points from its top left corner."""

  def __init__(self, width: float, height: float):
    self.width, self.height = width, height
    self.figure = Figure(figsize=(width / 72, height / 72), dpi=150, facecolor="white")

  def write(self, x: float, y: float, lines: list[str], size: float, **style: Any) -> None:
    for i, line in enumerate(lines):
      place = x / self.width, 1 - (y + i * LINE * size) / self.height
      self.figure.text(*place, line, fontsize=size, ha="left", va="top", **style)

  def show(self, x: float, y: float, image) -> None:
    box = (x / self.width, 1 - (y + CELL) / self.height, CELL / self.width, CELL / self.height)
    axes = self.figure.add_axes(box)
    axes.set_axis_off()
    grey = image[..., 0] if image.shape[-1] == 1 else image
    axes.imshow(grey, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
