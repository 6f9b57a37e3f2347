"""Eigenvalues and spectral density against numpy's of the exact Hessian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.analysis import hessian_trace, spectral_density, top_eigenvalues
from jaxkd.analysis.curvature.products import flat
from tests.analysis.curved import curved, quadratic

pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.mark.parametrize("kind", ["deit", "cnn"])
def test_top_eigenvalues(kind):
  case = curved(kind)
  values, vectors = np.linalg.eigh(case.hessian)
  options = {"key": jax.random.key(0), "k": 4, "iterations": 40}
  found = top_eigenvalues(case.loss, case.params, case.batches, **options)
  scale = values[-1]
  np.testing.assert_allclose(found.values, values[::-1][:4], rtol=0, atol=2e-6 * scale)
  assert (found.errors < 1e-5 * scale).all()
  for i, vector in enumerate(found.vectors):
    v = np.asarray(flat(vector), np.float64)
    assert abs(np.linalg.norm(v) - 1) < 1e-5
    assert abs(v @ vectors[:, -1 - i]) > 1 - 1e-4
    # The bound is that of this vector, whatever Lanczos found.
    residual = np.linalg.norm(case.hessian @ v - found.values[i] * v)
    assert abs(residual - found.errors[i]) < 3e-6 * scale
  few = top_eigenvalues(case.loss, case.params, case.batches, **{**options, "iterations": 5})
  distance = np.abs(values[None] - few.values[:, None]).min(axis=1)
  assert (distance <= few.errors + 1e-6 * scale).all()  # a bound, also where it is not yet small
  assert few.errors[3] > 100 * found.errors[3]


def test_which_end_of_the_spectrum():
  matrix = np.diag(np.array([-9.0, -1, 0, 0.5, 1, 2, 3, 5], np.float64))
  q = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
  options = {**quadratic(q @ matrix @ q.T), "key": jax.random.key(1), "k": 2, "iterations": 8}
  for which, expected in {"largest": [5, 3], "smallest": [-9, -1], "magnitude": [-9, 5]}.items():
    np.testing.assert_allclose(top_eigenvalues(**options, which=which).values, expected, atol=1e-5)


def test_an_exhausted_krylov_space_ends_early():
  """Three different eigenvalues: one start vector finds each of them once."""
  q = np.linalg.qr(np.random.default_rng(0).normal(size=(10, 10)))[0]
  matrix = q @ np.diag([5.0] * 4 + [1.0] * 3 + [-2.0] * 3) @ q.T
  found = top_eigenvalues(**quadratic(matrix), key=jax.random.key(2), k=5, iterations=10)
  assert found.iterations == 3
  np.testing.assert_allclose(found.values, [5, 1, -2], atol=1e-5)
  density = spectral_density(**quadratic(matrix), key=jax.random.key(2), starts=3, iterations=10)
  assert np.isfinite(density.nodes).all()
  np.testing.assert_allclose(density.masses.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(("kind", "starts"), [("deit", 24), ("cnn", 6)])
def test_spectral_density(kind, starts):
  case, key = curved(kind), jax.random.key(3)
  values = np.linalg.eigvalsh(case.hessian)
  found = spectral_density(case.loss, case.params, case.batches, key=key, starts=starts, iterations=20)
  np.testing.assert_allclose(found.masses.sum(axis=1), 1, rtol=1e-5)
  # Node by node the quadrature gives v'Hv, which are the probes of hessian_trace.
  probes = hessian_trace(case.loss, case.params, case.batches, key=key, probes=starts).values
  np.testing.assert_allclose(
    found.size * np.sum(found.masses * found.nodes, axis=1), probes, rtol=1e-4, atol=1e-5 * values[-1]
  )
  for power in (1, 2):
    mean, _ = found.moment(power)
    # Six values with two large ones say little of their own spread; that of random signs is known.
    matrix = np.linalg.matrix_power(case.hessian, power)
    stderr = np.sqrt(2 * (np.sum(matrix**2) - np.sum(np.diag(matrix) ** 2)) / starts)
    assert abs(mean - np.trace(matrix)) < 3 * stderr
  sigma = 0.03 * values[-1]
  points = np.linspace(values[0], values[-1], 25)
  exact = np.exp(-0.5 * ((points[:, None] - values) / sigma) ** 2).mean(axis=1) / (sigma * np.sqrt(2 * np.pi))
  mean, stderr = found.on(points, sigma)
  assert (np.abs(mean - exact) < 4 * stderr + 1e-3 * exact.max()).all()
  assert np.abs(mean[::-1] - exact).max() > 0.5 * exact.max()  # the mirrored density is not it
  edge = 0.1 * values[-1]
  share, error = found.share_between(edge, np.inf)
  assert abs(share - np.mean(values >= edge)) < 4 * error
  if kind == "deit":  # six starts see no difference
    assert abs(share - np.mean(values >= edge / 100)) > 4 * error


def test_unequal_batches():
  matrices = np.random.default_rng(1).normal(size=(3, 6, 6)).astype(np.float32)
  matrices += matrices.swapaxes(1, 2)

  def loss(params, batch):
    return jnp.mean(0.5 * jnp.einsum("i,bij,j->b", params["w"], batch, params["w"]))

  params, batches = {"w": jnp.ones(6)}, [matrices[:2], matrices[2:]]
  found = top_eigenvalues(loss, params, batches, key=jax.random.key(0), k=1, iterations=6, weights=(2, 1))
  np.testing.assert_allclose(found.values, np.linalg.eigvalsh(matrices.mean(0))[-1:], rtol=1e-5)


@pytest.mark.parametrize(
  ("function", "options", "message"),
  [
    (top_eigenvalues, {"k": 0}, "k = 0"),
    (top_eigenvalues, {"k": 5, "iterations": 4}, "k = 5"),
    (top_eigenvalues, {"iterations": 7}, "number of parameters, 6"),
    (top_eigenvalues, {"iterations": 6, "which": "last"}, "known: largest"),
    (spectral_density, {"iterations": 6, "starts": 1}, "at least 2"),
  ],
)
def test_refusals(function, options, message):
  with pytest.raises(ValueError, match=message):
    function(**quadratic(np.eye(6)), key=jax.random.key(0), **options)


def test_a_hessian_that_is_not_finite():
  with pytest.raises(FloatingPointError, match="not finite"):
    top_eigenvalues(**quadratic(np.full((6, 6), np.nan)), key=jax.random.key(0), iterations=3)
