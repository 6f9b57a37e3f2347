"""Compares checkpoints on the same test images: curvature, attention, similarity, locality, saliency; prints first how
long it will take; writes JSON, CSV and LaTeX tables, figures and report.html."""

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
  add_budget(parser, "forensics")


def add_budget(parser: argparse.ArgumentParser, out: str) -> None:
  """What is analysed, on how much, and where it is written: shared by `forensics` and `analyze`."""
  parser.add_argument("-o", "--out", default=out, help="folder of JSON, tables, figures and report.html")
  parser.add_argument(
    "--metrics",
    default="",
    help="some of: hessian, heads, eigenvalues, landscape, attention, classes, cka, rbf, alignment, probes, locality, "
    "robustness, saliency, features; or all (default: hessian,attention,cka,locality,saliency)",
  )
  parser.add_argument("--images", type=int, default=512, help="test images of all but the Hessian (512)")
  parser.add_argument(
    "--hessian-images", type=int, default=64, help="class-balanced images of the Hessian (64)"
  )
  parser.add_argument("--probes", type=int, default=10, help="Hutchinson probes per model (10)")
  add_download(parser)


def budget(args: argparse.Namespace):
  """The budget that the arguments name. Raises UserError for what is out of range or unknown."""
  if args.probes < 2 or args.images < 16 or args.hessian_images < 2:
    raise UserError(
      "--probes needs >= 2, --images >= 16, --hessian-images >= 2", "e.g. --probes=30 --images=512"
    )

  from jaxkd.forensics import STANDARD, Budget, chosen_metrics

  metrics = chosen_metrics(args.metrics) if args.metrics else STANDARD
  return Budget(metrics, args.images, args.hessian_images, args.probes)


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
  return compare(args, args.checkpoints, names)


def compare(args: argparse.Namespace, paths: list[str], names: list[str]) -> int:
  """Runs what the arguments ask for and says where the report is."""
  wanted = budget(args)

  from rich.console import Console

  from jaxkd import files, report, subjects
  from jaxkd.forensics import forensics

  models, config = subjects.load_subjects(paths, names)
  config.data.download |= args.download
  out, date = Path(args.out), datetime.date.today().isoformat()
  result, pictures = forensics(models, config, out, budget=wanted, date=date)
  page = report.forensics_report(result, out, pictures=pictures)
  for name, text in report.forensics_exports(result).items():
    files.write_text(out / "tables" / name, text)
  Console().print(report.forensics_console_table(result))
  print(f"taken: {result['seconds']['taken']:.0f} s\nreport: {page}")
  return 0
