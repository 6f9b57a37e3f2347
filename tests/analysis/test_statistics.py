"""Statistics over seeds against scipy.stats, published examples and hand values."""

import math

import numpy as np
import pytest
from scipy import stats

from jaxkd.analysis.statistics import (
  compare,
  holm,
  mean_interval,
  paired_difference,
  smallest_detectable,
  verdict,
  wilson,
)

RNG = np.random.default_rng(0)


def arms(**values):
  return {arm: dict(enumerate(v)) for arm, v in values.items()}


def judged(order, values, pairs):
  return verdict(order, compare({"accuracy": values}, [("accuracy", a, b) for a, b in pairs]))


@pytest.mark.parametrize("n", [2, 3, 10])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.9875])
def test_mean_interval_equals_scipy(n, confidence):
  x = RNG.normal(3, 2, n)
  found = mean_interval(x, confidence=confidence)
  expected = stats.ttest_1samp(x, 0).confidence_interval(confidence)
  np.testing.assert_allclose((found.low, found.high), expected, rtol=1e-10)
  np.testing.assert_allclose((found.mean, found.sd), (x.mean(), x.std(ddof=1)), rtol=1e-14)
  assert found.n == n


def test_mean_interval_by_hand():
  found = mean_interval([1.0, 2.0, 3.0])  # sd 1, t(2, .975) = 4.302653
  np.testing.assert_allclose(
    (found.low, found.high), (2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), rtol=1e-6
  )
  normal = 1.959964 / 3**0.5  # negative control: the normal quantile would be far too short
  assert found.high - found.mean > 2 * normal


def test_one_value_has_no_interval():
  found = mean_interval([0.9])
  assert (found.mean, found.low, found.high, found.n) == (0.9, -math.inf, math.inf, 1)
  assert math.isnan(found.sd)


def test_t_interval_covers_as_often_as_it_says():
  rng = np.random.default_rng(1)
  intervals = [mean_interval(rng.normal(size=3)) for _ in range(2000)]
  covered = np.mean([i.low < 0 < i.high for i in intervals])
  assert abs(covered - 0.95) < 4 * (0.95 * 0.05 / 2000) ** 0.5


@pytest.mark.parametrize("n", [2, 3, 8])
def test_paired_difference_equals_scipy(n):
  a, b = RNG.normal(size=n), RNG.normal(0.5, 1, size=n)
  found, expected = paired_difference(a, b), stats.ttest_rel(b, a)
  np.testing.assert_allclose(found.p, expected.pvalue, rtol=1e-10)
  np.testing.assert_allclose((found.low, found.high), expected.confidence_interval(0.95), rtol=1e-10)
  np.testing.assert_allclose(found.effect, expected.statistic / n**0.5, rtol=1e-10)
  back = paired_difference(b, a)
  np.testing.assert_allclose((back.mean, back.low, back.p), (-found.mean, -found.high, found.p), rtol=1e-12)


def test_pairing_removes_the_spread_between_seeds():
  a = np.array([0.70, 0.80, 0.90])
  found = paired_difference(a, a + np.array([0.010, 0.012, 0.011]))
  assert found.p < 0.01
  assert stats.ttest_ind(a + 0.011, a).pvalue > 0.5  # negative control: unpaired, nothing is seen


def test_differences_without_spread():
  same = paired_difference([0.5, 0.7, 0.9], [0.5, 0.7, 0.9])
  assert (same.mean, same.low, same.high, same.p, same.effect) == (0, 0, 0, 1, 0)
  shift = paired_difference([1.0, 2.0, 3.0], [0.5, 1.5, 2.5])
  assert (shift.mean, shift.low, shift.high, shift.p, shift.effect) == (-0.5, -0.5, -0.5, 0, -math.inf)
  rounding = paired_difference([0.3, 0.3, 0.3], [0.1 + 0.2] * 3)  # 0.30000000000000004
  assert (rounding.mean, rounding.p) == (0, 1)


