"""Procrustes similarity and mutual nearest neighbours against scipy and plain loops."""

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes

from jaxkd.analysis.alignment import mutual_knn_matrix, procrustes_matrix


def features(n, widths, seed=0, shared=4):
  rng = np.random.default_rng(seed)
  common = rng.normal(size=(n, shared))
  return [np.float32(common @ rng.normal(size=(shared, d)) + rng.normal(size=(n, d)) + 3) for d in widths]


def unit(x):
  x = x.astype(np.float64) - x.astype(np.float64).mean(0)
  return x / np.linalg.norm(x)


def scipy_similarity(x, y):
  """1 - half the squared distance that is left after the best rotation, by fitting it."""
  x, y = unit(x), unit(y)
  width = max(x.shape[1], y.shape[1])
  x, y = (np.pad(z, ((0, 0), (0, width - z.shape[1]))) for z in (x, y))
  rotation, _ = orthogonal_procrustes(y, x)
  return 1 - ((x - y @ rotation) ** 2).sum() / 2


def test_procrustes_against_the_fitted_rotation():
  a, b = features(30, (5, 8, 50)), features(30, (8, 70), seed=1)  # narrower and wider than the 30 rows
  expected = [[scipy_similarity(x, y) for y in b] for x in a]
  np.testing.assert_allclose(procrustes_matrix(a, b), expected, atol=2e-6)
  own = procrustes_matrix(a, a)
  np.testing.assert_allclose(own, own.T, atol=2e-6)
  np.testing.assert_allclose(np.diag(own), 1.0, atol=2e-6)
  assert own[0, 1] < 0.95


@pytest.mark.parametrize("width", [6, 40])
def test_rotation_offset_and_scale_change_nothing(width):
  (x,) = features(25, (width,))
  rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(width, width)))[0]
  np.testing.assert_allclose(procrustes_matrix([x], [np.float32(9 * x @ rotation - 50)]), 1.0, atol=1e-5)
  stretched = np.float32(x * np.logspace(0, 2, width))  # negative control: no rotation does this
  assert procrustes_matrix([x], [stretched])[0, 0] < 0.95
  assert procrustes_matrix([x], [np.full_like(x, 2.5)])[0, 0] == 0


def test_procrustes_of_unrelated_features_depends_on_the_number_of_rows():
  rng = np.random.default_rng(3)
  many = [np.float32(rng.normal(size=(1000, 5))) for _ in range(2)]
  few = [np.float32(rng.normal(size=(20, 40))) for _ in range(2)]
  assert procrustes_matrix(many[:1], many[1:])[0, 0] < 0.1
  assert procrustes_matrix(few[:1], few[1:])[0, 0] > 0.7  # the bias that the documentation warns of


def slow_neighbours(x, k):
  x = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
  similarity = x @ x.T
  return [
    set(sorted((j for j in range(len(x)) if j != i), key=lambda j: -similarity[i, j])[:k])
    for i in range(len(x))
  ]


def test_mutual_neighbours_against_sets():
  a, b = features(40, (5, 8)), features(40, (6,), seed=0)
  k = 4
  expected = np.zeros((2, 1, 40))
  for i, x in enumerate(a):
    pairs = zip(slow_neighbours(x, k), slow_neighbours(b[0], k), strict=True)
    expected[i, 0] = [len(p & q) / k for p, q in pairs]
  np.testing.assert_allclose(mutual_knn_matrix(a, b, k=k, reduce=None), expected, rtol=1e-6)
  np.testing.assert_allclose(mutual_knn_matrix(a, b, k=k), expected.mean(-1), rtol=1e-6)
  own = mutual_knn_matrix(a, a, k=k)
  np.testing.assert_array_equal(np.diag(own), 1.0)
  assert own[0, 1] < 0.9


def test_unrelated_rows_share_neighbours_by_chance_alone():
  (x,) = features(200, (6,))
  shuffled = x[np.random.default_rng(4).permutation(200)]
  assert mutual_knn_matrix([x], [shuffled], k=10)[0, 0] == pytest.approx(10 / 199, abs=0.015)
  rotation = np.linalg.qr(np.random.default_rng(5).normal(size=(6, 6)))[0]
  assert mutual_knn_matrix([x], [np.float32(3 * x @ rotation)], k=10)[0, 0] > 0.99


A, B = features(8, (5,)), features(8, (6, 7))


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: procrustes_matrix([], B), "no layers"),
    (lambda: procrustes_matrix(A, [B[0][:5]]), "same n rows"),
    (lambda: mutual_knn_matrix(A, B, k=8), r"k is 8; it must be in 1 .. 7"),
    (lambda: mutual_knn_matrix(A, B, k=2, reduce="sum"), "'sum'; known: 'mean', None"),
  ],
)
def test_refusals(call, message):
  with pytest.raises(ValueError, match=message):
    call()
