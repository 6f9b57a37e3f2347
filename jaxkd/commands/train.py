"""Trains what the config says; the same command again resumes."""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxkd import distributed
from jaxkd.commands import add_download, load_config, parse
from jaxkd.errors import UserError

TOGETHER = True  # several processes share the work


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--config", default="", help="FILE.py[:ARG]; single keys: --config.optim.lr=3e-4")
  parser.add_argument("--workdir", default="", help="run folder (default: runs/<config name>)")
  add_download(parser)


def run(parser: argparse.ArgumentParser, argv: list[str]) -> int:
  args, overrides = parse(parser, argv)
  config = load_config(args, overrides)
  if "study" in config:
    raise UserError(f"{args.config} describes a study, not one run", f"use: study --config={args.config}")
  folder = Path(args.workdir or f"runs/{Path(args.config.partition(':')[0]).stem}")

  from jaxkd import replicas
  from jaxkd.train import train  # jax is imported only once the config is known to be right

  result = train(config, folder)
  scores = {k: v for k, v in result.best["metrics"].items() if k.startswith("validation/")}
  print(f"done: step {result.step}, best step {result.best['step']} in {result.folder}")
  print("  ".join(f"{k} {v:.4f}" for k, v in scores.items()))
  if not distributed.is_first():
    return 0
  for seed in config.train.replicas:
    print(f"seed {seed}: {replicas.folder_of(folder, seed)}")
  for own in [replicas.folder_of(folder, s) for s in config.train.replicas] or [folder]:
    path, warnings = _report(own)
    for message in warnings:
      print(f"warning: {message}")
    print(f"report: {path}")
  return 0


def _report(folder: Path) -> tuple[Path, list[str]]:
  """The page of one run (curves from its metrics.jsonl, config, environment), and what is wrong with its terms."""
  from jaxkd import report, run_record

  run = run_record.read(folder)
  return report.training_report(run, folder), run["warnings"]
