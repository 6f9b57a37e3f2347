"""Effect sizes, power and the bootstrap over seeds against published tables, scipy, enumeration and simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from jaxkd.analysis import (
  bootstrap_few,
  bootstrap_mean,
  detectable_effect,
  hedges_g,
  mean_interval,
  paired_difference,
  power,
  sd_factors,
  seeds_needed,
)
from jaxkd.analysis.power import MOST, small_sample_factor


@pytest.mark.parametrize("n", [2, 3, 5, 10, 34])
@pytest.mark.parametrize("level", [0.95, 0.996875])
def test_power_equals_scipys_noncentral_t(n, level):
  critical, checked = stats.t.ppf((1 + level) / 2, n - 1), 0
  for effect in (0.0, 0.1, 0.5, 1.0, 3.0):
    t = stats.nct(n - 1, effect * n**0.5)
    expected = t.sf(critical) + t.cdf(-critical)
    if np.isfinite(expected):  # scipy's is NaN at some arguments in the tails
      np.testing.assert_allclose(power(effect, n, level=level), expected, atol=6e-7)
      checked += 1
  assert checked >= 3
  assert power(0.0, n, level=level) == pytest.approx(1 - level, abs=6e-7)
  assert power(-1.0, n, level=level) == power(1.0, n, level=level)


def test_power_is_how_often_the_test_rejects():
  rng = np.random.default_rng(0)
  x = rng.normal(1.2, 1, (20_000, 4))
  t = x.mean(1) / x.std(1, ddof=1) * 2
  found = np.mean(np.abs(t) > stats.t.ppf(0.975, 3))
  tolerance = 4 * (found * (1 - found) / len(x)) ** 0.5
  assert abs(found - power(1.2, 4)) < tolerance
  normal = stats.norm.sf(1.96 - 2.4)  # negative control: with the normal quantile, twice as much
  assert abs(found - normal) > 20 * tolerance


def test_seeds_needed_known_values():
  """Cohen (1988) and G*Power 3.1, paired t test, two-sided .05, power .8: 199, 34 and 15 pairs for d = .2, .5, .8."""
  assert [seeds_needed(d) for d in (0.2, 0.5, 0.8)] == [199, 34, 15]
  assert seeds_needed(0.5, wanted=0.95) == 54
  assert seeds_needed(-0.5) == 34
  assert seeds_needed(0.5, level=0.99) > 34  # what Holm's adjustment costs
  assert (seeds_needed(1e6), seeds_needed(0.0), seeds_needed(0.01)) == (2, None, None)
  normal = math.ceil(((1.959964 + 0.841621) / 0.8) ** 2)
  assert normal < seeds_needed(0.8)  # negative control: the normal formula is too hopeful


@pytest.mark.parametrize("effect", [0.05, 0.7, 2.9, 13.0])
def test_seeds_needed_is_the_first_number_that_is_enough(effect):
  n = seeds_needed(effect, level=0.99)
  assert power(effect, n, level=0.99) >= 0.8
  assert n == 2 or power(effect, n - 1, level=0.99) < 0.8
  assert n <= MOST


@pytest.mark.parametrize("n", [2, 3, 10])
def test_detectable_effect_has_the_power_asked_for(n):
  found = detectable_effect(n, level=0.99, wanted=0.9)
  assert power(found, n, level=0.99) == pytest.approx(0.9, abs=1e-8)
  assert detectable_effect(34) == pytest.approx(0.495, abs=5e-4)  # beside 34 pairs for 0.5
  assert detectable_effect(1) == math.inf


def test_hedges_factor():
  """J = 1 - 3 / (4 df - 1) to first order (Hedges, 1981); exactly 1 / sqrt(pi) at 2 degrees of freedom."""
  assert small_sample_factor(2) == pytest.approx(math.pi**-0.5, rel=1e-12)
  for df in (9, 30, 99):
    assert small_sample_factor(df) == pytest.approx(1 - 3 / (4 * df - 1), abs=0.5 / df**2)


def test_hedges_g_is_unbiased_where_d_is_not():
  rng = np.random.default_rng(1)
  x = rng.normal(0.8, 1, (40_000, 5))
  d = x.mean(1) / x.std(1, ddof=1)
  g = hedges_g(1.0, 5).mean * d
  noise = g.std() / len(g) ** 0.5
  assert abs(g.mean() - 0.8) < 4 * noise
  assert d.mean() - 0.8 > 20 * noise  # negative control: d_z itself is far too large


@pytest.mark.parametrize(("effect", "n"), [(0.0, 3), (1.0, 10), (-1.0, 10), (4.04, 3), (0.3, 100)])
def test_effect_interval_inverts_scipys_noncentral_t(effect, n):
  found, t = hedges_g(effect, n, confidence=0.9), effect * n**0.5
  tails = [stats.nct.cdf(t, n - 1, end * n**0.5) for end in (found.low, found.high)]
  np.testing.assert_allclose(tails, [0.95, 0.05], rtol=1e-5)
  assert found.low < found.mean < found.high
  back = hedges_g(-effect, n, confidence=0.9)
  np.testing.assert_allclose((back.low, back.high), (-found.high, -found.low), atol=1e-8)


def test_effect_interval_covers_the_true_effect():
  rng, covered, short = np.random.default_rng(2), 0, 0
  for _ in range(1000):
    d = paired_difference(np.zeros(4), rng.normal(1, 1, 4)).effect
    found = hedges_g(d, 4)
    covered += found.low <= 1 <= found.high
    short += abs(d - 1) < 1.96 / 2  # negative control: d +- z / sqrt(n)
  assert abs(covered / 1000 - 0.95) < 4 * (0.95 * 0.05 / 1000) ** 0.5
  assert short / 1000 < 0.85


def test_effects_that_do_not_exist():
  for found in (hedges_g(1.0, 2), hedges_g(math.nan, 5), hedges_g(math.inf, 5)):
    assert math.isnan(found.mean)
    assert (found.low, found.high) == (-math.inf, math.inf)


def test_sd_factors_bound_the_true_sd():
  low, high = sd_factors(3)
  assert (low, high) == (pytest.approx(0.5207, abs=1e-4), pytest.approx(6.285, abs=1e-3))  # chi-square tables
  sd = np.random.default_rng(3).normal(size=(20_000, 3)).std(1, ddof=1)
  covered = np.mean((low * sd < 1) & (high * sd > 1))
  assert abs(covered - 0.95) < 4 * (0.95 * 0.05 / 20_000) ** 0.5


def test_bootstrap_of_few_values_is_that_of_all_resamples():
  for n in (2, 3, 4, 5):
    x = np.random.default_rng(n).normal(size=n)
    means = np.sort([np.mean(x[list(i)]) for i in itertools.product(range(n), repeat=n)])
    for confidence in (0.5, 0.9, 0.95):
      expected = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], method="inverted_cdf")
      np.testing.assert_allclose(bootstrap_few(x, confidence=confidence), expected, rtol=1e-12)


def test_bootstrap_of_few_values_agrees_with_drawn_resamples():
  import jax

  x = np.random.default_rng(4).normal(size=8)
  drawn = bootstrap_mean(x, key=jax.random.key(0), resamples=4000)
  np.testing.assert_allclose(bootstrap_few(x), (drawn.low, drawn.high), atol=0.03)
  more = np.random.default_rng(5).normal(size=12)
  low, high = bootstrap_few(more)
  assert low < more.mean() < high


def test_bootstrap_of_three_values_is_their_range_and_covers_three_in_four():
  rng, t, few = np.random.default_rng(6), 0, 0
  assert bootstrap_few([3.0, 1.0, 2.0]) == (1, 3)
  for _ in range(1000):
    x = rng.normal(size=3)
    low, high = bootstrap_few(x)
    few += low <= 0 <= high
    t += mean_interval(x).low <= 0 <= mean_interval(x).high
  # The range misses when all three lie on one side: 2 / 8. The t interval keeps what it promises.
  assert abs(few / 1000 - 0.75) < 4 * (0.75 * 0.25 / 1000) ** 0.5
  assert abs(t / 1000 - 0.95) < 4 * (0.95 * 0.05 / 1000) ** 0.5


def test_bootstrap_without_spread_or_with_one_value():
  assert bootstrap_few([0.3, 0.3, 0.3]) == (0.3, 0.3)
  assert bootstrap_few([0.3]) == (-math.inf, math.inf)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: power(math.nan, 3), "effect is NaN"),
    (lambda: power(1.0, 1), "expected at least 2"),
    (lambda: power(1.0, 3, level=95), "between 0 and 1"),
    (lambda: seeds_needed(1.0, wanted=80), "between 0 and 1"),
    (lambda: detectable_effect(3, level=0.9, wanted=0.05), "which no effect at all has"),
    (lambda: hedges_g(1.0, 0), "expected at least 1"),
    (lambda: sd_factors(1), "expected at least 2"),
    (lambda: bootstrap_few([]), "finite numbers"),
    (lambda: bootstrap_few([1.0, math.nan]), "finite numbers"),
  ],
)
def test_refusals(call, message):
  with pytest.raises(ValueError, match=message):
    call()
