"""Shows what a checkpoint holds - config, step, metrics, arrays with shapes and digests - without its model code."""

from __future__ import annotations

import argparse
import json

from jaxkd.commands import parse


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("checkpoint", help="a run folder (its best step), or one step's folder")
  parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")


def run(parser: argparse.ArgumentParser, argv: list[str]) -> int:
  args, _ = parse(parser, argv)

  from rich.console import Console
  from rich.table import Table

  from jaxkd import checkpoint

  found = checkpoint.load(args.checkpoint)
  arrays = checkpoint.arrays(found)
  if args.json:
    about = {"path": str(found.path), "step": found.step, "digest": found.digest, "meta": found.meta}
    print(json.dumps({**about, "config": found.config, "arrays": arrays}, indent=2))
    return 0
  console = Console()
  console.print(f"[bold]{found.path}[/bold]\nstep {found.step}   digest {found.digest[:16]}")
  facts = Table("what", "value", title="metadata", title_justify="left")
  for key, value in found.meta.items():
    facts.add_row(key, json.dumps(value) if isinstance(value, (dict, list)) else str(value))
  table = Table("array", "shape", "dtype", "bytes", "sha256", title="arrays", title_justify="left")
  for a in arrays:
    shape = "x".join(map(str, a["shape"])) or "scalar"
    table.add_row(a["name"], shape, a["dtype"], f"{a['bytes']:,}", a["sha256"][:12])
  console.print(facts, table)
  console.print(f"{len(arrays)} arrays, {sum(a['bytes'] for a in arrays):,} bytes, every digest checked")
  return 0
