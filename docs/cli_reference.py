"""Writes docs/cli.md: every command with its arguments, from the code.

python -m docs.cli_reference
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from jaxkd import main

FILE = Path(__file__).parent / "cli.md"

INTRODUCTION = f"""# Commands

This file is made by `python -m docs.cli_reference`; a test says when it is out of date.

```
{(main.__doc__ or "").strip().strip("`.")}
```

COMMAND defaults to `train`. `python -m jaxkd.main` and the installed script `jaxkd` are the same. `--config.key=value`
changes one key of the config ([Configs](configs.md)); `COMMAND --help` prints what stands here. Exit codes: see
[Faults](faults.md).
"""


def text() -> str:
  """All of docs/cli.md."""
  return "\n".join([INTRODUCTION, *(_section(name) for name in main.COMMANDS)]).rstrip() + "\n"


def _section(name: str) -> str:
  module = importlib.import_module(f"jaxkd.commands.{name}")
  parser = argparse.ArgumentParser(prog=f"jaxkd {name}", add_help=False)
  module.add_arguments(parser)
  rows = "".join(_row(action) for action in parser._actions)
  table = f"\n| argument | default | meaning |\n|---|---|---|\n{rows}" if rows else ""
  return f"## `{name}`\n\n{(module.__doc__ or '').strip()}\n{table}"


def _row(action: argparse.Action) -> str:
  names = ", ".join(f"`{o}`" for o in action.option_strings) or f"`{(action.metavar or action.dest).upper()}`"
  silent = action.default in (None, "", False, argparse.SUPPRESS) or action.default == []
  default = "" if silent else f"`{action.default}`"
  meaning = " ".join((action.help or "").split()).replace("|", "\\|")
  return f"| {names} | {default} | {meaning} |\n"


if __name__ == "__main__":
  FILE.write_text(text())
