"""Whitening: identity covariance, the map itself, dropped directions, precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses

RNG = np.random.default_rng(0)
MIXING = RNG.normal(size=(6, 6)) * np.logspace(0, -1, 6)  # variances over two decades and more
FEATURES = np.float32(RNG.normal(size=(200, 6)) @ MIXING + np.linspace(-3, 3, 6))
whiten = jax.jit(losses.whiten)


def covariance(x):
  x = np.asarray(x, np.float64)
  return np.cov(x, rowvar=False, bias=True)


def test_whitened_features_have_mean_0_and_identity_covariance():
  whitening = losses.fit_whitening(FEATURES)
  white = np.asarray(whiten(FEATURES, whitening))
  np.testing.assert_allclose(covariance(white), np.eye(6), atol=3e-5)
  np.testing.assert_allclose(white.mean(0, dtype=np.float64), 0.0, atol=3e-6)
  # In float64 the map itself is exact to the rounding of its float32 entries.
  exact = (FEATURES.astype(np.float64) - np.asarray(whitening.mean)) @ np.asarray(
    whitening.matrix, np.float64
  )
  np.testing.assert_allclose(covariance(exact), np.eye(6), atol=3e-6)
  assert np.abs(covariance(FEATURES) - np.eye(6)).max() > 0.5


def test_two_axes_by_hand():
  """Variances 4 and 1 around (1, 2): the ZCA matrix is diag(1/2, 1), no axis swapped or turned."""
  x = np.float32([[3, 2], [-1, 2], [1, 2 + np.sqrt(2)], [1, 2 - np.sqrt(2)]]) * np.float32([np.sqrt(2), 1])
  whitening = losses.fit_whitening(x)
  np.testing.assert_allclose(whitening.mean, [np.sqrt(2), 2], rtol=1e-6)
  np.testing.assert_allclose(whitening.matrix, [[0.5, 0], [0, 1]], atol=1e-6)
  np.testing.assert_allclose(whiten(jnp.asarray([np.sqrt(2) + 2, 5.0]), whitening), [1, 3], rtol=1e-6)


def test_it_is_the_inverse_square_root_of_the_covariance():
  matrix = np.asarray(losses.fit_whitening(FEATURES).matrix, np.float64)
  np.testing.assert_allclose(matrix @ covariance(FEATURES) @ matrix, np.eye(6), atol=1e-5)
  np.testing.assert_allclose(matrix, matrix.T, rtol=1e-6)
  assert np.linalg.eigvalsh(matrix).min() > 0
  # PCA whitening would also have the identity, but is not symmetric.
  variances, directions = np.linalg.eigh(covariance(FEATURES))
  assert not np.allclose(matrix, directions / np.sqrt(variances), atol=0.1)


def test_rotating_the_features_rotates_the_whitened_ones():
  q = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
  turned = np.float32(FEATURES @ q)
  white = whiten(FEATURES, losses.fit_whitening(FEATURES))
  np.testing.assert_allclose(whiten(turned, losses.fit_whitening(turned)), white @ np.float32(q), atol=2e-4)


@pytest.mark.parametrize("rows", [200, 4])
def test_directions_without_variance_are_dropped(rows):
  """Rank 3 of 6: the covariance is the projection on what is left, and what is new elsewhere is ignored."""
  low = np.float32(RNG.normal(size=(rows, 3)) @ RNG.normal(size=(3, 6)) + 5)
  whitening = losses.fit_whitening(low)
  white = covariance(whiten(low, whitening))
  np.testing.assert_allclose(np.sort(np.linalg.eigvalsh(white)), [0, 0, 0, 1, 1, 1], atol=1e-4)
  absent = np.linalg.svd(low - low.mean(0))[2][-1]
  np.testing.assert_allclose(whiten(low[0] + 100 * absent, whitening), whiten(low[0], whitening), atol=1e-2)


def test_epsilon_draws_the_line():
  x = RNG.normal(size=(500, 2))
  x = np.linalg.qr(x - x.mean(0))[0] * np.sqrt(500) * [1.0, 1e-2]  # variances 1 and 1e-4, uncorrelated
  kept = losses.fit_whitening(x, epsilon=1e-5).matrix
  np.testing.assert_allclose(kept, np.diag([1.0, 100.0]), atol=1e-4)
  np.testing.assert_allclose(losses.fit_whitening(x, epsilon=1e-3).matrix, np.diag([1.0, 0.0]), atol=1e-6)


@pytest.mark.parametrize("x", [np.full((7, 3), 0.1, np.float32), np.ones((1, 3)), np.zeros((5, 3))])
def test_constant_features_become_0(x):
  whitening = losses.fit_whitening(x)
  np.testing.assert_array_equal(whiten(np.float32(x), whitening), 0.0)
  np.testing.assert_array_equal(whitening.matrix, 0.0)


def test_layer_normed_features_lose_their_one_empty_direction():
  normed = losses.normalize_tokens(FEATURES)
  white = covariance(whiten(normed, losses.fit_whitening(normed)))
  np.testing.assert_allclose(np.sort(np.linalg.eigvalsh(white)), [0, 1, 1, 1, 1, 1], atol=1e-4)


def test_any_leading_axes_bf16_and_full_precision():
  whitening = losses.fit_whitening(FEATURES)
  white = whiten(FEATURES, whitening)
  grid = whiten(FEATURES.reshape(2, 10, 10, 6), whitening)
  np.testing.assert_allclose(grid.reshape(200, 6), white, atol=1e-5)
  rounded = jnp.asarray(FEATURES, jnp.bfloat16)
  assert whiten(rounded, whitening).dtype == jnp.float32
  np.testing.assert_allclose(whiten(rounded, whitening), whiten(rounded.astype(jnp.float32), whitening))
  products = [line for line in whiten.lower(FEATURES, whitening).as_text().splitlines() if "dot_gen" in line]
  assert products
  assert all("[HIGHEST, HIGHEST]" in line for line in products)


def test_bf16_features_may_be_fitted():
  whitening = losses.fit_whitening(jnp.asarray(FEATURES, jnp.bfloat16))
  assert {x.dtype for x in whitening} == {jnp.dtype(jnp.float32)}
  expected = losses.fit_whitening(np.float32(jnp.asarray(FEATURES, jnp.bfloat16)))
  np.testing.assert_array_equal(whitening.matrix, expected.matrix)


@pytest.mark.parametrize(
  ("x", "options", "message"),
  [
    (np.zeros((2, 3, 4)), {}, r"features \(2, 3, 4\) must be \[m d\]"),
    (np.zeros((0, 4)), {}, "at least one row"),
    (np.array([[1.0, np.nan], [np.inf, 2.0], [0.0, 0.0]]), {}, "2 of 3 rows are not finite"),
    (FEATURES, {"epsilon": 0.0}, r"epsilon is 0\.0"),
    (FEATURES, {"epsilon": 1.0}, r"epsilon is 1\.0"),
  ],
)
def test_refusals(x, options, message):
  with pytest.raises(ValueError, match=message):
    losses.fit_whitening(x, **options)


def test_refuses_another_width():
  whitening = losses.fit_whitening(FEATURES)
  with pytest.raises(ValueError, match=r"x \(2, 5\) does not fit a whitening of width 6"):
    losses.whiten(jnp.zeros((2, 5)), whitening)
