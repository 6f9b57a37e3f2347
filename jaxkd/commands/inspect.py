"""Shows what a checkpoint or a weights file holds - tree, shapes, sizes, digests - without its model code."""

from __future__ import annotations

import argparse
import json
from typing import Any

from jaxkd.commands import parse
from jaxkd.errors import one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "path",
    help="a run folder (its best step), one step's folder, any Orbax tree, a .safetensors or .pth file, "
    "or a folder of sharded safetensors",
  )
  parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")


def run(parser: argparse.ArgumentParser, argv: list[str]) -> int:
  args, _ = parse(parser, argv)

  from jaxkd.weights import describe

  about = describe.inspect(args.path)
  if args.json:
    print(json.dumps(about, indent=2))
  else:
    _show(about)
  return 0


def _show(about: dict[str, Any]) -> None:
  from rich.console import Console
  from rich.table import Column, Table
  from rich.text import Text

  console = Console()
  facts = Table("what", Column("value", overflow="fold"), title=Text(about["path"]), title_justify="left")
  shown = {
    k: v for k, v in about.items() if k not in ("path", "arrays", "dtypes", "config", "meta", "metadata")
  }
  own = {
    f"metadata: {key}": value for key, value in about.get("metadata", {}).items()
  }  # the file's word, not ours
  for key, value in {**about.get("meta", {}), **own, **shown}.items():
    if value not in ([], {}):
      facts.add_row(*(Text(one_line(text)) for text in (key, _text(value))))
  table = Table(
    Column("array", overflow="fold"),
    "shape",
    "dtype",
    "bytes",
    "sha256",
    title="arrays",
    title_justify="left",
  )
  for a in about["arrays"]:
    shape = "x".join(map(str, a["shape"])) or "scalar"
    table.add_row(Text(one_line(a["name"])), shape, a["dtype"], f"{a['bytes']:,}", a["sha256"][:12])
  console.print(facts, table)
  for dtype, total in about["dtypes"].items():
    console.print(f"{dtype}: {total['arrays']} arrays, {total['bytes']:,} bytes")
  checked = ", every digest checked" if about["kind"] == "checkpoint" else ""
  size = sum(a["bytes"] for a in about["arrays"])
  console.print(f"{len(about['arrays'])} arrays, {size:,} bytes{checked}")


def _text(value: Any) -> str:
  if isinstance(value, list) and all(isinstance(v, str) for v in value):
    return "; ".join(value)
  return f"{value:,}" if isinstance(value, int) else value if isinstance(value, str) else json.dumps(value)