def test_holm_known_example():
  """p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") in R gives 0.03 0.06 0.06 0.02."""
  adjusted, levels = holm([0.01, 0.04, 0.03, 0.005])
  np.testing.assert_allclose(adjusted, [0.03, 0.06, 0.06, 0.02], rtol=1e-12)
  # 0.005 -> 1 - .05/4, 0.01 -> 1 - .05/3, then 0.03 > .05/2 stops the descent.
  np.testing.assert_allclose(levels, [1 - 0.05 / 3, 0.975, 0.975, 0.9875], rtol=1e-12)
  bonferroni = np.minimum(1, 4 * np.array([0.01, 0.04, 0.03, 0.005]))
  assert (adjusted < bonferroni)[[0, 1, 2]].all()  # negative control: Bonferroni is another, coarser answer


def test_holm_steps_all_the_way_down_when_everything_is_rejected():
  adjusted, levels = holm([0.001, 0.04, 0.02])
  np.testing.assert_allclose(adjusted, [0.003, 0.04, 0.04], rtol=1e-12)
  np.testing.assert_allclose(levels, [1 - 0.05 / 3, 0.95, 0.975], rtol=1e-12)
  np.testing.assert_allclose(holm([0.8])[0], [0.8])
  np.testing.assert_allclose(holm([0.9, 0.6, 0.5])[0], 1)  # never above 1


def test_holm_follows_the_definition():
  """Reject the smallest p while p <= alpha / (hypotheses left): the textbook loop."""
  rng = np.random.default_rng(2)
  for _ in range(200):
    p = rng.uniform(0, 0.1, size=5)
    rejected, left = set(), 5
    for i in np.argsort(p):
      if p[i] >= 0.05 / left:
        break
      rejected.add(int(i))
      left -= 1
    assert set(np.flatnonzero(holm(p)[0] < 0.05).tolist()) == rejected


def differences_with_p(p, n=5):
  """n differences whose two-sided paired t test has this p value."""
  shape = np.array([-2.0, -1.0, 0.0, 1.0, 2.0][:n])
  return shape + stats.t.ppf(1 - p / 2, n - 1) * shape.std(ddof=1) / n**0.5


def test_interval_excludes_zero_exactly_where_holm_rejects():
  rng, contradictions = np.random.default_rng(3), 0
  for _ in range(200):
    wanted = dict(zip("abcd", rng.uniform(0, 0.06, size=4), strict=True))
    values = arms(zero=np.zeros(5), **{arm: differences_with_p(p) for arm, p in wanted.items()})
    found = compare({"m": values}, [("m", "zero", arm) for arm in wanted])
    np.testing.assert_allclose([c.p for c in found], list(wanted.values()), rtol=1e-9)
    assert [c.low > 0 for c in found] == [c.p_holm < 0.05 for c in found]
    unstopped = 0.05 / (4 - np.argsort(np.argsort([c.p for c in found])))
    contradictions += [bool(x) for x in [c.p for c in found] < unstopped] != [c.p_holm < 0.05 for c in found]
  assert contradictions > 0  # negative control: levels that go on stepping down would contradict Holm


def test_compare_fields():
  values = arms(none=[0.80, 0.82, 0.81], cnn=[0.84, 0.85, 0.86], ssl=[0.83, 0.86, 0.82])
  first, second = compare({"accuracy": values}, [("accuracy", "none", "cnn"), ("accuracy", "ssl", "none")])
  assert (first.metric, first.a, first.b, first.n) == ("accuracy", "none", "cnn", 3)
  np.testing.assert_allclose(first.difference, 0.04, rtol=1e-12)
  np.testing.assert_allclose(second.difference, -0.08 / 3, rtol=1e-12)
  for c in (first, second):
    a, b = (list(values[arm].values()) for arm in (c.a, c.b))
    expected = stats.ttest_rel(b, a)
    np.testing.assert_allclose(c.p, expected.pvalue, rtol=1e-10)
    np.testing.assert_allclose((c.low, c.high), expected.confidence_interval(c.level), rtol=1e-10)
    np.testing.assert_allclose(c.high - c.difference, smallest_detectable(c.sd, 3, level=c.level), rtol=1e-10)
  np.testing.assert_allclose([first.p_holm, second.p_holm], holm([first.p, second.p])[0])


