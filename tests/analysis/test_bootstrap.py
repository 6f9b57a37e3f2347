"""Bootstrap intervals against scipy, plain numpy and their coverage."""

import jax
import numpy as np
import pytest
from scipy import stats

from jaxkd.analysis.bootstrap import bootstrap_class_means, bootstrap_mean, resampled_means

KEY = jax.random.key(0)


def test_percentile_interval_against_plain_resampling():
  values = np.random.default_rng(0).gamma(2.0, size=(60, 3))
  rng = np.random.default_rng(1)
  draws = values[rng.integers(0, 60, (60_000, 60))].mean(1)
  found = bootstrap_mean(values, key=KEY, resamples=60_000)
  np.testing.assert_allclose(found.value, values.mean(0), rtol=1e-14)
  spread = draws.std(0).max()
  for bound, tail in ((found.low, 0.025), (found.high, 0.975)):
    np.testing.assert_allclose(bound, np.quantile(draws, tail, axis=0), atol=0.06 * spread)
  # Negative control: the wrong tail is farther off than this.
  assert (np.abs(found.low - np.quantile(draws, 0.05, axis=0)) > 0.2 * spread).all()


def test_bca_against_scipy():
  values = np.random.default_rng(2).exponential(size=40)
  expected = stats.bootstrap(
    (values,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(0), vectorized=True
  )
  found = bootstrap_mean(values, key=KEY, resamples=20_000, method="bca")
  low, high = expected.confidence_interval
  error = 0.06 * expected.standard_error
  assert found.low == pytest.approx(low, abs=error)
  assert found.high == pytest.approx(high, abs=error)
  plain = bootstrap_mean(values, key=KEY, resamples=20_000)
  assert found.high - plain.high > 2 * error  # skewed to the right: corrected, the interval moves there


def test_intervals_cover_as_often_as_they_say_and_halved_ones_do_not():
  values = np.random.default_rng(3).normal(1.0, 2.0, size=(50, 1000))  # 1000 samples of 50 images
  for method in ("percentile", "bca"):
    found = bootstrap_mean(values, key=KEY, resamples=1000, method=method)
    # Nominal 95 %; without the t quantile 50 images lose about one point.
    assert 0.92 < np.mean((found.low < 1) & (found.high > 1)) < 0.965
    half = np.abs(found.high - found.low) / 4
    assert np.mean(np.abs(found.value - 1) < half) < 0.75


def test_draws_depend_on_the_key_alone_and_are_shared():
  values = np.random.default_rng(4).normal(size=(30, 2, 3))
  first, again = (bootstrap_mean(values, key=KEY, resamples=300) for _ in range(2))
  for a, b in zip(first, again, strict=True):
    np.testing.assert_array_equal(a, b)
  other = bootstrap_mean(values, key=jax.random.key(1), resamples=300)
  assert np.abs(first.low - other.low).max() > 0
  shifted = bootstrap_mean(values + 5, key=KEY, resamples=300)  # the same resamples, so the same interval
  np.testing.assert_allclose(shifted.low - 5, first.low, atol=1e-6)
  draws = resampled_means(values, key=KEY, resamples=300)
  assert draws.shape == (300, 2, 3)
  np.testing.assert_allclose(np.quantile(draws, 0.025, axis=0), first.low, atol=1e-6)


def test_constants_have_no_width_and_large_offsets_no_noise():
  found = bootstrap_mean(np.full((20, 2), 0.1), key=KEY, resamples=100, method="bca")
  np.testing.assert_array_equal(found.low, found.high)
  values = np.random.default_rng(5).normal(size=200)
  far, near = (bootstrap_mean(values + x, key=KEY, resamples=200) for x in (1e9, 0.0))
  np.testing.assert_allclose(far.high - far.low, near.high - near.low, rtol=1e-5)


def test_class_means_resample_within_classes():
  rng = np.random.default_rng(6)
  labels = np.array([0] * 40 + [2] * 25 + [1])
  rng.shuffle(labels)
  values = rng.normal(size=(66, 2)) + 10.0 * labels[:, None]
  found = bootstrap_class_means(values, labels, classes=4, key=KEY, resamples=4000)
  for c in (0, 2):
    own = values[labels == c]
    np.testing.assert_allclose(found.value[c], own.mean(0), rtol=1e-12)
    width = 2 * 1.96 * own.std(0) / np.sqrt(len(own))
    np.testing.assert_allclose(found.high[c] - found.low[c], width, rtol=0.08)
  # Negative control: resampling all images together would mix the classes, whose means are 20 apart.
  assert (found.high[0] < 1).all()
  assert (found.low[2] > 19).all()
  assert np.isposinf(found.high[1]).all()
  assert np.isneginf(found.low[1]).all()
  np.testing.assert_array_equal(found.value[1], values[labels == 1][0])
  assert all(np.isnan(x[3]).all() for x in found)


def test_a_value_that_is_not_a_number_spoils_its_own_column_only():
  values = np.random.default_rng(7).normal(size=(10, 2))
  values[3, 1] = np.nan
  for method in ("percentile", "bca"):
    found = bootstrap_mean(values, key=KEY, resamples=50, method=method)
    assert all(np.isfinite(x[0]) and np.isnan(x[1]) for x in found)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: bootstrap_mean(np.ones((1, 3)), key=KEY), "at least 2"),
    (lambda: bootstrap_mean(np.ones(4), key=KEY, method="basic"), "'basic'; known: 'percentile', 'bca'"),
    (lambda: bootstrap_mean(np.ones(4), key=KEY, confidence=1.0), "between 0 and 1"),
    (lambda: bootstrap_mean(np.ones(4), key=KEY, resamples=0), "at least 1"),
    (lambda: bootstrap_class_means(np.ones(4), np.zeros(3, int), classes=1, key=KEY), "one label for each"),
    (lambda: bootstrap_class_means(np.ones(2), np.array([0, 2]), classes=2, key=KEY), "do not fit 2 classes"),
  ],
)
def test_refusals(call, message):
  with pytest.raises(ValueError, match=message):
    call()
