"""What every figure shares: colours and markers per model, font sizes, wrapped labels, and the three
file formats."""

import functools
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.patheffects import Normal
from matplotlib.text import Text

# Okabe and Ito (2008) without the yellow, which vanishes on white; dark grey is the first (reference) model.
COLORS = ("#333333", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C5A2B")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
# Terms of a loss are no models, so they take another colour-blind safe set (Tol, "muted").
TERM_COLORS = ("#332288", "#CC6677", "#117733", "#AA4499", "#44AA99", "#999933", "#882255", "#88CCEE")
INK, SOFT, GRID = "#1f2328", "#57606a", "#e3e6ea"

WIDTH = 4.4  # inches: a phone shows this at three quarters of its size, so 10 pt text stays readable
PAPER_WIDTH = 7.2  # inches: a two-column page
SIZE, SMALL = 10.5, 10.0

RC: Any = {  # Any: the stubs of matplotlib want a literal type of 300 keys
  "font.family": ["DejaVu Sans"],  # ships with matplotlib: equal text extents everywhere
  "font.size": SIZE,
  "axes.titlesize": SIZE,
  "axes.labelsize": SIZE,
  "xtick.labelsize": SIZE - 1,
  "ytick.labelsize": SIZE - 1,
  "legend.fontsize": SMALL,
  "text.color": INK,
  "axes.labelcolor": INK,
  "axes.edgecolor": SOFT,
  "xtick.color": SOFT,
  "ytick.color": SOFT,
  "xtick.labelcolor": INK,
  "ytick.labelcolor": INK,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.linewidth": 0.8,
  "axes.grid": True,
  "grid.color": GRID,
  "grid.linewidth": 0.8,
  "axes.axisbelow": True,
  "axes.unicode_minus": True,
  "legend.frameon": False,
  "text.parse_math": False,  # a dollar sign in a model's name is a dollar sign
  "svg.fonttype": "path",  # looks the same on every machine, and needs no font
  "svg.hashsalt": "jaxkd",
  "figure.dpi": 100,
}


@dataclass(frozen=True)
class Mark:
  """How one model, arm or term is drawn in every figure and legend."""

  color: str
  marker: str
  dash: str = "-"

  @property
  def polygon(self) -> str:
    """The marker as `points` of an SVG polygon inside a 14 x 14 box."""
    shape = MarkerStyle(self.marker)
    path = shape.get_path().transformed(shape.get_transform())
    outline = np.asarray(path.to_polygons(width=0, height=0)[0])
    scale = 5.5 / max(abs(outline).max(), 1e-9)
    return " ".join(f"{7 + scale * x:.2f},{7 - scale * y:.2f}" for x, y in outline)


def marks(names: Iterable[str], *, known: Mapping[str, Mark] | None = None) -> dict[str, Mark]:
  """One mark per name in order; a name in `known` keeps its mark, and new names take marks nobody has.

  A name that continues a known one ("Baseline, seed 0" after "Baseline") takes over its mark if free.
  """
  known = dict(known or {})
  result: dict[str, Mark] = {}
  names = list(dict.fromkeys(names))
  for name in names:
    stems = sorted((k for k in known if name.startswith(k)), key=len)
    if name in known or (stems and known[stems[-1]] not in result.values() and stems[-1] not in names):
      result[name] = known[name if name in known else stems[-1]]
  fresh = (mark for mark in _sequence() if mark not in known.values())
  return {name: result.get(name) or next(fresh) for name in names}


def _sequence() -> Iterable[Mark]:
  """Marks without end: after eight the colours repeat with other markers and dashes."""
  for k in range(1000):
    shift = k // len(COLORS)
    yield Mark(
      COLORS[k % len(COLORS)], MARKERS[(k + shift) % len(MARKERS)], ("-", "--", ":", "-.")[shift % 4]
    )


def term_marks(names: Iterable[str]) -> dict[str, Mark]:
  """Marks of loss terms, in order of first appearance."""
  ordered = dict.fromkeys(names)
  return {n: Mark(TERM_COLORS[k % 8], MARKERS[k % 8], ("-", "--")[k // 8 % 2]) for k, n in enumerate(ordered)}


@functools.cache
def _font() -> Any:
  return font_manager.get_font(font_manager.findfont("DejaVu Sans"))


def drawable(text: str) -> str:
  """The text with characters that the figures' font lacks replaced by an empty square."""
  return "".join(c if _font().get_char_index(ord(c)) else "□" for c in text)


@functools.lru_cache(maxsize=8192)
def text_width(text: str, size: float) -> float:
  """Width in points of one line of text in the figures' font."""
  font = _font()
  font.set_size(size, 72.0)
  font.set_text(drawable(text), 0.0)
  return font.get_width_height()[0] / 64.0


def wrap(text: str, width: float, size: float = SMALL, *, lines: int = 4) -> list[str]:
  """Breaks text into lines at most `width` points wide: at spaces, else at joints like - and _.

  Text beyond `lines` lines ends in an ellipsis.
  """
  rest = drawable(text)
  result: list[str] = []
  while rest and len(result) < lines:
    cut = _fit(rest, width, size)
    if cut < len(rest):
      space = rest.rfind(" ", 1, cut + 1)
      joint = max(rest.rfind(c, 0, cut) for c in "-_/.:,") + 1  # the joint itself stays on its line
      cut = space if space > 0 else joint if joint > cut / 2 else cut
    result.append(rest[:cut].strip())
    rest = rest[cut:].strip()
  if rest:
    result[-1] = result[-1][: max(1, _fit(result[-1] + "…", width, size) - 1)].rstrip("…") + "…"
  return result or [""]


def _fit(text: str, width: float, size: float) -> int:
  """The number of leading characters, at least one, that fit into the width."""
  low, high = 1, len(text)
  while low < high:
    middle = (low + high + 1) // 2
    low, high = (middle, high) if text_width(text[:middle], size) <= width else (low, middle - 1)
  return low


def save(figure: Figure, stem: Path | None) -> bytes:
  """Lays the figure out once, writes `stem.svg`, `.pdf` and `.png` if there is a stem, and returns the SVG.

  The canvases are used directly: `Figure.savefig` would draw everything twice for each format.
  """
  with matplotlib.rc_context(RC):
    if (
      figure.get_layout_engine() is not None
    ):  # solving it again for every format would cost most of the time
      figure.draw_without_rendering()
      figure.set_layout_engine("none")
    buffer = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": "jaxkd"})
    if stem is not None:
      stem.parent.mkdir(parents=True, exist_ok=True)
      stem.with_name(stem.name + ".svg").write_bytes(buffer.getvalue())
      figure.set_dpi(200)
      FigureCanvasAgg(figure).print_png(stem.with_name(stem.name + ".png"))
      _outline_text(figure)
      FigureCanvasPdf(figure).print_pdf(stem.with_name(stem.name + ".pdf"), metadata={"CreationDate": None})
  return buffer.getvalue()


def _outline_text(figure: Figure) -> None:
  """Makes text be drawn as outlines, so that the PDF holds no font.

  Journals refuse Type 3 fonts, and subsetting a TrueType font takes longer than all the rest of a figure.
  """
  for text in figure.findobj(Text):
    text.set_path_effects([Normal()])  # type: ignore[attr-defined]
