"""SAM on a quadratic, whose gradients are known: exact in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.sam import perturb

A = np.array([[3.0, 1.0], [1.0, 2.0]])
RHO = 0.25


def loss(params):
  w = jnp.stack([params["x"], params["y"][0]])
  return w @ jnp.asarray(A, w.dtype) @ w / 2


def steps(rho, count=4, lr=0.1):
  params = {"x": jnp.float32(1.0), "y": jnp.float32([-2.0])}
  for _ in range(count):
    grads = jax.grad(loss)(params)
    second = jax.grad(loss)(perturb(params, grads, rho=rho)) if rho else grads
    params = jax.tree.map(lambda p, g: p - lr * g, params, second)
  return np.array([params["x"], params["y"][0]])


def closed_form(rho, count=4, lr=0.1):
  w = np.array([1.0, -2.0])
  for _ in range(count):
    g = A @ w
    w = w - lr * A @ (w + rho * g / np.linalg.norm(g))
  return w


def test_descent_on_a_quadratic():
  np.testing.assert_allclose(steps(RHO), closed_form(RHO), rtol=1e-6)
  np.testing.assert_allclose(steps(0.0), closed_form(0.0), rtol=1e-6)
  assert np.abs(steps(RHO) - closed_form(0.0)).max() > 1e-2


def test_distance_is_rho_over_all_leaves_together():
  params = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(4)}
  grads = {"a": jnp.full((2, 3), 2.0), "b": jnp.full(4, -1.0)}
  moved = perturb(params, grads, rho=RHO)
  length = np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(moved)))
  assert length == pytest.approx(RHO, rel=1e-6)
  assert float(moved["a"][0, 0]) == pytest.approx(-2 * float(moved["b"][0]))


def test_no_gradient_no_move():
  params = {"a": jnp.ones(2), "b": jnp.ones(1, jnp.bfloat16)}
  moved = perturb(params, jax.tree.map(jnp.zeros_like, params), rho=RHO)
  jax.tree.map(np.testing.assert_array_equal, moved, params)
  kept = perturb(params, {"a": None, "b": jnp.ones(1, jnp.bfloat16)}, rho=RHO)
  np.testing.assert_array_equal(kept["a"], params["a"])
  assert kept["b"].dtype == jnp.bfloat16
  assert float(kept["b"][0]) == 1.25
