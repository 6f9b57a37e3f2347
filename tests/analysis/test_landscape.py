"""Loss slices and sharpness on losses with closed forms, and their invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

from jaxkd.analysis import filter_normalized, loss_slice, sharpness, top_eigenvalues
from tests.analysis.curved import quadratic

KEY = jax.random.key(0)


def relu_loss(params, batch):
  """Two layers without biases: the first times c and the second divided by c are the same function."""
  x, y = batch
  out = jax.nn.relu(x @ params["a"]["kernel"]) @ params["b"]["kernel"]
  return jnp.mean(jnp.square(out - y))


def relu_net():
  rng = np.random.default_rng(0)
  params = {"a": {"kernel": rng.normal(size=(4, 6))}, "b": {"kernel": rng.normal(size=(6, 2))}}
  batches = [(rng.normal(size=(8, 4)), rng.normal(size=(8, 2))) for _ in range(2)]
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (params, batches))


def rescaled(params, factors):
  """Each hidden unit's input weights times its factor, its output weights divided by it: the same function."""
  a, b = params["a"]["kernel"] * factors[None], params["b"]["kernel"] / factors[:, None]
  return {"a": {"kernel": a}, "b": {"kernel": b}}


def slice_of(params, batches, directions):
  grid = np.linspace(-1, 1, 5)
  return loss_slice(relu_loss, params, batches, directions, grid, grid)


def test_slice_of_a_quadratic_along_its_eigenvectors_is_a_paraboloid():
  matrix = np.random.default_rng(1).normal(size=(6, 6))
  matrix = matrix @ matrix.T
  problem = quadratic(matrix)
  top = top_eigenvalues(**problem, key=KEY, k=2, iterations=6)
  a, b = np.linspace(-1, 1, 5), np.linspace(-0.5, 0.5, 3)
  found = loss_slice(*problem.values(), top.vectors, a, b)
  vectors = [np.asarray(v["w"], np.float64) for v in top.vectors]
  slope = [matrix @ np.ones(6) @ v for v in vectors]
  expected = 0.5 * matrix.sum() + np.add.outer(
    a * slope[0] + 0.5 * top.values[0] * a**2, b * slope[1] + 0.5 * top.values[1] * b**2
  )
  assert found.shape == (5, 3)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
  line = loss_slice(*problem.values(), top.vectors[1:], b)
  np.testing.assert_allclose(line, found[2], rtol=1e-6)


def test_filters_have_the_norms_of_the_parameters():
  kernel = jax.random.normal(KEY, (3, 3, 2, 5))
  params = {"conv": {"kernel": kernel, "bias": jnp.ones(5)}, "pos_embed": jax.random.normal(KEY, (1, 7, 4))}
  direction = filter_normalized(jax.random.key(1), params)
  norm = lambda x, axes: np.sqrt(np.sum(np.square(np.asarray(x)), axis=axes))  # noqa: E731
  np.testing.assert_allclose(norm(direction["conv"]["kernel"], (0, 1, 2)), norm(kernel, (0, 1, 2)), rtol=1e-5)
  np.testing.assert_allclose(norm(direction["pos_embed"], 2), norm(params["pos_embed"], 2), rtol=1e-5)
  assert not np.asarray(direction["conv"]["bias"]).any()
  assert abs(np.vdot(direction["conv"]["kernel"], kernel)) < 0.5 * np.vdot(
    kernel, kernel
  )  # a direction of its own


def test_filter_normalised_slices_ignore_the_scale_of_layers():
  params, batches = relu_net()
  scaled = rescaled(params, jnp.full(6, 8.0))
  slices = [
    slice_of(p, batches, [filter_normalized(jax.random.key(i), p) for i in (1, 2)]) for p in (params, scaled)
  ]
  np.testing.assert_allclose(slices[1], slices[0], rtol=1e-4)
  plain = jax.tree.map(lambda x: jax.random.normal(jax.random.key(3), x.shape), params)
  unnormalised = [slice_of(p, batches, [plain, plain]) for p in (params, scaled)]
  assert np.abs(unnormalised[1] / unnormalised[0] - 1).max() > 0.5


