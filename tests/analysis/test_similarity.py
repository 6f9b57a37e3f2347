"""CKA matrices and their minibatch estimate, k-NN and linear probe."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from jaxkd.analysis.similarity import (
  cka_accumulate,
  cka_finish,
  cka_matrix,
  knn_accuracy,
  linear_probe,
  squared_bandwidths,
)


def hsic(k, l_):
  """Unbiased, in float64: equation 5 of Song et al., JMLR 2012, which needs no U-centring."""
  n = len(k)
  k, l_ = k - np.diag(np.diag(k)), l_ - np.diag(np.diag(l_))
  sums = k.sum() * l_.sum() / ((n - 1) * (n - 2)) - 2 * (k.sum(0) @ l_.sum(0)) / (n - 2)
  return ((k * l_).sum() + sums) / (n * (n - 3))


def kernel_matrix(x, sigma2=None):
  x = x.astype(np.float64)
  if sigma2 is None:
    return x @ x.T
  return np.exp(-((x[:, None] - x[None]) ** 2).sum(-1) / (2 * sigma2))


def ratio(cross, own_a, own_b):
  return cross / np.sqrt(own_a[:, None] * own_b[None, :])


def all_hsic(a, b, sigma_a=None, sigma_b=None):
  ka = [kernel_matrix(x, s) for x, s in zip(a, sigma_a or [None] * len(a), strict=True)]
  kb = [kernel_matrix(x, s) for x, s in zip(b, sigma_b or [None] * len(b), strict=True)]
  cross = np.array([[hsic(k, m) for m in kb] for k in ka])
  return cross, np.array([hsic(k, k) for k in ka]), np.array([hsic(m, m) for m in kb])


def layers(n, seed=0):
  """Two models of 3 and 2 layers of widths 8 and 12 that share some of their signal."""
  rng = np.random.default_rng(seed)
  shared = rng.normal(size=(n, 6))
  a = [np.float32(shared @ rng.normal(size=(6, d)) + rng.normal(size=(n, d)) + 2) for d in (8, 8, 12)]
  b = [np.float32(shared @ rng.normal(size=(6, d)) + rng.normal(size=(n, d))) for d in (12, 8)]
  return a, b


def test_matrix_against_the_reference():
  a, b = layers(40)
  value = cka_matrix(a, b)
  assert value.shape == (3, 2)
  assert value.dtype == jnp.float32
  np.testing.assert_allclose(value, ratio(*all_hsic(a, b)), atol=1e-6)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("debiased", [True, False])
def test_self_matrix_is_symmetric_with_unit_diagonal(kernel, debiased):
  a, _ = layers(40)
  value = np.asarray(cka_matrix(a, a, kernel=kernel, debiased=debiased))
  np.testing.assert_allclose(value, value.T, atol=1e-6)
  np.testing.assert_allclose(np.diag(value), 1.0, rtol=1e-6)
  assert value[0, 1] < 0.99
  np.testing.assert_allclose(value, cka_matrix(a, list(a), kernel=kernel, debiased=debiased), atol=1e-6)


def test_rotated_and_shifted_layers_are_the_same_layer():
  a, _ = layers(40)
  rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0]
  other = [np.float32(7 * a[1] @ rotation - 100)]
  np.testing.assert_allclose(cka_matrix([a[1]], other), [[1.0]], atol=1e-5)


def test_independent_features_of_2000_rows():
  rng = np.random.default_rng(0)
  x, y = (np.float32(rng.normal(size=(2000, 512))) for _ in range(2))
  assert abs(cka_matrix([x], [y])[0, 0]) < 0.005
  assert cka_matrix([x], [y], debiased=False)[0, 0] > 0.15  # the biased one is not 0


def test_a_dead_layer_is_similar_to_nothing():
  a, b = layers(40)
  value = cka_matrix([np.full_like(a[0], 3.3), a[1]], b)
  np.testing.assert_array_equal(value[0], 0.0)
  assert value[1].min() > 0.1


def batches(a, b, size):
  for start in range(0, len(a[0]), size):
    yield [x[start : start + size] for x in a], [y[start : start + size] for y in b]


def accumulate(a, b, size, **options):
  state = ()
  for part_a, part_b in batches(a, b, size):
    state = cka_accumulate(state, part_a, part_b, **options)
  return cka_finish(state)


def test_one_batch_is_the_full_matrix():
  a, b = layers(40)
  estimate = accumulate(a, b, 40)
  np.testing.assert_allclose(estimate.value, cka_matrix(a, b), atol=1e-6)
  assert estimate.batches == 1
  assert np.isnan(estimate.stderr).all()


def test_minibatches_against_summed_references_and_jackknife():
  a, b = layers(60)
  parts = [all_hsic(*part) for part in batches(a, b, 20)]
  sums = [np.stack(v) for v in zip(*parts, strict=True)]
  estimate = accumulate(a, b, 20)
  np.testing.assert_allclose(estimate.value, ratio(*(v.sum(0) for v in sums)), atol=1e-6)
  left_out = np.stack([ratio(*(np.delete(v, i, 0).sum(0) for v in sums)) for i in range(3)])
  expected = np.sqrt(2 / 3 * ((left_out - left_out.mean(0)) ** 2).sum(0))
  np.testing.assert_allclose(estimate.stderr, expected, rtol=1e-4, atol=1e-6)


def test_minibatches_with_fixed_bandwidths():
  a, b = layers(60)
  sigma_a, sigma_b = squared_bandwidths(a), squared_bandwidths(b)
  parts = [all_hsic(*p, [*map(float, sigma_a)], [*map(float, sigma_b)]) for p in batches(a, b, 20)]
  expected = ratio(*(np.stack(v).sum(0) for v in zip(*parts, strict=True)))
  estimate = accumulate(a, b, 20, bandwidths=(sigma_a, sigma_b))
  np.testing.assert_allclose(estimate.value, expected, atol=2e-6)
  assert np.abs(estimate.value - accumulate(a, b, 20).value).max() > 0.01


def test_minibatches_estimate_the_full_batch_where_averaged_biased_cka_does_not():
  a, b = layers(800)
  full = cka_matrix(a, b)
  estimate = accumulate(a, b, 40)
  assert np.abs(estimate.value - full).max() < 0.03
  assert (np.abs(estimate.value - full) < 4 * estimate.stderr).all()
  biased = np.mean([cka_matrix(*part, debiased=False) for part in batches(a, b, 40)], axis=0)
  assert np.abs(biased - full).max() > 0.04


def test_minibatches_of_2000_rows_against_the_full_batch():
  """Related layers agree with the full batch, independent ones are near 0; averaged biased CKA is neither."""
  a, b = layers(2000)
  noise = [np.float32(np.random.default_rng(7).normal(size=(2000, 64)))]
  full, unrelated = cka_matrix(a, b), cka_matrix(a, noise)
  estimate, of_noise = accumulate(a, b, 100), accumulate(a, noise, 100)
  assert np.abs(estimate.value - full).max() < 0.015
  assert (np.abs(estimate.value - full) < 4 * estimate.stderr).all()
  assert np.abs(unrelated).max() < 0.02
  assert np.abs(of_noise.value).max() < 0.02
  biased = np.mean([cka_matrix(*part, debiased=False) for part in batches(a, noise, 100)], axis=0)
  assert biased.min() > 0.2


def test_accumulating_a_model_with_itself_makes_its_gram_matrices_once():
  a, _ = layers(40)
  same, copies = (
    accumulate_pairs(lambda part, c=c: (part, list(part) if c else part), a) for c in (False, True)
  )
  np.testing.assert_allclose(same.value, copies.value, atol=1e-6)
  np.testing.assert_allclose(np.diag(same.value), 1.0, rtol=1e-6)
  np.testing.assert_allclose(same.value, same.value.T, atol=1e-6)


def accumulate_pairs(pair, a):
  state = ()
  for part, _ in batches(a, a, 20):
    state = cka_accumulate(state, *pair(part))
  return cka_finish(state)


def test_standard_error_has_the_size_of_the_spread():
  """50 repetitions of 20 batches: the mean jackknife error against the deviation over repetitions."""
  estimates = [accumulate(*layers_of_one_model(400, seed), 20) for seed in range(50)]
  spread = np.std([e.value for e in estimates])
  error = np.mean([e.stderr for e in estimates])
  assert 0.75 < error / spread < 1.33


def layers_of_one_model(n, seed):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(n, 6))
  return [np.float32(x)], [np.float32(x[:, :4] + rng.normal(size=(n, 4)))]


def blobs(n, classes=4, width=8, spread=1.2, seed=0):
  centres = 2.0 * np.random.default_rng(99).normal(size=(classes, width))
  rng = np.random.default_rng(seed)
  labels = rng.integers(classes, size=n)
  return np.float32(centres[labels] + spread * 2 * rng.normal(size=(n, width))), labels


def slow_knn(train, train_labels, test, k):
  train, test = (x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test))
  votes = []
  for row in test:
    similarity = train @ row
    tally = np.zeros(train_labels.max() + 1)
    for i in np.argsort(-similarity)[:k]:
      tally[train_labels[i]] += np.exp(similarity[i] / 0.07)
    votes.append(tally.argmax())
  return np.array(votes)


@pytest.mark.parametrize("k", [1, 20])
def test_knn_against_a_loop_over_more_rows_than_a_chunk(k):
  (train, labels), (test, truth) = blobs(200), blobs(300, seed=1)
  expected = np.mean(slow_knn(train, labels, test, k) == truth)
  assert 0.5 < expected < 0.98
  assert knn_accuracy(train, labels, test, truth, k=k) == pytest.approx(expected, abs=1e-9)


def test_nearest_neighbour_agrees_with_scikit_learn():
  (train, labels), (test, truth) = blobs(200), blobs(100, seed=1)
  model = KNeighborsClassifier(1, metric="cosine").fit(train, labels)
  assert knn_accuracy(train, labels, test, truth, k=1) == pytest.approx(model.score(test, truth), abs=1e-9)


def test_votes_are_weighted():
  """One neighbour at cosine 1 outweighs two at cosine 0.6 (exp(0.4 / 0.07) = 303)."""
  train = jnp.asarray([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]])
  assert knn_accuracy(train, np.array([0, 1, 1]), jnp.asarray([[2.0, 0.0]]), np.array([0]), k=3) == 1.0


def test_probe_separates_what_is_separable_and_not_noise():
  (train, labels), (test, truth) = blobs(200, spread=0.3), blobs(100, spread=0.3, seed=1)
  assert linear_probe(train, labels, test, truth) > 0.97
  shuffled = np.random.default_rng(0).permutation(labels)
  assert linear_probe(train, shuffled, test, truth) < 0.6


def test_probe_standardises_by_the_training_rows():
  (train, labels), (test, truth) = blobs(200), blobs(100, seed=1)
  scale, offset = np.float32(np.logspace(-3, 3, 8)), np.float32(np.linspace(-5, 5, 8))
  plain = linear_probe(train, labels, test, truth)
  assert linear_probe(train * scale + offset, labels, test * scale + offset, truth) == plain
  assert linear_probe(train, labels, test + 10, truth) < plain - 0.1


A, B = layers(8)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: cka_matrix([], B), r"no layers to compare \(0 and 2\)"),
    (lambda: cka_matrix(A, [B[0][:4]]), "same n rows"),
    (lambda: cka_matrix([A[0][:3]], [B[0][:3]]), "at least 4 rows"),
    (lambda: cka_accumulate(cka_accumulate((), A, B), A, B[:1]), r"3 x 1 layers after a batch of \(3, 2\)"),
    (lambda: cka_finish(()), "no batch was accumulated"),
    (lambda: knn_accuracy(A[0], np.zeros(8, int), A[0], np.zeros(8, int), k=9), r"k is 9; .* 1 .. 8"),
    (lambda: knn_accuracy(A[0], np.zeros(7, int), A[0], np.zeros(8, int)), r"labels \(7,\)"),
    (lambda: linear_probe(A[0], np.zeros(8, int), A[2], np.zeros(8, int)), r"\(8, 8\) and \(8, 12\)"),
  ],
)
def test_refusals(call, message):
  with pytest.raises(ValueError, match=message):
    call()