def test_seeds_are_matched_by_name_not_by_position():
  forward = {"a": {0: 1.0, 1: 2.0, 2: 3.0}, "b": {0: 1.1, 1: 2.1, 2: 3.2}}
  backward = forward | {"b": dict(reversed(forward["b"].items()))}
  assert compare({"m": forward}, [("m", "a", "b")]) == compare({"m": backward}, [("m", "a", "b")])


CLEAR = arms(cnn=[0.80, 0.81, 0.82], none=[0.90, 0.912, 0.921], ssl=[0.95, 0.962, 0.969])
PAIRS = [("cnn", "none"), ("none", "ssl")]


def test_supported_and_contradicted():
  assert judged(["cnn", "none", "ssl"], CLEAR, PAIRS).outcome == "supported"
  against = judged(["ssl", "none", "cnn"], CLEAR, PAIRS)
  assert against.outcome == "contradicted"
  assert "below 0" in against.reason
  assert judged(["none", "cnn"], CLEAR, PAIRS).outcome == "contradicted"
  swapped = [(b, a) for a, b in PAIRS]  # the direction of the comparison is no part of the answer
  assert judged(["cnn", "none", "ssl"], CLEAR, swapped).outcome == "supported"


def test_one_unclear_step_leaves_an_ordering_undecided():
  values = CLEAR | arms(ssl=[0.90, 0.93, 0.90])
  found = judged(["cnn", "none", "ssl"], values, PAIRS)
  assert found.outcome == "undecided"
  assert found.reason.startswith("ssl - none = ")
  assert "includes 0 (3 seeds)" in found.reason
  assert "cnn" not in found.reason  # the step that is clear is not the reason


def test_one_wrong_step_contradicts_whatever_the_others_say():
  values = CLEAR | arms(ssl=[0.80, 0.812, 0.819])
  found = judged(["cnn", "none", "ssl"], values, PAIRS)
  assert found.outcome == "contradicted"
  assert "ssl - none" in found.reason


def test_adjustment_can_turn_a_verdict():
  values = arms(a=[0.0, 0.0, 0.0], b=[0.9, 1.1, 1.6], c=[2.0, 0.0, 1.0], d=[1.0, 0.5, 3.0])
  alone = judged(["a", "b"], values, [("a", "b")])
  family = judged(["a", "b"], values, [("a", "b"), ("b", "c"), ("c", "d")])
  assert (alone.outcome, family.outcome) == ("supported", "undecided")


def test_one_seed_decides_nothing():
  found = judged(["cnn", "none"], arms(cnn=[0.1], none=[0.9]), [("cnn", "none")])
  assert found.outcome == "undecided"
  assert "one seed" in found.reason


def test_differences_without_spread_are_decided_by_their_sign():
  equal = arms(a=[0.25, 0.5], b=[0.25, 0.5])
  assert judged(["a", "b"], equal, [("a", "b")]).outcome == "undecided"
  shifted = arms(a=[0.25, 0.5], b=[0.5, 0.75])
  found = judged(["a", "b"], shifted, [("a", "b")])
  assert found.outcome == "supported"
  assert "all with the same difference" in found.reason
  assert judged(["b", "a"], shifted, [("a", "b")]).outcome == "contradicted"


