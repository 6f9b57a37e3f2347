"""Compares checkpoints on the same test images: curvature, attention locality, similarity; writes report.html."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

from jaxkd.commands import add_download, parse
from jaxkd.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("checkpoints", nargs="+", help="run folders (their best step) or step folders")
  parser.add_argument(
    "-n", "--name", action="append", default=[], help="one name for each checkpoint, in order"
  )
  parser.add_argument("--names", nargs="+", default=[], help="the same as several -n")
  parser.add_argument("-o", "--out", default="forensics", help="folder of JSON, figures and report.html")
  parser.add_argument("--images", type=int, default=512, help="test images for attention and CKA")
  parser.add_argument("--hessian-images", type=int, default=64, help="class-balanced images for the Hessian")
  parser.add_argument("--probes", type=int, default=30, help="Hutchinson probes per model")
  add_download(parser)


def run(parser: argparse.ArgumentParser, argv: list[str]) -> int:
  args, overrides = parse(parser, argv)
  names = [*args.name, *args.names] or [Path(p).name for p in args.checkpoints]
  if overrides:
    raise UserError("checkpoints bring their own configs; --config.* has no effect", "leave it out")
  if len(names) != len(args.checkpoints) or len(set(names)) != len(names):
    raise UserError(
      f"{len(names)} names ({', '.join(names)}) for {len(args.checkpoints)} checkpoints",
      "give one different -n NAME for each, in order",
    )
  if args.probes < 2 or args.images < 16 or args.hessian_images < 2:
    raise UserError(
      "--probes needs >= 2, --images >= 16, --hessian-images >= 2", "e.g. --probes=30 --images=512"
    )

  from jaxkd import report, subjects
  from jaxkd.forensics import forensics

  models, config = subjects.load_subjects(args.checkpoints, names)
  config.data.download |= args.download
  result = forensics(
    models,
    config,
    Path(args.out),
    images=args.images,
    hessian_images=args.hessian_images,
    probes=args.probes,
    date=datetime.date.today().isoformat(),
  )
  print(f"report: {report.forensics_report(result, Path(args.out))}")
  return 0
