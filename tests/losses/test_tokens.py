"""Token losses, normalisation and the grid resize."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.losses.tokens import unit_tokens
from tests.losses import references as ref

RNG = np.random.default_rng(0)
token_cosine = jax.jit(losses.token_cosine, static_argnames="metric")
normalize_tokens = jax.jit(losses.normalize_tokens)
resize_grid = jax.jit(losses.resize_grid, static_argnums=1)
X, Y = (np.float32(RNG.normal(size=(2, 6, 192))) for _ in range(2))


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_equal_tokens_cost_less_than_a_millionth(scale):
  np.testing.assert_allclose(token_cosine(X * np.float32(scale), X), 0.0, atol=5e-7)


def test_opposite_and_orthogonal_tokens():
  e = jnp.eye(4)[None]
  np.testing.assert_allclose(token_cosine(e, -e), [2.0], rtol=1e-6)
  np.testing.assert_allclose(token_cosine(e, jnp.roll(e, 1, axis=1)), [1.0], rtol=1e-6)


def test_order_of_tokens_counts():
  assert token_cosine(X, np.roll(X, 1, axis=1)).min() > 0.5


def test_a_zero_token_has_cosine_0_and_no_gradient():
  x = X.copy()
  x[0, 0] = 0
  value, gradient = jax.jit(jax.value_and_grad(lambda s: token_cosine(s, X).sum()))(x)
  np.testing.assert_allclose(value, 1 / 6, atol=1e-6)
  np.testing.assert_array_equal(gradient[0, 0], 0.0)
  assert np.isfinite(gradient).all()


def test_plain_division_would_fail_the_zero_token_test():
  gradient = jax.grad(lambda s: jnp.sum(s / jnp.linalg.norm(s)))(jnp.zeros(3))
  assert np.isnan(gradient).all()


def test_unit_tokens_have_length_1():
  np.testing.assert_allclose(jnp.linalg.norm(unit_tokens(X), axis=-1), 1.0, rtol=1e-6)


def test_normalize_tokens_is_layer_norm():
  x64 = X.astype(np.float64) * 3 + 5
  expected = (x64 - x64.mean(-1, keepdims=True)) / np.sqrt(x64.var(-1, keepdims=True) + 1e-6)
  value = normalize_tokens(jnp.asarray(x64, jnp.float32))
  np.testing.assert_allclose(value, expected, atol=2e-6)
  assert normalize_tokens(jnp.asarray(X, jnp.bfloat16)).dtype == jnp.float32


def test_normalize_tokens_of_a_constant_token_is_0():
  value, gradient = jax.jit(jax.value_and_grad(lambda x: normalize_tokens(x).sum()))(jnp.full((1, 2, 8), 0.5))
  assert value == 0.0
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize("grid", [(8, 8), (2, 2), (7, 3), (16, 5), (5, 4), (1, 1)])
def test_resize_against_sampling_at_half_pixel_centres(grid):
  x = np.float32(np.random.default_rng(1).normal(size=(2, 5, 4, 3)))
  np.testing.assert_allclose(resize_grid(x, grid), ref.resize_grid(x, grid), atol=2e-6)


def test_resize_to_the_same_grid_is_exact():
  x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 5, 4, 3)), jnp.float32)
  np.testing.assert_array_equal(resize_grid(x, (5, 4)), x)


def test_antialiasing_would_be_another_resize():
  x = np.float32(np.random.default_rng(1).normal(size=(1, 8, 8, 2)))
  filtered = jax.image.resize(x, (1, 3, 3, 2), "bilinear", antialias=True)
  assert np.abs(filtered - ref.resize_grid(x, (3, 3))).max() > 0.1


def test_a_ramp_stays_a_ramp_inside():
  ramp = np.broadcast_to(np.arange(4.0, dtype=np.float32)[None, :, None, None], (1, 4, 4, 1))
  np.testing.assert_allclose(
    resize_grid(ramp, (8, 4))[0, :, 0, 0], [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3], atol=1e-6
  )


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: token_cosine(jnp.zeros((2, 4, 3)), jnp.zeros((2, 5, 3))), r"\(2, 5, 3\).*resize_grid"),
    (lambda: token_cosine(jnp.zeros((2, 4, 3)), jnp.zeros((2, 4, 5))), "width with a head"),
    (lambda: token_cosine(jnp.zeros((2, 4, 3)), jnp.zeros((2, 4, 3)), metric="l1"), "known: cosine, mse"),
    (lambda: resize_grid(jnp.zeros((2, 16, 3)), (8, 8)), "must be .b h w c."),
    (lambda: resize_grid(jnp.zeros((2, 4, 4, 3)), (0, 8)), r"grid is \(0, 8\)"),
  ],
)
def test_refusals(call, message):
  with pytest.raises(ValueError, match=message):
    call()
