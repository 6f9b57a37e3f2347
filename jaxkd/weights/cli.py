"""`jaxkd-convert import|export|verify|list`: weights from torch and back (`python -m convert` in a checkout)."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from jaxkd.errors import UserError
from jaxkd.main import Parser, guarded

TOLERANCE = 1e-5


def parser() -> argparse.ArgumentParser:
  """All four commands with their options."""
  top = Parser(prog="jaxkd-convert", description=__doc__)
  commands = top.add_subparsers(dest="command", required=True, parser_class=Parser)
  one = commands.add_parser("import", help="torch weights to a jaxkd checkpoint")
  _weights_arguments(one)
  one.add_argument("--out", required=True, help="folder of the checkpoint")
  one.add_argument(
    "--mean", default="", help="normalisation per channel, comma-separated (default: ImageNet's)"
  )
  one.add_argument("--std", default="", help="normalisation per channel, comma-separated")
  one = commands.add_parser("export", help="a checkpoint to torch names, jax.export or ONNX")
  one.add_argument("--checkpoint", required=True, help="a run folder (its best step), or one step's folder")
  add_export_arguments(one)
  one = commands.add_parser("verify", help="the largest error of each part against torch")
  _weights_arguments(one)
  one.add_argument(
    "--size", type=int, action="append", default=[], help="image side (default: the model's); repeatable"
  )
  one.add_argument("--batch", type=int, default=2, help="images per call")
  one.add_argument("--golden", default="", help="compare with this .npz instead of running torch")
  one.add_argument(
    "--tolerance", type=float, default=TOLERANCE, help="largest error of a part, relative above 1"
  )
  one = commands.add_parser("list", help="models, styles, official weights; or one model's parameters")
  one.add_argument("--model", default="", help="show this model's parameter table with torch names")
  one.add_argument("--style", default="", help="whose torch names to show")
  one.add_argument(
    "--option", action="append", default=[], metavar="KEY=VALUE", help="an option of the model"
  )
  return top


def _weights_arguments(one: argparse.ArgumentParser) -> None:
  one.add_argument("--model", default="", help="a name of `list` (a hub: name brings its own)")
  one.add_argument("--weights", required=True, help=".safetensors, .pth, a folder of shards, or hub:NAME")
  one.add_argument(
    "--option", action="append", default=[], metavar="KEY=VALUE", help="an option of the model"
  )
  one.add_argument("--style", default="", help="style of the names (default: detected)")
  one.add_argument("--sha256", default="", help="refuse a file with another digest (8 or more digits)")
  one.add_argument("--interpolate-pos", action="store_true", help="resample positions of another grid")
  one.add_argument(
    "--allow", action="append", default=[], metavar="PATTERN", help="leaf or key that may differ"
  )


def add_export_arguments(one: argparse.ArgumentParser) -> None:
  one.add_argument(
    "--style", default="timm", help="timm, official, torchvision, transformers, jaxkd, jax or onnx"
  )
  one.add_argument(
    "--out", required=True, help="file (.safetensors, any for jax, .onnx), or folder for transformers"
  )


def run(argv: list[str]) -> int:
  args = parser().parse_args(argv)
  return {"import": _import, "export": run_export, "verify": _verify, "list": _list}[args.command](args)


def parse_options(pairs: list[str], known: dict[str, Any]) -> dict[str, Any]:
  """`["patch_size=2", "widths=8,16"]` as a dictionary of keys in `known`."""
  from jaxkd.config import free_value
  from jaxkd.errors import did_you_mean

  found = {}
  for pair in pairs:
    key, equals, text = pair.partition("=")
    if not equals:
      raise UserError(f"--option {pair} has no value", "write --option KEY=VALUE")
    if key not in known:
      raise UserError(f"no model option '{key}'", did_you_mean(key, known))
    found[key] = free_value(text)
  return found


def _numbers(name: str, text: str) -> tuple[float, ...]:
  try:
    return tuple(float(part) for part in text.split(",")) if text else ()
  except ValueError as e:
    raise UserError(f"--{name}={text} is not a list of numbers", "write e.g. 0.5,0.5,0.5") from e


def _open(args: argparse.Namespace, **more: Any) -> Any:
  from jaxkd import models
  from jaxkd.errors import did_you_mean
  from jaxkd.weights import hub
  from jaxkd.weights.opened import HUB, open_weights

  model = args.model
  if not model and args.weights.startswith(HUB):
    model = hub.source(args.weights.removeprefix(HUB)).model
  if model not in models.names():
    raise UserError(
      f"unknown model '{model}'" if model else "no --model given", did_you_mean(model, models.names())
    )
  options = parse_options(args.option, models.options(model))
  return open_weights(
    args.weights,
    model=model,
    options=options,
    style=args.style,
    sha256=args.sha256,
    allow=args.allow,
    interpolate_pos=args.interpolate_pos,
    **more,
  )


def _import(args: argparse.Namespace) -> int:
  from pathlib import Path

  from jaxkd.weights import opened, show

  found = _open(args, mean=_numbers("mean", args.mean), std=_numbers("std", args.std))
  opened.save(found, Path(args.out))
  show.conversion(found)
  print(
    f"written: {args.out} (a checkpoint: use it as a teacher's weights, or with evaluate, inspect, forensics)"
  )
  return 0


def run_export(args: argparse.Namespace) -> int:
  """Also behind `jaxkd export`."""
  from pathlib import Path

  from jaxkd import checkpoint
  from jaxkd.weights.export import describe, export

  written = export(checkpoint.load(args.checkpoint), Path(args.out), style=args.style)
  for name, size, digest in describe(written):
    print(f"written: {name}  {size:,} bytes  sha256 {digest[:16]}")
  return 0


def _verify(args: argparse.Namespace) -> int:
  from pathlib import Path

  from jaxkd.weights import hub, show, verify
  from jaxkd.weights.opened import HUB
  from jaxkd.weights.read import read_weights

  found = _open(args)
  if args.golden:
    rows = verify.verify_golden(found, Path(args.golden))
  else:
    hub_name = args.weights.removeprefix(HUB)
    path = hub.fetch(hub_name) if args.weights.startswith(HUB) else args.weights
    rows = verify.verify(found, read_weights(path).arrays, sizes=tuple(args.size), batch=args.batch)
  show.differences(rows, args.tolerance)
  worst = max(rows, key=lambda row: row.relative)
  if not worst.relative <= args.tolerance:
    raise UserError(
      f"{worst.part} at {worst.size} px differs by {worst.error:.1e} (largest value {worst.scale:.1e}), tolerance "
      f"{args.tolerance:.0e}",
      "wrong layout, style or options: see --style and --option (epsilon, interpolation)",
    )
  return 0


def _list(args: argparse.Namespace) -> int:
  from jaxkd import models
  from jaxkd.errors import did_you_mean
  from jaxkd.weights import show

  if not args.model:
    show.overview()
    return 0
  if args.model not in models.names():
    raise UserError(f"unknown model '{args.model}'", did_you_mean(args.model, models.names()))
  options = parse_options(args.option, models.options(args.model))
  show.parameters(args.model, options, args.style)
  return 0


def main(argv: list[str] | None = None) -> int:
  """Runs one command; user errors become `error:` and `hint:` lines and an exit code."""
  return guarded(run, sys.argv[1:] if argv is None else argv)


def entry() -> None:
  """The `jaxkd-convert` console script."""
  sys.exit(main())
