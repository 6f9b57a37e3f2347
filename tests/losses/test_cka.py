"""CKA: identical and independent features, invariances, offsets, degenerate inputs, the RBF bandwidth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.losses.cka import center_rows
from jaxkd.losses.cka import centered_gram as eager_gram
from jaxkd.losses.cka import median_squared_distance as eager_median
from tests.losses import references as ref

RNG = np.random.default_rng(0)
X, Y = np.float32(RNG.normal(size=(20, 9))), np.float32(RNG.normal(size=(20, 5)))
Y[:, :3] += X[:, :3]
OPTIONS = [{"kernel": k, "debiased": d} for k in ("linear", "rbf") for d in (True, False)]
cka = jax.jit(losses.cka, static_argnames=("kernel", "debiased"))
centered_gram = jax.jit(eager_gram, static_argnames=("kernel", "debiased"))
median_squared_distance = jax.jit(eager_median)
step = jax.jit(jax.value_and_grad(losses.cka), static_argnames=("kernel", "debiased"))
cka_loss = jax.jit(losses.cka_loss, static_argnames=("kernel", "debiased", "over"))


@pytest.mark.parametrize("options", OPTIONS)
def test_against_the_estimator_without_centring(options):
  expected = ref.cka(X.astype(np.float64), Y.astype(np.float64), **options)
  np.testing.assert_allclose(cka(X, Y, **options), expected, rtol=3e-6)


@pytest.mark.parametrize("options", OPTIONS)
def test_identity_and_invariances(options):
  rotation = np.float32(np.linalg.qr(np.random.default_rng(1).normal(size=(9, 9)))[0])
  value = cka(X, Y, **options)
  np.testing.assert_allclose(cka(X, X, **options), 1.0, rtol=1e-6)
  for changed in (X @ rotation, 1e-12 * X, 1e9 * X, X + 3, np.flip(X, 1)):
    np.testing.assert_allclose(cka(np.float32(changed), Y, **options), value, rtol=1e-5)
  # An invertible map that is no rotation changes it: CKA is not CCA.
  stretched = X * np.float32([10, 1, 1, 1, 1, 1, 1, 1, 1])
  assert abs(cka(stretched, Y, **options) - value) > 0.05
  order = np.random.default_rng(1).permutation(20)
  np.testing.assert_allclose(cka(X[order], Y[order], **options), value, rtol=1e-5)
  assert abs(cka(X[order], Y, **options) - value) > 0.02


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("mean", [1e3, 1e5])
def test_a_large_mean(options, mean):
  """The reference gets the same float32 numbers; what is left is our own arithmetic."""
  x = X + np.float32(mean)
  np.testing.assert_allclose(cka(x, x, **options), 1.0, rtol=1e-6)
  expected = ref.cka(x.astype(np.float64), Y.astype(np.float64), **options)
  np.testing.assert_allclose(cka(x, Y, **options), expected, rtol=5e-6)


def test_without_centring_first_a_large_mean_is_lost():
  k = (X + np.float32(1e3)) @ (X + np.float32(1e3)).T
  n = len(k)
  k = np.where(np.eye(n, dtype=bool), 0, k)
  u = k - k.sum(1, keepdims=True) / (n - 2) - k.sum(0) / (n - 2) + k.sum() / ((n - 1) * (n - 2))
  np.fill_diagonal(u, 0)
  right = np.asarray(centered_gram(X))
  assert np.linalg.norm(u - right) > 0.05 * np.linalg.norm(right)


def test_independent_features_are_near_0_and_biased_near_080():
  """n = 64, width 256; the biased expectation is near 256 / (256 + 64)."""
  x, y = np.float32(np.random.default_rng(0).normal(size=(2, 64, 64, 256)))
  debiased, biased = (np.asarray(1 - cka_loss(x, y, debiased=d)) for d in (True, False))
  assert abs(debiased.mean()) < 0.01
  np.testing.assert_allclose(biased.mean(), 0.80, atol=0.005)
  rbf = np.asarray(1 - cka_loss(x, y, kernel="rbf"))
  assert abs(rbf.mean()) < 0.01


def test_the_range_of_the_debiased_loss_includes_more_than_1():
  x, y = np.float32(np.random.default_rng(0).normal(size=(2, 32, 8, 64)))
  loss = cka_loss(x, y)
  assert loss.max() > 1.05
  assert loss.max() <= 2.0


def flat_inputs():
  yield "constant", np.full((20, 9), 7.3)
  yield "large constant", np.full((20, 9), 1234.567)
  yield "equal rows", np.tile(np.random.default_rng(1).normal(size=(1, 9)) * 100, (20, 1))
  yield "zeros", np.zeros((20, 9))


@pytest.mark.parametrize("options", OPTIONS)
def test_without_structure_similarity_and_gradient_are_0(options):
  for what, flat in flat_inputs():
    flat = np.float32(flat)
    for x, y in ((flat, X), (X, flat), (flat, flat)):
      value, gradient = step(x, y, **options)
      assert value == 0.0, what
      np.testing.assert_array_equal(gradient, 0.0, err_msg=what)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_equidistant_rows_have_no_structure_for_the_debiased_estimator(kernel):
  """Orthonormal rows: the U-centred matrix is 0, its computed one is rounding, not similarity."""
  rows = np.float32(np.linalg.qr(np.random.default_rng(1).normal(size=(128, 128)))[0]) + np.float32(0.5)
  value, gradient = step(rows, rows, kernel=kernel)
  assert value == 0.0
  np.testing.assert_array_equal(gradient, 0.0)
  np.testing.assert_allclose(cka(rows, rows, kernel=kernel, debiased=False), 1.0, rtol=1e-6)


def test_weak_structure_still_counts():
  """A thousandth of structure on equidistant rows: far above the threshold, and CKA(x, x) is 1."""
  rows = np.float32(np.linalg.qr(np.random.default_rng(1).normal(size=(32, 32)))[0])
  rows[:16] += np.float32(0.03)
  np.testing.assert_allclose(cka(rows, rows), 1.0, rtol=1e-6)


def test_only_the_flat_image_of_a_batch_is_silenced():
  student, teacher = np.float32(np.random.default_rng(1).normal(size=(2, 2, 16, 8)))
  student[0] = 3.0
  gradient = jax.jit(jax.grad(lambda s: cka_loss(s, teacher).sum()))(student)
  np.testing.assert_array_equal(gradient[0], 0.0)
  assert np.abs(gradient[1]).max() > 1e-4


def test_median_over_pairs():
  x = np.float32([[0], [1], [3], [7]])  # squared distances 1 9 49 4 36 16
  np.testing.assert_allclose(median_squared_distance(x), 12.5, rtol=1e-6)
  expected = ref.median_squared_distance(X.astype(np.float64))
  np.testing.assert_allclose(median_squared_distance(X), expected, rtol=1e-6)


@pytest.mark.parametrize("debiased", [True, False])
def test_the_rbf_bandwidth_is_not_differentiated(debiased):
  x, y = X, np.float32(X**2)
  x64, y64 = x.astype(np.float64), y.astype(np.float64)
  fixed = tuple(ref.median_squared_distance(z) for z in (x64, y64))

  def numeric(sigma2):
    return ref.numeric_gradient(lambda z: ref.cka(z, y64, "rbf", debiased, sigma2), x64)

  _, gradient = step(x, y, kernel="rbf", debiased=debiased)
  expected = numeric(fixed)
  np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
  moving = numeric((None, fixed[1]))
  assert np.abs(moving - expected).max() > 0.01 * np.abs(expected).max()


def test_rbf_with_most_rows_equal_has_no_bandwidth_and_counts_as_flat():
  x = X.copy()
  x[:17] = 0.7
  value, gradient = step(x, X, kernel="rbf")
  assert value == 0.0
  np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_the_u_centred_matrix_has_zero_rows_and_diagonal(kernel):
  u = np.asarray(centered_gram(X, kernel=kernel))
  np.testing.assert_array_equal(np.diag(u), 0.0)
  np.testing.assert_allclose(u.sum(1), 0.0, atol=2e-6 * np.abs(u).sum(1).max())


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: cka(X[:3], Y[:3]), "at least 4 rows"),
    (lambda: cka(X[:3], Y[:3], debiased=False), "got 3"),
    (lambda: cka(X, Y[:5]), r"\(20, 9\) and \(5, 5\)"),
    (lambda: cka(X, Y, kernel="cosine"), "known: linear, rbf"),
    (lambda: cka_loss(X, Y), "need shapes"),
    (lambda: cka_loss(X, Y, over="batch"), "known: tokens, samples"),
    (lambda: cka_loss(X[:2], Y[:2], over="samples"), "got 2"),
  ],
)
def test_refusals(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_centring_makes_equal_rows_exactly_zero_where_a_rounded_mean_does_not():
  rows = [np.full((n, 3), np.float32(value)) for n in (5, 7, 11, 19) for value in (0.1, 7.3, 1234.567)]
  assert all((center_rows(jnp.asarray(x)) == 0).all() for x in rows)
  assert any((x - jnp.asarray(x).mean(axis=0, keepdims=True) != 0).any() for x in rows)
