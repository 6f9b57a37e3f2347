"""Student-side heads against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from jaxkd.models.heads import Projector, PrototypeHead

from .jitted import evaluate, init

X = jax.random.normal(jax.random.key(0), (5, 12))


def dense(x, p):
  return x @ np.asarray(p["kernel"], np.float64) + np.asarray(p["bias"], np.float64)


def gelu(x):
  return x * (1 + erf(x / np.sqrt(2))) / 2


def test_linear_projector():
  module = Projector("linear", 7)
  variables = init(module, X)
  np.testing.assert_allclose(
    evaluate(module, variables, X), dense(np.asarray(X, np.float64), variables["params"]["proj"]), atol=1e-6
  )


def test_mlp_projector():
  module = Projector("mlp", 7)
  variables = init(module, X, deviation=0.5)
  p = variables["params"]
  assert p["fc1"]["kernel"].shape == (12, 14)
  y = dense(gelu(dense(np.asarray(X, np.float64), p["fc1"])), p["fc2"])
  y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
  y = y * p["norm"]["scale"] + p["norm"]["bias"]
  np.testing.assert_allclose(evaluate(module, variables, X), y, atol=1e-4)
  tokens = jnp.stack([X, X])
  np.testing.assert_allclose(
    evaluate(module, variables, tokens)[1], evaluate(module, variables, X), atol=1e-5
  )


def test_unknown_projector_is_refused():
  with pytest.raises(ValueError, match="unknown projector 'mpl'; known: linear, mlp; did you mean 'mlp'"):
    init(Projector("mpl", 7), X)


def test_prototype_head():
  module = PrototypeHead(prototypes=9, hidden=16, bottleneck=6)
  variables = init(module, X, deviation=0.5)
  p = variables["params"]
  y = np.asarray(X, np.float64)
  y = dense(gelu(dense(gelu(dense(y, p["fc1"])), p["fc2"])), p["fc3"])
  directions = np.asarray(p["prototypes"], np.float64)
  expected = (y / np.linalg.norm(y, axis=-1, keepdims=True)) @ (
    directions / np.linalg.norm(directions, axis=0)
  )
  scores = evaluate(module, variables, X)
  np.testing.assert_allclose(scores, expected, atol=1e-6)
  assert np.abs(scores).max() <= 1 + 1e-6
  assert "bias" not in p
  longer = variables | {"params": p | {"prototypes": 3 * p["prototypes"]}}
  np.testing.assert_allclose(evaluate(module, longer, X), scores, atol=1e-6)  # only directions count


def test_prototype_head_at_a_zero_bottleneck_has_a_finite_gradient():
  module = PrototypeHead(prototypes=9, hidden=16, bottleneck=6)
  variables = jax.tree.map(jnp.zeros_like, init(module, X))
  value, grads = jax.jit(jax.value_and_grad(lambda v: jnp.sum(module.apply(v, X))))(variables)
  assert value == 0
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("module", [Projector("mlp", 7), Projector("linear", 7), PrototypeHead(9, 16, 6)])
def test_bfloat16_heads_return_float32(module):
  variables = init(module, X)
  y = evaluate(module.clone(dtype=jnp.bfloat16), variables, X)
  assert {leaf.dtype for leaf in jax.tree.leaves((y, variables))} == {jnp.dtype(jnp.float32)}
  np.testing.assert_allclose(y, evaluate(module, variables, X), atol=0.05)
