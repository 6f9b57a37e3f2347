"""Builds, checks or lists feature banks: what the terms take from a frozen teacher, computed once for all images."""

from __future__ import annotations

import argparse
import sys

from jaxkd.commands import add_download, load_config, parse
from jaxkd.errors import UserError

TOGETHER = True  # several processes share the work
ACTIONS = ("build", "check", "list")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "action", choices=ACTIONS, help="build one (or go on), check its bytes, list a folder's banks"
  )
  parser.add_argument("folder", nargs="?", default="", help="list: the folder to look in (default: here)")
  parser.add_argument("--config", default="", help="the run that uses it")
  parser.add_argument("--teacher", default="", help="whose features (default: the only teacher with a bank)")
  parser.add_argument("--shard", default="0/1", metavar="I/N", help="build part I of N, one part per process")
  add_download(parser)


def run(parser: argparse.ArgumentParser, argv: list[str]) -> int:
  args, overrides = parse(parser, argv)
  if args.action == "list":
    return _list(args.folder or ".")
  config = load_config(args, overrides)

  from jaxkd import bank
  from jaxkd.experiment import build

  shard = _shard(args.shard)
  experiment = build(config)
  name = bank.find_teacher(experiment, args.teacher)
  if args.action == "build":
    bank.build(experiment, name, shard=shard)
    if shard[1] > 1:
      print(f"built: shard {shard[0]} of {shard[1]} in {experiment.teachers[name].bank}")
      return 0
  found = bank.open_bank(experiment, name, build_missing=False)
  for key, array in found.arrays.items():
    shape = "x".join(map(str, array.shape))
    print(f"{key:32} {shape:24} {array.dtype}  {array.nbytes:,} bytes")
  print(
    f"{found.folder}: {found.bytes:,} bytes, every digest checked; used from {bank.place(experiment, found)}"
  )
  return 0


def _shard(text: str) -> tuple[int, int]:
  part, slash, count = text.partition("/")
  if not (slash and part.isdigit() and count.isdigit() and int(part) < int(count)):
    raise UserError(f"--shard={text} is not I/N with I below N", "write e.g. --shard=0/4 to --shard=3/4")
  return int(part), int(count)


def _list(folder: str) -> int:
  """Every bank below `folder`, finished or not."""
  from pathlib import Path

  from rich.console import Console
  from rich.table import Column, Table

  from jaxkd import bank, files

  table = Table(
    Column("bank", overflow="fold"), Column("state", no_wrap=True), "images x views", "targets", "weights"
  )
  marks = [p for kind in ("shard-*of*.json", "building-*of*.json") for p in Path(folder).rglob(kind)]
  for place in sorted({p.parent for p in marks}):
    done = bank.shards(place)
    about = done[0] if done else files.read_json(next(place.glob("building-*of*.json")))
    i = about["identity"]
    state = f"{len(done)} of {done[0]['of']} shards" if done else f"building, {about['done']:,} images"
    targets = ", ".join(f"{k} {'x'.join(map(str, s))}" for k, s in i["targets"].items())
    table.add_row(str(place), state, f"{i['images']:,} x {i['views']}", targets, i["weights"][:12])
  width = None if sys.stdout.isatty() else 150  # a file or pipe gets lines long enough for the names
  Console(width=width).print(table if table.rows else f"no feature bank below {folder}")
  return 0
