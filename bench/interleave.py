"""Timing of several ways to do the same work, in turns within one process: the harness of the comparisons.

Each round runs every way once, so that a load on the machine meets all of them; ratios are taken round by round.
"""

from __future__ import annotations

import dataclasses
import datetime
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import run_folder

PEAK_SIZE = 2048  # of the square float32 matrices whose product is the machine's peak
REST, SHORT = 0.3, 0.15  # seconds: before a call; below this a call is repeated
Run = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Spread:
  """Seconds of several calls."""

  median: float
  low: float
  high: float
  n: int


def spread(values: list[float]) -> Spread:
  return Spread(statistics.median(values), min(values), max(values), len(values))


def interleaved(
  ways: dict[str, Run], *, seconds: float, least: int = 3, most: int = 15
) -> dict[str, list[float]]:
  """Seconds of each call: whole rounds until `seconds` have passed, at least `least` and at most `most`.

  The first call of each way is not counted. Every second round runs in the opposite order.
  """
  for run in ways.values():
    run()
  times: dict[str, list[float]] = {name: [] for name in ways}
  began = time.perf_counter()
  for number in range(most):
    for name in list(ways) if number % 2 else reversed(ways):
      times[name].append(_rested(ways[name]))
    if number + 1 >= least and time.perf_counter() - began > seconds:
      break
  return times


def _rested(run: Run) -> float:
  """Seconds of a call after a rest, in which threads of the one before stop: OpenMP's stay busy for a while.

  Short calls are repeated for a moment and count with their median without the first, which wakes the threads.
  """
  time.sleep(REST)
  taken: list[float] = []
  while sum(taken) < SHORT:
    start = time.perf_counter()
    run()
    taken.append(time.perf_counter() - start)
  return statistics.median(taken[1:] or taken)


def milliseconds(ways: dict[str, Run], *, seconds: float) -> dict[str, float]:
  """Median milliseconds of each way, over five rounds or more."""
  times = interleaved(ways, seconds=seconds, least=5)
  return {name: 1e3 * statistics.median(t) for name, t in times.items()}


def ratio(times: dict[str, list[float]], numerator: str, denominator: str) -> Spread:
  """Seconds of one way over those of another, round by round."""
  return spread([a / b for a, b in zip(times[numerator], times[denominator], strict=True)])


def peaks() -> dict[str, Run]:
  """The product of two float32 matrices by each library: what the machine can do at best."""
  import torch

  ours, theirs = jnp.ones((PEAK_SIZE, PEAK_SIZE)), torch.ones(PEAK_SIZE, PEAK_SIZE)
  product = jax.jit(lambda a: a @ a)
  return {"peak jax": lambda: product(ours).block_until_ready(), "peak torch": lambda: theirs @ theirs}


def peak_gflops(times: dict[str, list[float]]) -> dict[str, float]:
  return {n: 2e-9 * PEAK_SIZE**3 / statistics.median(t) for n, t in times.items() if n.startswith("peak")}


def about() -> dict[str, Any]:
  """Where and when: hardware, date, versions."""
  versions = {}
  for name in ("jax", "jaxlib", "flax", "torch", "transformers"):
    try:
      versions[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      versions[name] = "absent"
  now = datetime.datetime.now(datetime.UTC)
  return {"hardware": run_folder.hardware(), "date": f"{now:%Y-%m-%d %H:%M} UTC", "versions": versions}
