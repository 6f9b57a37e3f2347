"""Examines one checkpoint: curvature, attention, similarity of its layers or with another checkpoint's, locality,
saliency, feature maps; prints the time it will take first; writes JSON, tables, figures and report.html."""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxkd.commands import parse
from jaxkd.commands.forensics import add_budget, compare
from jaxkd.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("checkpoint", help="a run folder (its best step), or one step's folder")
  parser.add_argument("-n", "--name", default="", help="its name in the report (default: its folder's)")
  parser.add_argument(
    "--against",
    default="",
    metavar="CHECKPOINT",
    help="another checkpoint, such as its teacher, for similarity",
  )
  add_budget(parser, "")


def run(parser: argparse.ArgumentParser, argv: list[str]) -> int:
  args, overrides = parse(parser, argv)
  if overrides:
    raise UserError("a checkpoint brings its own config; --config.* has no effect", "leave it out")

  from jaxkd import checkpoint

  paths, names = [args.checkpoint], [args.name or Path(args.checkpoint).absolute().name]
  if args.against:
    other = Path(args.against).absolute().name
    paths, names = [*paths, args.against], [*names, other if other != names[0] else f"{other} (other)"]
  args.out = args.out or str(checkpoint.home(args.checkpoint) / "analysis")
  return compare(args, paths, names)
