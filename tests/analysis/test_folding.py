"""Linear maps with merged factors against the maps they came from: the same values, fewer arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.analysis.curvature.folding import fold
from tests.analysis.curved import curved

ROWS, INNER = 6, 40


def mlp(params, x):
  """A GELU network with a residual stream, a normalisation and a quotient: every rule of the folding."""
  y = x @ params["in"]
  for w in params["blocks"]:
    centred = y - y.mean(-1, keepdims=True)
    normed = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    y = y + jax.nn.gelu(normed @ w["up"] + w["bias"], approximate=False) @ w["down"] - 0.1 * y
  return jnp.log(jnp.cosh(y)).sum()


def parameters(dtype):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / shape[0] ** 0.5, dtype)  # noqa: E731
  block = lambda: {"up": draw(8, INNER), "bias": jnp.zeros((1, INNER), dtype), "down": draw(INNER, 8)}  # noqa: E731
  return {"in": draw(5, 8), "blocks": [block() for _ in range(3)]}, draw(ROWS, 5)


def both(loss, params):
  def maps(p):
    plain = jax.linearize(jax.grad(loss), p)[1]
    return plain, fold(plain, p)

  return jax.jit(maps)(params)


def large(hvp, shape):
  return sum(x.shape == shape for x in jax.tree.leaves(hvp))


def test_the_map_is_the_same_in_double_precision():
  with jax.enable_x64():
    params, x = parameters(jnp.float64)
    plain, folded = both(lambda p: mlp(p, x), params)
    vector = jax.tree.map(lambda p: jnp.asarray(np.random.default_rng(1).normal(size=p.shape)), params)
    for a, b in zip(*(jax.tree.leaves(hvp(vector)) for hvp in (plain, folded)), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)
    # Negative control: the map of other inputs, with the same shapes.
    other = both(lambda p: mlp(p, 1.01 * x), params)[1]
    assert not np.allclose(jax.tree.leaves(plain(vector))[0], jax.tree.leaves(other(vector))[0], rtol=1e-4)


def test_a_gelu_layer_keeps_half_as_many_large_arrays():
  params, x = parameters(jnp.float32)
  plain, folded = both(lambda p: mlp(p, x), params)
  before, after = large(plain, (ROWS, INNER)), large(folded, (ROWS, INNER))
  assert before >= 9 * 3
  assert after <= 5 * 3


@pytest.mark.parametrize("kind", ["deit", "cnn"])
def test_models_have_the_same_products_and_no_more_memory(kind):
  case = curved(kind)
  params = jax.tree.map(jnp.asarray, case.params)
  plain, folded = both(lambda p: case.loss(p, case.batches[0]), params)
  rng = np.random.default_rng(2)
  vector = jax.tree.map(lambda p: jnp.asarray(rng.choice([-1.0, 1.0], p.shape), p.dtype), params)
  for a, b in zip(*(jax.tree.leaves(jax.jit(lambda h: h(vector))(h)) for h in (plain, folded)), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * max(1.0, float(np.abs(a).max())))
  bytes_of = lambda hvp: sum(x.nbytes for x in jax.tree.leaves(hvp))  # noqa: E731
  assert bytes_of(folded) < bytes_of(plain)
