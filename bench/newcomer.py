"""Times the tasks of a docs page as a newcomer does them: every block in order, as printed, in an empty folder.

  python -m bench.newcomer [--page docs/your_own.md] [--out results/bench_newcomer.json]

Commands are those of this environment (`pip install '.[bench]'`: the page's torch teacher needs torch). Python blocks
share one session; a block whose first line names a file becomes that file. A command that fails ends the timing with
its code. Prints the seconds of every command and of every task, which is a heading of the page; installing is not in.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import interleave

PIECE = re.compile(
  r"^## (?P<task>[^\n]+)$|^```(?P<language>bash|python)\n(?P<text>.*?)^```", re.DOTALL | re.MULTILINE
)
FILE = re.compile(r"# (\w+\.py)\n")


def do(language: str, text: str, session: dict[str, Any]) -> list[tuple[str, float]]:
  """Does one block; returns what was timed, and its seconds. Raises CalledProcessError for a failed command."""
  if language == "bash":
    return [(line, _seconds(lambda line=line: _run(line))) for line in text.splitlines() if line.strip()]
  if file := FILE.match(text):
    Path(file[1]).write_text(text)
    return []
  first = text.strip().splitlines()[0]
  return [(f"{first} ...", _seconds(lambda: exec(compile(text, "block", "exec"), session)))]


def _run(line: str) -> None:
  """The command of this environment; its words go to stderr, so that they are seen."""
  name, _, rest = line.partition(" ")
  subprocess.run(f"{Path(sys.executable).parent / name} {rest}", shell=True, check=True, stdout=sys.stderr)


def _seconds(call: Any) -> float:
  start = time.perf_counter()
  call()
  return time.perf_counter() - start


def tasks(page: str) -> dict[str, dict[str, float]]:
  """{task: {command: seconds}} of the page's text."""
  found: dict[str, dict[str, float]] = {}
  session: dict[str, Any] = {}
  task = ""
  with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
    for piece in PIECE.finditer(page):
      task = piece["task"] or task
      if piece["language"]:
        found.setdefault(task, {}).update(do(piece["language"], piece["text"], session))
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--page", type=Path, default=Path("docs/your_own.md"))
  parser.add_argument("--out", type=Path, default=Path("results/bench_newcomer.json"))
  args = parser.parse_args()
  steps = tasks(args.page.read_text())
  totals = {task: sum(seconds.values()) for task, seconds in steps.items()}
  about = {"command": f"python -m bench.newcomer --page={args.page}", **interleave.about()}
  args.out.write_text(json.dumps({"seconds": totals, "steps": steps, **about}, indent=2) + "\n")
  for task, seconds in totals.items():
    print(f"{task}: {seconds / 60:.1f} min")


if __name__ == "__main__":
  main()
