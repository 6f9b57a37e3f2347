"""Draws what student and teachers see: a picture grid of some training images, with the drawn operations in words."""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxkd.commands import add_download, load_config, parse
from jaxkd.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--config", default="", help="FILE.py[:ARG]; another draw: --config.seed=1")
  parser.add_argument("--count", type=int, default=8, help="images, one row each (1 to 64)")
  parser.add_argument("-o", "--out", default="preview.png", help="the picture (default: preview.png)")
  add_download(parser)


def run(parser: argparse.ArgumentParser, argv: list[str]) -> int:
  args, overrides = parse(parser, argv)
  config = load_config(args, overrides)
  out = Path(args.out)
  if not 1 <= args.count <= 64:
    raise UserError(f"--count {args.count} is out of range", "1 to 64")
  if out.suffix != ".png":
    raise UserError(f"--out {args.out} is no .png file", "e.g. -o preview.png")

  from jaxkd import report
  from jaxkd.preview import preview

  report.preview_figure(preview(config, args.count), out)
  print(f"written: {out}")
  return 0
