"""Tables on the console for the conversion commands."""

from __future__ import annotations

import math
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxkd import models
from jaxkd.errors import one_line
from jaxkd.weights import hub, tables
from jaxkd.weights.convert import create
from jaxkd.weights.opened import Opened
from jaxkd.weights.verify import Difference


def _console() -> Console:
  """As wide as the terminal; a file or pipe gets lines long enough for the names."""
  return Console(width=None if sys.stdout.isatty() else 150)


def _text(value: str) -> Text:
  return Text(one_line(value))


def _shape(shape: tuple[int, ...]) -> str:
  return "x".join(map(str, shape)) or "scalar"


def _folding(*columns: str, title: str) -> Table:
  """A table that wraps long names instead of cutting them."""
  table = Table(title=title, title_justify="left")
  for column in columns:
    table.add_column(column, overflow="fold")
  return table


def conversion(found: Opened) -> None:
  """What an import did: every array with its torch name, shapes and change of layout; then what was left out."""
  done = found.conversion
  table = _folding("jaxkd", "torch", "torch shape", "done", title=f"{done.model}, style {done.style}")
  for row in done.rows:
    shapes = " + ".join(map(_shape, row.torch_shapes))
    table.add_row(_text(row.leaf), _text(" + ".join(row.keys)), shapes, row.note)
  console = _console()
  console.print(table)
  parameters = sum(math.prod(r.shape) for r in done.rows if r.leaf.startswith("params/"))
  options = {k: v for k, v in found.options.items() if k != "name"}
  console.print(f"{len(done.rows)} arrays, {parameters:,} parameters", highlight=False)
  console.print(_text(f"options: {', '.join(f'{k}={v}' for k, v in options.items()) or 'the defaults'}"))
  console.print(f"normalised by mean {found.mean}, std {found.std}", highlight=False)
  for what, names in (
    ("left out on purpose", done.dropped),
    ("initialised anew", done.fresh),
    ("all zero", done.zeros),
  ):
    if names:
      console.print(
        _text(f"{what}: {', '.join(names[:10])}{' ...' if len(names) > 10 else ''} ({len(names)})")
      )
  console.print(_text(f"sha256 {found.digest}; {'; '.join(found.source['notes'])}".removesuffix("; ")))


def differences(rows: list[Difference], tolerance: float) -> None:
  """The largest error of each part."""
  table = Table("part", "image", "largest error", "largest value", "within", title="against the reference")
  for row in rows:
    within = "yes" if row.relative <= tolerance else "NO"
    table.add_row(row.part, f"{row.size} px", f"{row.error:.2e}", f"{row.scale:.2e}", within)
  _console().print(table)


def overview() -> None:
  """Models with their styles and parameter counts, and the official weights by name."""
  console = _console()
  table = Table(
    "model", "parameters", "styles", title="models (parameters with default options)", title_justify="left"
  )
  for name in models.names():
    count = sum(row["count"] for row in models.parameter_table(models.create(name), by="module"))
    table.add_row(name, f"{count:,}", ", ".join(tables.styles(name)))
  console.print(table)
  known = Table(
    "--weights", "repository", "revision", "published sha256", title="official weights", title_justify="left"
  )
  for name, source in hub.SOURCES.items():
    revision = source.revision[:12] or "that of the first use"
    known.add_row(f"hub:{name}", source.repo, revision, source.sha256[:16] or "recorded at first use")
  console.print(known)


def parameters(name: str, options: dict[str, Any], style: str) -> None:
  """Every parameter with its shape, count, share of all, and torch name."""
  rows = models.parameter_table(create(name, options))
  style = style or next(iter(tables.FAMILIES[tables.family(name)]), "jaxkd")
  names = None if style == "jaxkd" else tables.table(name, style)
  table = _folding("parameter", "shape", "count", "share", f"{style} name", title=name)
  for row in rows:
    leaf = f"params/{row['name']}"
    keys = (
      (leaf,) if names is None else tables.torch_keys(names, leaf, prefixed=bool(names.prefix)) or ("none",)
    )
    table.add_row(
      row["name"], _shape(row["shape"]), f"{row['count']:,}", f"{row['share']:.2%}", " + ".join(keys)
    )
  console = _console()
  console.print(table)
  console.print(f"{sum(r['count'] for r in rows):,} parameters in {len(rows)} arrays", highlight=False)
