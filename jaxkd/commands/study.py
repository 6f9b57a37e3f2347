"""Runs the whole experiment of a study config: teachers, matched students over seeds, forensics, report."""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxkd.commands import add_download, load_config, parse
from jaxkd.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--config", default="", help="FILE.py[:ARG]; single keys: --config.study.seeds=0,1,2")
  parser.add_argument("--workdir", default="", help="folder of the study (default: runs/study_<name>)")
  parser.add_argument(
    "--results",
    default="",
    help="folder of everything small: models and numbers of each piece, study.json, report (default: the workdir)",
  )
  parser.add_argument(
    "--piece",
    default="",
    help="make one piece only: teachers/NAME, students/ARM_seedN, next (the first not done), or report",
  )
  parser.add_argument("--pieces", action="store_true", help="list the pieces, done and left, and end")
  add_download(parser)


def run(parser: argparse.ArgumentParser, argv: list[str]) -> int:
  args, overrides = parse(parser, argv)
  config = load_config(args, overrides)
  if "study" not in config:
    raise UserError(f"{args.config} describes one run, not a study", f"use: train --config={args.config}")
  folder = Path(args.workdir or f"runs/study_{config.study.name}")
  results = Path(args.results or folder)

  from jaxkd import study, study_pieces

  if args.pieces:
    _print_pieces(config, folder, results)
  elif args.piece and args.piece != study_pieces.REPORT:
    places = study.open_study(config, folder, results)
    if piece := study_pieces.find(config, places, args.piece):
      study.run_piece(config, piece, places)
    _print_left(study_pieces.listing(config, places))
  else:
    whole = study.run_study if not args.piece else study.report_only
    _show(whole(config, folder, results), results)
  return 0


def _show(study, results: Path) -> None:
  from rich.console import Console

  from jaxkd import files, report

  page = report.study_report(study, files.read_json(results / "forensics" / "forensics.json"), results)
  for name, text in report.study_exports(study).items():
    files.write_text(results / "tables" / name, text)
  Console().print(report.console_table(study))
  print(f"report: {page}")


def _print_pieces(config, folder: Path, results: Path) -> None:
  from jaxkd import study_pieces
  from jaxkd.cost import span

  rows = study_pieces.listing(config, study_pieces.places_of(config, folder, results))
  for row in rows:
    time = row["seconds"] or row["predicted"]
    words = "" if time is None else f"{'took' if row['seconds'] else 'about'} {span(time)}"
    print(f"{row['piece']:<32} {row['state']:<6} {words}".rstrip())
  _print_left(rows)


def _print_left(rows) -> None:
  """`3 of 14 pieces are left: about 40 min`."""
  from jaxkd.cost import span

  left = [r for r in rows if r["state"] != "done"]
  times = [r["predicted"] for r in left]
  known = f": about {span(sum(times))}" if times and None not in times else ""
  print(f"{len(left)} of {len(rows)} pieces are left{known}")
