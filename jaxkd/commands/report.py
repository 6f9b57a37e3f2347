"""Draws the curves of one or several runs: loss and its terms, validation accuracy, learning rate, gradient shares;
writes report.html, figures, and the table of the runs as CSV and LaTeX."""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxkd.commands import parse
from jaxkd.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("runs", nargs="+", help="run folders, finished or not")
  parser.add_argument("-n", "--name", action="append", default=[], help="one name for each run, in order")
  parser.add_argument(
    "-o", "--out", default="report", help="folder of report.html and figures (default: report)"
  )


def run(parser: argparse.ArgumentParser, argv: list[str]) -> int:
  args, overrides = parse(parser, argv)
  names = args.name or [Path(p).absolute().name for p in args.runs]
  if overrides:
    raise UserError("runs bring their own configs; --config.* has no effect", "leave it out")
  if len(names) != len(args.runs) or len(set(names)) != len(names):
    raise UserError(
      f"{len(names)} names ({', '.join(names)}) for {len(args.runs)} runs",
      "give one different -n NAME for each, in order",
    )

  from rich.console import Console

  from jaxkd import files, report, run_folder, run_record

  runs = [run_record.read(Path(p), n) for p, n in zip(args.runs, names, strict=True)]
  out = Path(args.out)
  page = report.runs_report(runs, out, command=run_folder.command_line())
  for name, text in report.runs_exports(runs).items():
    files.write_text(out / name, text)
  Console().print(report.runs_console_table(runs))
  for one in runs:
    for message in one["warnings"]:
      print(f"warning: {one['name']}: {message}")
  print(f"report: {page}")
  return 0
