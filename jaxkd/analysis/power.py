"""Effect size of a paired comparison, and how many pairs would decide it.

With n pairs whose differences have mean m and standard deviation s, t = sqrt(n) m / s has a noncentral t distribution
with n - 1 degrees of freedom and noncentrality sqrt(n) * delta, where delta is the true mean over the true standard
deviation. Everything here follows from that.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
from scipy.special import chdtri, gammaincinv, gammaln, ndtr, stdtrit

from jaxkd.analysis.statistics import Interval

POWER = 0.8
MOST = 10_000  # pairs: beyond that the answer is that nobody will train so many
_NODES, _WEIGHTS = (np.polynomial.legendre.leggauss(256) + np.array([[1.0], [0.0]])) / 2


def hedges_g(effect: float, n: int, *, confidence: float = 0.95) -> Interval:
  """Hedges' g of paired differences: d_z = mean / sd without its upward bias in small samples, with an interval.

  The factor is exact for normal differences: 0.56 at 3 pairs, 0.80 at 5, 0.91 at 10. The interval is that of the true
  effect, by inversion of the noncentral t distribution; it is not symmetric around g. `sd` is NaN.

  With fewer than 3 pairs d_z has no expectation, so there is no such factor, and without spread there is no effect
  size: the mean is NaN and the interval infinite.

  Args:
    effect: d_z, such as `PairedDifference.effect`.
    n: pairs.

  Raises:
    ValueError: n < 1, or a confidence outside (0, 1).

  Source: Hedges (1981), "Distribution theory for Glass's estimator of effect size and related estimators"; Steiger
    and Fouladi (1997), "Noncentrality interval estimation and the evaluation of statistical models".
  """
  _check(n, 1, confidence)
  if n < 3 or not math.isfinite(effect):
    return Interval(math.nan, -math.inf, math.inf, math.nan, n)
  t = effect * math.sqrt(n)
  low, high = (_noncentrality(t, n - 1, (1 + side * confidence) / 2) / math.sqrt(n) for side in (1, -1))
  return Interval(small_sample_factor(n - 1) * effect, low, high, math.nan, n)


def small_sample_factor(df: int) -> float:
  """Hedges' J: the true effect over the expectation of d_z, for at least 2 degrees of freedom."""
  return math.exp(gammaln(df / 2) - gammaln((df - 1) / 2)) / math.sqrt(df / 2)


def power(effect: float, n: int, *, level: float = 0.95) -> float:
  """Probability that the two-sided paired t test on n pairs finds a true effect (mean over sd of the differences).

  Args:
    level: confidence of the interval that must exclude 0 (`Comparison.level` for one adjusted after Holm).

  Raises:
    ValueError: n < 2, a NaN effect, or a level outside (0, 1).
  """
  _check(n, 2, level)
  if math.isnan(effect):
    raise ValueError("effect is NaN; without a standard deviation of the differences there is no power")
  shift, critical = abs(effect) * math.sqrt(n), float(stdtrit(n - 1, (1 + level) / 2))
  # Both tails: an effect near 0 is also "found" on the wrong side.
  return _cdf(-critical, n - 1, -shift) + _cdf(-critical, n - 1, shift)


def seeds_needed(effect: float, *, level: float = 0.95, wanted: float = POWER) -> int | None:
  """The fewest pairs with which the test finds a true effect that often; None if more than MOST.

  Raises:
    ValueError: a NaN effect, or a level or a wanted power outside (0, 1).
  """
  _check(2, 2, wanted)
  low, high = 1, 2
  while power(effect, high, level=level) < wanted:
    if high == MOST:
      return None
    low, high = high, min(2 * high, MOST)
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (low, middle) if power(effect, middle, level=level) >= wanted else (middle, high)
  return high


def detectable_effect(n: int, *, level: float = 0.95, wanted: float = POWER) -> float:
  """The true effect that n pairs find that often; times the sd it is a difference. Infinite for one pair.

  Raises:
    ValueError: n < 1, a level or a wanted power outside (0, 1), or a power that no effect at all has already.
  """
  _check(n, 1, level)
  _check(n, 1, wanted)
  if wanted <= 1 - level:
    raise ValueError(f"wanted = {wanted} is not above 1 - level = {1 - level:g}, which no effect at all has")
  if n < 2:
    return math.inf
  high = 1.0
  while power(high, n, level=level) < wanted:
    high *= 2
  return _root(lambda x: power(x, n, level=level) - wanted, 0.0, high)


def sd_factors(n: int, *, confidence: float = 0.95) -> tuple[float, float]:
  """How far the true sd may be from that of n normal values: the ends of its interval over the observed one.

  0.52 and 6.3 at 3 values. The pairs that a difference needs go with the square of the sd.

  Raises:
    ValueError: n < 2, or a confidence outside (0, 1).
  """
  _check(n, 2, confidence)
  low, high = (math.sqrt((n - 1) / float(chdtri(n - 1, (1 - s * confidence) / 2))) for s in (1, -1))
  return low, high


def _noncentrality(t: float, df: int, probability: float) -> float:
  """The noncentrality at which P(T <= t) is this probability."""
  ends = [t * float(s) for s in _chi_over_root_df(df)[[0, -1]]]
  return _root(lambda shift: probability - _cdf(t, df, shift), min(ends) - 9, max(ends) + 9)


def _cdf(t: float, df: int, shift: float) -> float:
  """P(T <= t) of the noncentral t: normal given the sample's sd, averaged over the latter's quantiles.

  scipy's `nctdtr` is NaN at some arguments in the far tails, which a search walks through.
  """
  return float(_WEIGHTS @ ndtr(t * _chi_over_root_df(df) - shift))


@functools.lru_cache(maxsize=64)
def _chi_over_root_df(df: int) -> np.ndarray:
  """Quantiles of the sample's sd over the true one, at the nodes."""
  return np.sqrt(2 * gammaincinv(df / 2, _NODES) / df)


def _root(rising: Callable[[float], float], low: float, high: float) -> float:
  while high - low > 1e-10 * max(1.0, abs(low), abs(high)):
    middle = (low + high) / 2
    low, high = (low, middle) if rising(middle) >= 0 else (middle, high)
  return (low + high) / 2


def _check(n: int, least: int, level: float) -> None:
  if n < least:
    raise ValueError(f"n = {n}: expected at least {least}")
  if not 0 < level < 1:
    raise ValueError(f"confidence level and power must lie between 0 and 1, such as 0.95; got {level}")
