"""What a run needs and does on a chip: parameters, FLOPs, memory, collectives, step time; nothing is trained."""

from __future__ import annotations

import argparse
import json
import sys

from jaxkd.commands import add_download, load_config, parse
from jaxkd.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--config", default="", help="FILE.py[:ARG]; data and weights need not be there")
  parser.add_argument("--chip", default="h100", help="h100, a100, or cpu: this machine")
  parser.add_argument(
    "--topology", default="1x1x1", help="SLICESxHOSTSxDEVICES, e.g. 1x2x8 for 2 hosts of 8 GPUs"
  )
  parser.add_argument(
    "--no-compile", action="store_true", help="lower only, even where the extra `aot` could compile"
  )
  parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
  add_download(parser)


def run(parser: argparse.ArgumentParser, argv: list[str]) -> int:
  args, overrides = parse(parser, argv)
  config = load_config(args, overrides)
  if "study" in config:
    raise UserError(f"{args.config} describes a study, not one run", "plan one of its runs")

  from rich.console import Console

  from jaxkd.planning.plan import plan
  from jaxkd.report.plan import tables

  found = plan(config, chip_name=args.chip, topology=args.topology, compiling=not args.no_compile)
  if args.json:
    print(json.dumps({"config": args.config, **found}, indent=2))
    return 0
  width = None if sys.stdout.isatty() else 150  # a file or pipe gets whole lines
  Console(width=width).print(*tables(found), sep="\n")
  return 0
