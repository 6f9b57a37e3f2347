"""Runs the whole experiment of a study config: teachers, matched students over seeds, forensics, report."""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxkd.commands import add_download, load_config, parse
from jaxkd.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--config", default="", help="FILE.py[:ARG]; single keys: --config.study.seeds=0,1,2")
  parser.add_argument("--workdir", default="", help="folder of the study (default: runs/study_<name>)")
  add_download(parser)


def run(parser: argparse.ArgumentParser, argv: list[str]) -> int:
  args, overrides = parse(parser, argv)
  config = load_config(args, overrides)
  if "study" not in config:
    raise UserError(f"{args.config} describes one run, not a study", f"use: train --config={args.config}")
  folder = Path(args.workdir or f"runs/study_{config.study.name}")

  from rich.console import Console

  from jaxkd import files, report
  from jaxkd.study import run_study

  study = run_study(config, folder)
  page = report.study_report(study, files.read_json(folder / "forensics" / "forensics.json"), folder)
  for name, text in report.study_exports(study).items():
    files.write_text(folder / "tables" / name, text)
  Console().print(report.console_table(study))
  print(f"report: {page}")
  return 0
