"""Runs the step at which a run failed (exit 3) again, from the run's last good checkpoint, and prints its losses."""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxkd.commands import parse
from jaxkd.errors import NumericFailure, UserError

TOGETHER = True  # several processes share the work
STEPS = 5  # shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("run", help="the folder of a run that has failed/replay.npz")


def run(parser: argparse.ArgumentParser, argv: list[str]) -> int:
  args, overrides = parse(parser, argv)
  if overrides:
    raise UserError("a run brings its own config; --config.* has no effect", "leave it out")
  folder = Path(args.run)

  from rich.console import Console
  from rich.table import Table

  from jaxkd.replay import replay

  found = replay(folder)
  shown = {n: row for n, row in found.rows.items() if n <= found.step + 1}
  last = dict(list(shown.items())[-STEPS:])
  table = Table("", *(f"step {n}" for n in last), title=f"{folder.name}, run again from step {found.start}")
  for name in next(iter(last.values())):
    if name in ("loss", "gradient_norm", "skipped") or name.startswith("loss/"):
      table.add_row(name, *(f"{row[name]:.6g}" for row in last.values()))
  Console().print(table)
  if not found.reproduces:
    changed = ", ".join(f"{k} {a:.6g} then, {b:.6g} now" for k, (a, b) in list(found.differing.items())[:3])
    raise NumericFailure(
      f"the failure of step {found.step + 1} does not reproduce: {changed}",
      "compare env.json with this machine's versions and devices; if they are equal, suspect the hardware",
    )
  bits = "to a part in a thousand" if found.differing else "to the last bit"
  print(f"reproduces: step {found.step + 1} fails again, with the same values {bits}")
  return 0
