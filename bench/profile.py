"""Where the seconds of a run or a study go: compiling, input, computing, rows, checkpoints, validation, the rest.

  python -m bench.profile [--config=configs/study.py:digits] [--cache filled] [--out results/bench_profile.json]

The command's own functions run with clocks around them. A second counts once: what is inside another section leaves
it, and compiling leaves all. "steps" is dispatching and waiting for steps, so on CPU it is computing.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from jaxkd import bank, checkpoint, evaluation, feed, metrics, run_folder, study, train
from jaxkd import config as configs

COMPILE = (
  "/jax/core/compile/"  # tracing, lowering and the backend's compilation, or reading it from the cache
)
# Section -> functions whose time it is.
SECTIONS: dict[str, tuple[tuple[Any, str], ...]] = {
  "data and set-up": (
    (train, "build"),
    (train._Loop, "__init__"),
    (train, "frozen_inputs"),
    (bank, "open_bank"),
  ),
  "input": ((feed.Feed, "batches"),),
  "steps": ((train._Loop, "_advance"), (train._Loop, "_flush")),
  "rows": ((metrics.MetricLog, "write"), (metrics.ProgressLine, "update")),
  "checkpoints": (
    (checkpoint.Checkpoints, "save"),
    (checkpoint.Checkpoints, "wait"),
    (checkpoint.Checkpoints, "close"),
    (checkpoint, "read_step"),
  ),
  "validation": ((train._Loop, "_validate"), (evaluation, "collect")),
  "examination": ((study, "examine"), (study, "quality"), (study, "forensics")),
}


class Clock:
  """Exclusive seconds by section."""

  def __init__(self) -> None:
    self.seconds = {"compiling": 0.0} | dict.fromkeys(SECTIONS, 0.0)
    self.inside: list[float] = [0.0]  # seconds that belong to others, for each open section
    self.spans: list[tuple[float, float]] = []  # (start, seconds) of compiling that is in no other
    jax.monitoring.register_event_duration_secs_listener(self._compiled)

  def _compiled(self, event: str, seconds: float, **_: Any) -> None:
    if not event.startswith(COMPILE):
      return
    start, inner = time.perf_counter() - seconds, 0.0
    while self.spans and self.spans[-1][0] >= start:  # tracing inside tracing is told twice
      inner += self.spans.pop()[1]
    self.spans.append((start, seconds))
    self.seconds["compiling"] += seconds - inner
    self.inside[-1] += seconds - inner

  @contextlib.contextmanager
  def section(self, name: str) -> Iterator[None]:
    start = time.perf_counter()
    self.inside.append(0.0)
    try:
      yield
    finally:
      spent, others = time.perf_counter() - start, self.inside.pop()
      self.seconds[name] += spent - others
      self.inside[-1] += spent

  def watch(self, owner: Any, attribute: str, name: str) -> None:
    original = getattr(owner, attribute)

    @functools.wraps(original)
    def timed(*arguments: Any, **options: Any) -> Any:
      with self.section(name):
        return original(*arguments, **options)

    setattr(owner, attribute, timed)


def measure(spec: str, clock: Clock) -> dict[str, Any]:
  """Seconds and shares of the whole command for a config, which may be a study."""
  start = time.perf_counter()
  config = configs.load(spec)
  with tempfile.TemporaryDirectory() as folder:
    if "study" in config:
      study.run_study(config, Path(folder) / "run")
    else:
      train.train(config, Path(folder) / "run")
  total = time.perf_counter() - start
  seconds = {**clock.seconds, "rest": total - sum(clock.seconds.values())}
  return {"seconds": {**seconds, "total": total}, "shares": {k: v / total for k, v in seconds.items()}}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--config", default="configs/study.py:digits")
  parser.add_argument(
    "--cache", choices=("empty", "filled", "own"), default="empty", help="compilation cache"
  )
  parser.add_argument("--out", type=Path, help="adds this run to a JSON file")
  args = parser.parse_args()
  clock = Clock()
  with tempfile.TemporaryDirectory() as cache:
    if args.cache != "own":
      jax.config.update("jax_compilation_cache_dir", cache)
      jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if args.cache == "filled":
      measure(args.config, clock)
      clock.seconds = dict.fromkeys(clock.seconds, 0.0)
      jax.clear_caches()
    for name, functions in SECTIONS.items():
      for owner, attribute in functions:
        clock.watch(owner, attribute, name)
    found = measure(args.config, clock)
  command = f"python -m bench.profile --config={args.config} --cache={args.cache}"
  head = {"command": command, "date": datetime.date.today().isoformat(), "hardware": run_folder.hardware()}
  print(json.dumps(result := {**head, **found}, indent=2))
  if args.out:
    runs = json.loads(args.out.read_text())["runs"] if args.out.exists() else []
    runs = [r for r in runs if r["command"] != command]
    args.out.write_text(json.dumps({"runs": [*runs, result]}, indent=2) + "\n")


if __name__ == "__main__":
  main()