def test_no_effect_is_seldom_called_one():
  """Three equal arms, 3 seeds: some verdict other than undecided in at most about 5 % of studies."""
  rng, decided = np.random.default_rng(4), 0
  for _ in range(1000):
    values = arms(**{arm: rng.normal(size=3) for arm in "abc"})
    decided += judged(["a", "b", "c"], values, [("a", "b"), ("b", "c")]).outcome != "undecided"
  assert decided / 1000 < 0.05 + 3 * (0.05 * 0.95 / 1000) ** 0.5


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (7, 10), (10, 10), (9512, 10000), (1, 3)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_equals_scipy(successes, n, confidence):
  found = wilson(successes, n, confidence=confidence)
  expected = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
  np.testing.assert_allclose((found.low, found.high), expected, rtol=1e-10, atol=1e-15)
  assert 0 <= found.low <= found.mean <= found.high <= 1
  assert (found.mean, found.n) == (successes / n, n)


def test_smallest_detectable():
  np.testing.assert_allclose(smallest_detectable(1.0, 3), 4.302653 / 3**0.5, rtol=1e-6)
  np.testing.assert_allclose(
    smallest_detectable(0.5, 5, level=0.975), 0.5 * stats.t.ppf(0.9875, 4) / 5**0.5, rtol=1e-10
  )
  assert smallest_detectable(math.nan, 1) == math.inf
  assert smallest_detectable(0.0, 3) == 0.0


AB = arms(a=[1.0, 2.0], b=[1.0, 3.0])


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: mean_interval([1.0, math.nan]), "NaN or infinity"),
    (lambda: mean_interval([]), "at least one number"),
    (lambda: mean_interval([1.0, 2.0], confidence=95), "confidence level 95"),
    (lambda: paired_difference([1.0, 2.0], [1.0]), "one of each per seed"),
    (lambda: paired_difference([1.0, math.inf], [1.0, 2.0]), "NaN or infinity"),
    (lambda: holm([0.1, math.nan]), "NaN or infinity"),
    (lambda: holm([0.1, 1.2]), r"must lie in \[0, 1\]"),
    (lambda: holm([]), "at least one number"),
    (lambda: compare({"m": AB}, [("m", "a", "c")]), "unknown arm 'c'; known: a, b"),
    (lambda: compare({"m": AB}, []), "no pairs"),
    (lambda: compare({"m": AB}, [("k", "a", "b")]), "unknown metric 'k'; known: m"),
    (lambda: compare({"m": AB}, [("m", "a", "b"), ("m", "b", "a")]), "twice"),
    (lambda: compare({"m": AB}, [("m", "a", "a")]), "against itself"),
    (
      lambda: compare({"m": {"a": {0: 1.0, 1: 2.0}, "b": {0: 1.0}}}, [("m", "a", "b")]),
      r"do not share the seeds \[1\]",
    ),
    (lambda: verdict(["a"], []), "at least 2 different arms"),
    (lambda: verdict(["a", "b"], []), "no comparison of 'a' with 'b'; made: none"),
    (
      lambda: verdict(["a", "b"], compare({"m": AB, "k": AB}, [("m", "a", "b"), ("k", "a", "b")])),
      "mix the metrics",
    ),
    (lambda: wilson(11, 10), "11 successes of 10"),
    (lambda: wilson(0, 0), "n of at least 1"),
    (lambda: smallest_detectable(-1.0, 3), "standard deviation of 0 or more"),
    (lambda: smallest_detectable(1.0, 0), "at least 1 seed"),
  ],
)
def test_refusals(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_the_family_spans_metrics():
  """The same difference needs stronger evidence when differences of other metrics are claimed beside it."""
  values = {"m": {"a": {0: 0.1, 1: 0.2, 2: 0.3}, "b": {0: 0.21, 1: 0.33, 2: 0.42}}, "k": AB}
  alone = compare(values, [("m", "a", "b")])[0]
  beside = compare(values, [("m", "a", "b"), ("k", "a", "b")])[0]
  assert (alone.p, alone.difference) == (beside.p, beside.difference)
  assert beside.p_holm == pytest.approx(2 * alone.p_holm)
