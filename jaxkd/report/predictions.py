"""What `predict` shows: a table of files by their most probable classes, and overlays that explain them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from jaxkd.report import charts
from jaxkd.report.evidence_figures import METHODS
from jaxkd.report.text import clean, number

if TYPE_CHECKING:
  from jaxkd.prediction import Prediction

MOST = 200  # rows printed; the JSON holds all


def predictions_table(predictions: Sequence[Prediction], *, top: int) -> Table:
  """One row for each image: its `top` most probable classes with their probabilities."""
  top = min(top, len(predictions[0].classes))
  table = Table(box=SIMPLE_HEAD, pad_edge=False)
  table.add_column("image", overflow="fold")
  for k in range(top):
    table.add_column("class" if not k else f"{k + 1}.", overflow="fold")
    table.add_column("%", justify="right", no_wrap=True)
  for one in predictions[:MOST]:
    cells = [(clean(name), number(100 * p, 2)) for name, p in one.classes[:top]]
    table.add_row(Text(clean(one.path)), *(Text(word) for pair in cells for word in pair))
  if len(predictions) > MOST:
    table.caption = f"the first {MOST} of {len(predictions)} images; the JSON holds all"
  return table


def explanation_picture(image: Any, heat: Mapping[str, Any], title: str, path: Path) -> None:
  """Writes a PNG: the image [h w c] in [0, 1], then each method's heat map [h w] over it."""
  notes = ["image", *(METHODS[key] for key in heat)]
  figure = charts.overlays(image, list(heat.values()), notes, clean(title))
  buffer = io.BytesIO()
  figure.set_dpi(150)
  FigureCanvasAgg(figure).print_png(buffer)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(buffer.getvalue())
