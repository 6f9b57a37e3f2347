"""One thin file per command: arguments in, one call into the library, a table out."""

from __future__ import annotations

import argparse
import sys

from ml_collections import ConfigDict

from jaxkd import config as configs
from jaxkd.errors import UserError, did_you_mean


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
  """Splits `argv` into the command's own arguments and the `--config.key=value` overrides.

  Raises:
    UserError: an argument nobody knows, or an override without a value.
  """
  own, overrides, i = [], {}, 0
  while i < len(argv):
    if argv[i].startswith("--config."):
      key, equals, value = argv[i].removeprefix("--config.").partition("=")
      if not equals:
        i += 1
        if i == len(argv):
          raise UserError(f"--config.{key} has no value", f"write --config.{key}=VALUE")
        value = argv[i]
      overrides[key] = value
    else:
      own.append(argv[i])
    i += 1
  args, unknown = parser.parse_known_args(own)
  if unknown:
    known = [o for a in parser._actions for o in a.option_strings]
    raise UserError(f"unknown argument '{unknown[0]}'", did_you_mean(unknown[0].partition("=")[0], known))
  return args, overrides


def add_download(parser: argparse.ArgumentParser) -> None:
  """`--download`, for the commands that read a data set."""
  parser.add_argument(
    "--download",
    action="store_true",
    help="fetch published files that data.root lacks (the same as --config.data.download=true)",
  )


def load_config(args: argparse.Namespace, overrides: dict[str, str]) -> ConfigDict:
  """The validated config that `--config` and its overrides name; says which of its values do nothing."""
  if not args.config:
    raise UserError("no config given", "add --config=configs/quickstart.py")
  if args.download:
    overrides = {**overrides, "data.download": "true"}
  config = configs.load(args.config, overrides)
  for note in configs.notes(config):
    print(f"warning: {note}", file=sys.stderr)
  return config
