"""Takes a checkpoint elsewhere: timm or transformers weights, a jax.export program, ONNX; with a model card."""

from __future__ import annotations

import argparse

from jaxkd.commands import parse
from jaxkd.weights import cli


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("checkpoint", help="a run folder (its best step), or one step's folder")
  cli.add_export_arguments(parser)


def run(parser: argparse.ArgumentParser, argv: list[str]) -> int:
  args, _ = parse(parser, argv)
  return cli.run_export(args)
