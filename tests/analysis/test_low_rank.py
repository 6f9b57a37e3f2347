"""Hutch++ and XTrace: against matfree's XTrace, on matrices of low rank, and how their errors and intervals do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matfree import stochtrace

from jaxkd.analysis import hessian_trace
from jaxkd.analysis.curvature import low_rank
from tests.analysis.curved import quadratic


def decaying(size=200, power=1.5, seed=0):
  q = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]
  return q @ np.diag((1 + np.arange(size)) ** -power) @ q.T


def params_of(size):
  return {"a": jnp.zeros((size // 2,)), "b": jnp.zeros((size - size // 2,))}


def test_xtrace_is_matfrees():
  matrix, params, key = decaying(60), params_of(60), jax.random.key(0)
  found = low_rank.xtrace(lambda rows: rows @ matrix.astype(np.float32), params, key, 20)
  samples = jnp.asarray(low_rank._draw(key, params, range(10), low_rank.normal_like))
  theirs = stochtrace.leave_one_out_xtrace(apply_resphering=True)
  with jax.default_matmul_precision("highest"), jax.numpy_rank_promotion("allow"):
    expected = theirs(lambda v: jnp.asarray(matrix, jnp.float32) @ v, samples)
  values = found["a"] + found["b"]
  np.testing.assert_allclose(values, expected, rtol=2e-4)
  plain = stochtrace.leave_one_out_xtrace(apply_resphering=False)
  with jax.numpy_rank_promotion("allow"):
    other = plain(lambda v: jnp.asarray(matrix, jnp.float32) @ v, samples)
  assert np.abs(np.asarray(other) - values).max() > 1e-2  # that the lengths are set is seen


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
def test_exact_on_a_range_that_is_taken_out_whole(method):
  b = np.random.default_rng(1).normal(size=(80, 4))
  matrix = b @ b.T
  found = hessian_trace(**quadratic(matrix), key=jax.random.key(1), probes=30, method=method)
  assert found.probes == 30
  np.testing.assert_allclose(found.mean, np.trace(matrix), rtol=1e-5)
  hutchinson = hessian_trace(**quadratic(matrix), key=jax.random.key(1), probes=30)
  assert abs(hutchinson.mean / np.trace(matrix) - 1) > 1e-3


def repeated(matrix, method, probes, count=40):
  key = jax.random.key(2)
  return [
    hessian_trace(**quadratic(matrix), key=jax.random.fold_in(key, i), probes=probes, method=method)
    for i in range(count)
  ]


def test_errors_for_the_same_number_of_products():
  """On a decaying spectrum: XTrace before Hutch++ before Hutchinson, and each one's stderr says how far off it is."""
  matrix = decaying()
  rms, told = {}, {}
  for method in ("hutchinson", "hutch++", "xtrace"):
    runs = repeated(matrix, method, 60)
    rms[method] = np.sqrt(np.mean([(r.mean - np.trace(matrix)) ** 2 for r in runs]))
    told[method] = np.sqrt(np.mean([r.stderr**2 for r in runs]))
  assert rms["xtrace"] < rms["hutch++"] < rms["hutchinson"] / 2
  for method, error in rms.items():
    assert 0.6 < told[method] / error < 1.7, (method, told, rms)


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
def test_blocks_are_unbiased(method):
  matrix, params = decaying(60, power=0.5), params_of(60)
  estimate = {"hutch++": low_rank.hutch_plus_plus, "xtrace": low_rank.xtrace}[method]
  runs = [
    estimate(
      lambda rows: rows @ matrix.astype(np.float32), params, jax.random.fold_in(jax.random.key(3), i), 18
    )
    for i in range(60)
  ]
  for name, block in (("a", slice(0, 30)), ("b", slice(30, 60))):
    means = np.array([run[name].mean() for run in runs])
    exact = np.trace(matrix[block, block])
    stderr = means.std(ddof=1) / np.sqrt(len(means))
    assert stderr < 0.05 * exact
    assert abs(means.mean() - exact) < 4 * stderr