def worst_in_ball(matrix, gradient, rho):
  """max g'e + e'Ae/2 over |e| = rho, by the Lagrange multiplier of the hard constraint."""
  values, vectors = np.linalg.eigh(matrix)
  g = vectors.T @ gradient
  radius = lambda m: np.linalg.norm(g / (m - values)) - rho  # noqa: E731
  m = brentq(radius, values[-1] + 1e-9, values[-1] + 1e6)
  e = g / (m - values)
  return g @ e + 0.5 * e @ (values * e)


def test_sharpness_of_a_quadratic():
  rng = np.random.default_rng(2)
  matrix = rng.normal(size=(8, 8))
  matrix = matrix @ matrix.T
  gradient, rho = matrix @ np.ones(8), 0.7
  exact = worst_in_ball(matrix, gradient, rho)
  step = rho * gradient / np.linalg.norm(gradient)
  one = sharpness(**quadratic(matrix), rho=rho)
  np.testing.assert_allclose(one.value, gradient @ step + 0.5 * step @ matrix @ step, rtol=1e-5)
  np.testing.assert_allclose(one.loss, 0.5 * matrix.sum(), rtol=1e-5)
  many = sharpness(**quadratic(matrix), rho=rho, steps=20)
  np.testing.assert_allclose(many.one_step, one.value, rtol=1e-6)
  assert one.value < 0.999 * exact  # one step is not the maximum here
  np.testing.assert_allclose(many.value, exact, rtol=1e-4)
  assert many.value <= exact * (1 + 1e-6)


def test_adaptive_step_has_its_closed_form():
  matrix, rho = np.diag([1.0, 4.0, 9.0]), 0.3
  params = {"w": jnp.array([2.0, -1.0, 0.0])}
  problem = quadratic(matrix) | {"params": params}
  w, gradient = np.array([2.0, -1.0, 0.0]), np.array([2.0, -4.0, 0.0])
  e = rho * np.abs(w) ** 2 * gradient / np.linalg.norm(np.abs(w) * gradient)
  found = sharpness(**problem, rho=rho, adaptive=True)
  np.testing.assert_allclose(found.value, gradient @ e + 0.5 * e @ matrix @ e, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 4])
def test_adaptive_sharpness_ignores_rescalings_of_units(steps):
  params, batches = relu_net()
  scaled = rescaled(params, jnp.array([0.1, 0.5, 1.0, 2.0, 5.0, 20.0]))
  found = {
    adaptive: [
      sharpness(relu_loss, p, batches, rho=0.2, steps=steps, adaptive=adaptive).value
      for p in (params, scaled)
    ]
    for adaptive in (True, False)
  }
  np.testing.assert_allclose(found[True][1], found[True][0], rtol=1e-4)
  assert found[False][1] > 2 * found[False][0]  # the plain ball sees other minima where there are none


def test_at_a_stationary_point_nothing_rises():
  problem = quadratic(np.eye(3)) | {"params": {"w": jnp.zeros(3)}}
  assert sharpness(**problem, rho=1.0, steps=3).value == 0.0


@pytest.mark.parametrize(
  ("options", "message"), [({"rho": 0.0}, "must be positive"), ({"steps": 0}, "must be positive")]
)
def test_refusals_of_sharpness(options, message):
  with pytest.raises(ValueError, match=message):
    sharpness(**quadratic(np.eye(3)), **options)


def test_refusals_of_slices():
  problem = quadratic(np.eye(3))
  with pytest.raises(ValueError, match="1 directions and 2 arrays"):
    loss_slice(*problem.values(), [problem["params"]], np.zeros(2), np.zeros(2))
  with pytest.raises(ValueError, match="direction 0 differs"):
    loss_slice(*problem.values(), [{"w": jnp.ones(4)}], np.zeros(2))
  with pytest.raises(FloatingPointError, match="smaller rho"):
    sharpness(**quadratic(np.full((3, 3), np.inf)))
