"""Statistics over seeds: paired t intervals, Holm's adjustment, verdicts on designed orderings.

A study has few seeds (3 to 10), the same ones in every arm, so the unit is the difference within a seed.
Plain numpy and scipy; nothing here knows which metric it is looking at.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri, stdtr, stdtrit

Outcome = Literal["supported", "contradicted", "undecided"]


@dataclass(frozen=True)
class Interval:
  """A mean with its confidence interval, the standard deviation of one value, and the number of values."""

  mean: float
  low: float
  high: float
  sd: float
  n: int


@dataclass(frozen=True)
class PairedDifference(Interval):
  """Interval of b - a over pairs, with the two-sided p value and the effect size d_z = mean / sd."""

  p: float
  effect: float


@dataclass(frozen=True)
class Comparison:
  """Arm b minus arm a on one metric, paired by seed.

  `low` and `high` bound the difference at confidence `level`, adjusted after Holm; `p_holm` is the adjusted p
  value. The interval excludes 0 exactly where p_holm < alpha. `sd` is that of the differences; `effect` is
  d_z. With one seed the interval is infinite, p is 1, and sd and effect are NaN.
  """

  metric: str
  a: str
  b: str
  difference: float
  low: float
  high: float
  level: float
  p: float
  p_holm: float
  sd: float
  effect: float
  n: int


@dataclass(frozen=True)
class Verdict:
  """What the data say about an ordering, and why, in one sentence."""

  outcome: Outcome
  reason: str


def mean_interval(values: Sequence[float] | Float[np.ndarray, " n"], *, confidence: float = 0.95) -> Interval:
  """Mean of independent values with Student's t interval.

  One value gives (-inf, inf) and a NaN standard deviation: it says nothing about its own spread.

  Raises:
    ValueError: no values, values that are not finite or not one-dimensional, or a confidence outside (0, 1).
  """
  _check_level(confidence)
  x = _finite("values", values)
  if len(x) < 2:
    return Interval(float(x[0]), -math.inf, math.inf, math.nan, 1)
  mean, sd = _mean_and_sd(x)
  half = smallest_detectable(sd, len(x), level=confidence)
  return Interval(mean, mean - half, mean + half, sd, len(x))


def paired_difference(
  a: Sequence[float] | Float[np.ndarray, " n"],
  b: Sequence[float] | Float[np.ndarray, " n"],
  *,
  confidence: float = 0.95,
) -> PairedDifference:
  """Mean of b - a over pairs: t interval, two-sided p value, effect size d_z.

  Where all differences are equal the interval is the point itself, and p is 0 (1 if the differences are all
  0). One pair gives an infinite interval, p = 1 and a NaN effect.

  Raises:
    ValueError: different lengths, or what `mean_interval` refuses.
  """
  x, y = _finite("a", a), _finite("b", b)
  if len(x) != len(y):
    raise ValueError(f"a has {len(x)} values and b has {len(y)}; pairs need one of each per seed")
  # A difference of rounding size is none: repeated in every seed, it would otherwise pass for certainty.
  rounding = 4 * np.finfo(np.float64).eps * np.maximum(np.abs(x), np.abs(y))
  interval = mean_interval(np.where(np.abs(y - x) <= rounding, 0.0, y - x), confidence=confidence)
  mean, sd, n = interval.mean, interval.sd, interval.n
  if n < 2:
    p, effect = 1.0, math.nan
  elif sd == 0:
    p, effect = (1.0, 0.0) if mean == 0 else (0.0, math.copysign(math.inf, mean))
  else:
    p, effect = 2 * float(stdtr(n - 1, -abs(mean) / sd * math.sqrt(n))), mean / sd
  return PairedDifference(mean, interval.low, interval.high, sd, n, p, effect)


def holm(
  p_values: Sequence[float] | Float[np.ndarray, " m"], *, alpha: float = 0.05
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
  """Holm's step-down adjustment: adjusted p values and a confidence level for each, in the order given.

  The k-th smallest of m p values gets the level `1 - alpha / (m - k + 1)` up to the first that is not
  rejected; from there on every level is that first one's. Going on to step down would hand out intervals that
  exclude 0 where Holm's procedure has already stopped (p = .03 and .04 at alpha = .05: neither is rejected,
  yet .04 < alpha). So a t interval at its level excludes 0 exactly where the adjusted p is below alpha.

  Raises:
    ValueError: no p values, or one outside [0, 1] (NaN included), or alpha outside (0, 1).

  Source: Holm (1979), "A simple sequentially rejective multiple test procedure".
  """
  _check_level(1 - alpha)
  p = _finite("p_values", p_values)
  if p.min() < 0 or p.max() > 1:
    raise ValueError(f"p values {p.tolist()} must lie in [0, 1]")
  order = np.argsort(p, kind="stable")
  remaining = np.arange(len(p), 0, -1)
  adjusted = np.minimum(1.0, np.maximum.accumulate(remaining * p[order]))
  rejected = int((adjusted < alpha).sum())  # sorted and monotone, so these are the first ones
  divisors = np.maximum(remaining, len(p) - rejected)
  p_holm, levels = np.empty_like(p), np.empty_like(p)
  p_holm[order], levels[order] = adjusted, 1 - alpha / divisors
  return p_holm, levels


def compare(
  values: Mapping[str, Mapping[str, Mapping[int, float]]],
  pairs: Sequence[tuple[str, str, str]],
  *,
  alpha: float = 0.05,
) -> list[Comparison]:
  """Compares arms, paired by seed, adjusted after Holm over all pairs of this call, whatever their metric.

  Args:
    values: metric -> arm -> seed -> value.
    pairs: (metric, a, b) for each difference b - a. Together they are the family whose error rate alpha bounds.
    alpha: family-wise error rate.

  Raises:
    ValueError: no pairs, a pair twice, an unknown metric or arm, two arms without the same seeds, or values that are
      not finite.
  """
  if not pairs:
    raise ValueError("no pairs to compare")
  if len({(m, frozenset((a, b))) for m, a, b in pairs}) < len(pairs) or any(a == b for _, a, b in pairs):
    raise ValueError(f"pairs {list(pairs)} name a comparison twice, or an arm against itself")
  if unknown := sorted({m for m, _, _ in pairs} - values.keys()):
    raise ValueError(f"unknown metric '{unknown[0]}'; known: {', '.join(sorted(values))}")
  samples = [_paired(values[metric], a, b, metric) for metric, a, b in pairs]
  p_holm, levels = holm([paired_difference(x, y).p for x, y in samples], alpha=alpha)
  found = []
  for (metric, a, b), (x, y), p, level in zip(pairs, samples, p_holm.tolist(), levels.tolist(), strict=True):
    d = paired_difference(x, y, confidence=level)
    found.append(Comparison(metric, a, b, d.mean, d.low, d.high, level, d.p, p, d.sd, d.effect, d.n))
  return found


def verdict(
  order: Sequence[str], comparisons: Sequence[Comparison], *, scale: float = 1.0, unit: str = ""
) -> Verdict:
  """Judges the ordering `order[0] < order[1] < ...` by the adjusted intervals of its adjacent pairs.

  supported: every interval lies above 0. contradicted: some interval lies wholly below 0. undecided: anything
    else.

  Args:
    order: arms in increasing order of the metric, as claimed; at least 2.
    comparisons: from one call of `compare`, in either direction; pairs that are not adjacent are not used.
    scale: the reason shows `scale` times the values, in `unit`.

  Raises:
    ValueError: fewer than 2 arms, an arm twice, comparisons of several metrics, or an adjacent pair not
      compared.
  """
  if len(order) < 2 or len(set(order)) < len(order):
    raise ValueError(f"order {list(order)} must name at least 2 different arms")
  if len({c.metric for c in comparisons}) > 1:
    raise ValueError(
      f"comparisons mix the metrics {sorted({c.metric for c in comparisons})}; pass those of one"
    )
  steps = [_oriented(a, b, comparisons) for a, b in itertools.pairwise(order)]
  if against := [c for c in steps if c.high < 0]:
    return Verdict("contradicted", "; ".join(_describe(c, "below", scale, unit) for c in against))
  if unclear := [c for c in steps if c.low <= 0]:
    return Verdict("undecided", "; ".join(_describe(c, "includes", scale, unit) for c in unclear))
  return Verdict("supported", "; ".join(_describe(c, "above", scale, unit) for c in steps))


def unclear_steps(order: Sequence[str], comparisons: Sequence[Comparison]) -> list[Comparison]:
  """The adjacent pairs of an ordering whose adjusted interval does not lie above 0, as b - a in its direction.

  Raises:
    ValueError: an adjacent pair that was not compared.
  """
  steps = (_oriented(a, b, comparisons) for a, b in itertools.pairwise(order))
  return [c for c in steps if c.low <= 0]


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> Interval:
  """Wilson's score interval of a proportion, such as an accuracy over n test images; sd is that of one 0/1
  outcome.

  It is the uncertainty of the test sample for a given model, not that over seeds.

  Raises:
    ValueError: n < 1, successes outside 0..n, or a confidence outside (0, 1).

  Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference".
  """
  _check_level(confidence)
  if n < 1 or not 0 <= successes <= n:
    raise ValueError(f"{successes} successes of {n}: expected 0 <= successes <= n with n of at least 1")
  z = float(ndtri((1 + confidence) / 2))
  p = successes / n
  centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
  half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
  # At p = 0 and p = 1 the bounds are 0 and 1 exactly; rounding must not put them outside.
  low = 0.0 if successes == 0 else centre - half
  high = 1.0 if successes == n else centre + half
  return Interval(p, low, high, math.sqrt(p * (1 - p)), n)


def smallest_detectable(sd: float, n: int, *, level: float = 0.95) -> float:
  """Half-width of a paired t interval: the smallest observed mean difference that n seeds can tell from 0.

  A true difference of this size is found about every second time; infinite for one seed.

  Args:
    sd: standard deviation of the differences (`Comparison.sd`); not used when n is 1.
    n: seeds.
    level: confidence of the interval (`Comparison.level` for the adjusted one).

  Raises:
    ValueError: n < 1, a negative or NaN sd with n of 2 or more, or a level outside (0, 1).
  """
  _check_level(level)
  if n < 1:
    raise ValueError(f"n = {n}: expected at least 1 seed")
  if n == 1:
    return math.inf
  if not sd >= 0:
    raise ValueError(f"sd = {sd}: expected a standard deviation of 0 or more")
  return float(stdtrit(n - 1, (1 + level) / 2)) * sd / math.sqrt(n)


def _paired(
  values: Mapping[str, Mapping[int, float]], a: str, b: str, metric: str
) -> tuple[list[float], list[float]]:
  for arm in (a, b):
    if arm not in values:
      raise ValueError(f"{metric}: unknown arm '{arm}'; known: {', '.join(sorted(values))}")
  if values[a].keys() != values[b].keys():
    missing = sorted(values[a].keys() ^ values[b].keys())
    raise ValueError(
      f"{metric}: arms '{a}' and '{b}' do not share the seeds {missing}; run the missing ones, or leave "
      "these seeds out of both arms on purpose"
    )
  seeds = sorted(values[a])
  return [values[a][s] for s in seeds], [values[b][s] for s in seeds]


def _oriented(a: str, b: str, comparisons: Sequence[Comparison]) -> Comparison:
  """The comparison as b - a, whichever way it was made."""
  for c in comparisons:
    if (c.a, c.b) == (a, b):
      return c
    if (c.a, c.b) == (b, a):
      return Comparison(
        c.metric, a, b, -c.difference, -c.high, -c.low, c.level, c.p, c.p_holm, c.sd, -c.effect, c.n
      )
  made = ", ".join(f"{c.a} vs {c.b}" for c in comparisons) or "none"
  raise ValueError(f"no comparison of '{a}' with '{b}'; made: {made}")


def _describe(c: Comparison, where: Literal["above", "below", "includes"], scale: float, unit: str) -> str:
  value = f"{c.b} - {c.a} = {scale * c.difference:.4g}" + (f" {unit}" if unit else "")
  if c.n < 2:
    return f"{value} rests on one seed, which has no interval"
  tail = {"above": "is above 0", "below": "is below 0", "includes": "includes 0"}[where]
  bounds = f"[{scale * c.low:.4g}, {scale * c.high:.4g}]"
  text = f"{value}, {100 * c.level:.4g} % interval {bounds} {tail}"
  return f"{text} ({c.n} seeds{', all with the same difference' if c.sd == 0 else ''})"


def _finite(name: str, values: Sequence[float] | np.ndarray) -> np.ndarray:
  x = np.asarray(values, np.float64)
  if x.ndim != 1 or x.size == 0:
    raise ValueError(f"{name} have shape {x.shape}; expected at least one number in one dimension")
  if not np.isfinite(x).all():
    raise ValueError(
      f"{name} {x.tolist()} contain NaN or infinity; find out which run failed before averaging it"
    )
  return x


def _mean_and_sd(x: np.ndarray) -> tuple[float, float]:
  # Equal values have exactly no spread, which the rounding of their mean would hide.
  if (x == x[0]).all():
    return float(x[0]), 0.0
  return float(x.mean()), float(x.std(ddof=1))


def _check_level(level: float) -> None:
  if not 0 < level < 1:
    raise ValueError(f"confidence level {level} must lie between 0 and 1, such as 0.95 (alpha = 1 - level)")
