"""How many seeds would decide what a study left undecided: numbers for `study.json`, and one sentence of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxkd.analysis import Comparison, detectable_effect, sd_factors, seeds_needed
from jaxkd.analysis.power import MOST, POWER


def planned(c: Comparison, smallest: float | None) -> dict[str, Any] | None:
  """The `power` entry of a comparison: what its seeds detect, and how many would find differences of two sizes.

  All at 80 % power of the paired t test at the comparison's own level, with the sd observed. None without spread. Where
  no number up to 10,000 is enough, and for a smallest difference that nobody named, an entry is None.
  """
  if not c.sd > 0:  # NaN for one seed
    return None
  needed = lambda size: seeds_needed(size / c.sd, level=c.level)  # noqa: E731
  return {
    "power": POWER,
    "detectable": c.sd * detectable_effect(c.n, level=c.level),
    "seeds_for_observed": needed(c.difference),
    "smallest": smallest,
    "seeds_for_smallest": None if smallest is None else needed(smallest),
  }


def note(steps: Sequence[Comparison], smallest: float | None, metric: Mapping[str, Any]) -> str:
  """One sentence on the seeds that the hardest of some undecided steps would take.

  Args:
    steps: comparisons of one metric, arms by their labels.
    smallest: the smallest difference of interest, if one was named.
    metric: `scale`, `digits` and `unit` of the numbers.
  """
  if steps[0].n < 2:
    return (
      "One seed shows no spread between seeds, from which the number needed could be told; run at least 3."
    )
  plans = [(c, plan) for c in steps if (plan := planned(c, smallest))]
  if not plans:
    return "Every seed shows the same difference, so there is no spread from which the number needed could be told."
  hardest, found = max(plans, key=lambda pair: pair[1]["seeds_for_observed"] or math.inf)
  seen = (
    f"a difference as large as the one seen ({hardest.b} - {hardest.a}: {_size(hardest.difference, metric)})"
  )
  text = (
    f"With the spread between these {hardest.n} seeds, {_seeds(found['seeds_for_observed'])} would find {seen} with "
    f"{100 * POWER:.0f} % probability"
  )
  if smallest is not None:
    size, count = _size(smallest, metric), _seeds(found["seeds_for_smallest"])
    text += f", and {count} one of {size}, the smallest of interest"
  return text + "."


def caution(n: int) -> str:
  """How little the spread of n seeds says, for the foot of a table; empty for one seed."""
  if n < 2:
    return ""
  low, high = sd_factors(n)
  return (
    f"The spread of {n} seeds is known to a factor of {low:.1f} to {high:.1f} (95 %), and the seeds needed go with its "
    "square: read their number as an order of magnitude."
  )


def _seeds(count: int | None) -> str:
  return f"about {count:,} seeds" if count else f"more than {MOST:,} seeds"


def _size(value: float, metric: Mapping[str, Any]) -> str:
  unit = "points" if metric["unit"] == "%" else metric["unit"]
  shown = abs(value) * metric["scale"]
  digits = max(0, 1 - math.floor(math.log10(shown))) if shown else 0  # two significant digits
  return f"{shown:,.{digits}f} {unit}".strip()
