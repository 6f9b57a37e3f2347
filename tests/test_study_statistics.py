"""From made-up runs to the statistics of `study.json`: every number again by scipy, and the sentence on seeds."""

import types

import numpy as np
import pytest
from scipy import stats

from jaxkd.study_statistics import judge, summary


def study(runs, claims, smallest=("accuracy_cls: 0.01",)):
  """Arms with these accuracies by seed; their other metrics are equal in all."""
  same = dict.fromkeys(("mean_distance", "cls_dispersion", "collapsed_heads", "hessian_trace"), 1.0)
  arms = {
    arm: {
      "label": arm.upper(),
      "runs": [{"seed": 10 * i, "accuracy_cls": v, **same} for i, v in enumerate(values)],
    }
    for arm, values in runs.items()
  }
  chosen = types.SimpleNamespace(arms=arms, claims=claims, baseline="none", smallest=smallest)
  return judge(types.SimpleNamespace(study=chosen), arms)


RUNS = {"none": [0.90, 0.92, 0.91, 0.93], "cnn": [0.90, 0.93, 0.905, 0.95], "ssl": [0.97, 0.985, 0.98, 0.996]}


def test_every_number_of_a_comparison():
  comparisons, _ = study(RUNS, ("accuracy_cls: none < cnn",))
  c = next(c for c in comparisons if c["b"] == "cnn")
  x = np.subtract(RUNS["cnn"], RUNS["none"])
  expected = stats.ttest_1samp(x, 0)
  assert c["p"] == pytest.approx(expected.pvalue, rel=1e-10)
  assert (c["low"], c["high"]) == pytest.approx(tuple(expected.confidence_interval(c["level"])), rel=1e-9)
  assert c["p_holm"] == pytest.approx(min(1, c["p"]), rel=1e-9)  # the other difference is the smaller p
  resamples = stats.bootstrap(
    (x,), np.mean, method="percentile", n_resamples=20_000, rng=0, confidence_level=0.9
  )
  assert c["bootstrap_low"] <= resamples.confidence_interval.low  # the level here is higher
  assert min(x) <= c["bootstrap_low"] < c["mean"] < c["bootstrap_high"] <= max(x)
  assert c["effect"] == pytest.approx(x.mean() / x.std(ddof=1))
  assert c["g"] == pytest.approx((1 - 3 / (4 * 3 - 1)) * c["effect"], rel=0.01)
  assert c["g_low"] < 0 < c["g"] < c["g_high"]
  plan, critical = c["power"], stats.t.ppf((1 + c["level"]) / 2, np.arange(1, 400))
  for size, key in ((c["mean"], "seeds_for_observed"), (0.01, "seeds_for_smallest")):
    n = np.arange(2, 401)
    enough = n[stats.nct.sf(critical, n - 1, abs(size) / c["sd"] * np.sqrt(n)) >= 0.8]
    assert plan[key] == enough[0]
  shift = plan["detectable"] / c["sd"] * 2
  assert stats.nct.sf(stats.t.ppf((1 + c["level"]) / 2, 3), 3, shift) == pytest.approx(0.8, abs=1e-4)


def test_an_undecided_verdict_says_how_many_seeds_it_would_take():
  comparisons, (unclear, clear) = study(RUNS, ("accuracy_cls: none < cnn", "accuracy_cls: none < ssl"))
  assert (unclear["verdict"], clear["verdict"]) == ("undecided", "supported")
  plan = next(c["power"] for c in comparisons if c["b"] == "cnn")
  assert unclear["power"] == (
    f"With the spread between these 4 seeds, about {plan['seeds_for_observed']} seeds would find a difference as large "
    f"as the one seen (CNN - NONE: 0.62 points) with 80 % probability, and about {plan['seeds_for_smallest']} seeds "
    "one of 1.0 points, the smallest of interest."
  )
  assert "power" not in clear  # what is decided needs no more seeds
  assert clear["reason"].startswith("SSL - NONE = 6.775 points")


def test_the_sentence_is_about_the_step_that_needs_most_seeds():
  _, [found] = study(
    RUNS | {"ssl": [0.9, 0.93, 0.91, 0.945]}, ("accuracy_cls: none < cnn < ssl",), smallest=()
  )
  assert "(SSL - CNN: 0.0 points)" not in found["power"]
  assert "SSL - CNN" in found["power"]  # it is by far the smaller of the two
  assert "smallest of interest" not in found["power"]


def test_what_few_seeds_cannot_say_is_said():
  _, [one] = study({a: v[:1] for a, v in RUNS.items()}, ("accuracy_cls: none < cnn",))
  assert "One seed shows no spread" in one["power"]
  comparisons, [equal] = study(RUNS | {"cnn": RUNS["none"]}, ("accuracy_cls: none < cnn",))
  assert "Every seed shows the same difference" in equal["power"]
  same = next(c for c in comparisons if c["b"] == "cnn")
  assert (same["power"], same["g"], same["g_low"]) == (None, None, None)
  two, _ = study({a: v[:2] for a, v in RUNS.items()}, ("accuracy_cls: none < cnn",))
  assert two[0]["g"] is None
  assert two[0]["power"]["seeds_for_observed"] > 2


def test_summary_has_both_intervals():
  found = summary([0.9, 0.92, 0.97])
  expected = stats.ttest_1samp([0.9, 0.92, 0.97], 0).confidence_interval(0.95)
  assert (found["low"], found["high"]) == pytest.approx(tuple(expected), rel=1e-9)
  assert (found["bootstrap_low"], found["bootstrap_high"]) == (0.9, 0.97)
  assert found["bootstrap_low"] > found["low"]  # shorter, and too short
  assert summary([0.9])["bootstrap_low"] is None
