"""Layers against float64 numpy and against what torch computes by default."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.special import erf

from jaxkd.models.layers import DropPath, LayerNorm, ResidualBlock, batch_norm, conv3x3, gelu, layer_norm

from .jitted import evaluate, init, train, true_init


def conv_reference(x, kernel, stride=1, pad=1):
  """Cross-correlation with zero padding on every side, as torch's Conv2d, in float64."""
  x = np.pad(np.asarray(x, np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  size = kernel.shape[0]
  rows, columns = ((x.shape[i] - size) // stride + 1 for i in (1, 2))
  out = np.zeros((x.shape[0], rows, columns, kernel.shape[-1]))
  for i, j in np.ndindex(rows, columns):
    patch = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
    out[:, i, j] = np.tensordot(patch, np.asarray(kernel, np.float64), 3)
  return out


class Norm(nn.Module):
  """A module around the two normalisations."""

  kind: str
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, train=True):
    if self.kind == "layer":
      return layer_norm(x, self.dtype, "norm")
    return batch_norm(x, train, self.dtype, "norm")


def test_gelu_is_the_erf_one():
  x = jnp.linspace(-6, 6, 1001)
  exact = np.asarray(x, np.float64) * (1 + erf(np.asarray(x, np.float64) / np.sqrt(2))) / 2
  np.testing.assert_allclose(gelu(x), exact, atol=1e-6)
  assert np.abs(jax.nn.gelu(x, approximate=True) - exact).max() > 4e-4  # negative control: tanh
  assert gelu(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
  half = gelu(x.astype(jnp.bfloat16)).astype(jnp.float32)
  np.testing.assert_array_equal(
    half, gelu(x.astype(jnp.bfloat16).astype(jnp.float32)).astype(jnp.bfloat16).astype(jnp.float32)
  )


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_pads_as_torch(stride):
  x = jax.random.normal(jax.random.key(0), (2, 8, 6, 3))
  module = conv3x3(5, jnp.float32, stride=stride)
  variables = init(module, x)
  expected = conv_reference(x, variables["params"]["kernel"], stride)
  np.testing.assert_allclose(evaluate(module, variables, x), expected, atol=2e-6)
  same = evaluate(module.clone(padding="SAME"), variables, x)
  assert (np.abs(same - expected).max() > 0.1) == (stride == 2)  # negative control
  deviation = np.std(true_init(conv3x3(256, jnp.float32), x)["params"]["kernel"])
  np.testing.assert_allclose(deviation, np.sqrt(2 / (9 * 256)), rtol=0.03)  # He, fan out


def test_layer_norm_survives_a_large_mean():
  x = jax.random.normal(jax.random.key(0), (4, 64)) + 1000
  y = np.asarray(x, np.float64)
  expected = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
  variables = init(Norm("layer"), x, deviation=0)
  got = evaluate(Norm("layer"), variables, x)
  np.testing.assert_allclose(got, expected, atol=1e-4)
  fast = evaluate(nn.LayerNorm(epsilon=1e-6), {"params": variables["params"]["norm"]}, x)
  assert np.abs(fast - expected).max() > 1e-2  # negative control: E[x^2] - E[x]^2
  assert evaluate(Norm("layer", jnp.bfloat16), variables, x).dtype == jnp.bfloat16


def test_layer_norms_derivatives_are_those_of_its_formula():
  keys = jax.random.split(jax.random.key(0), 4)
  x, dx, dy = (2 * jax.random.normal(k, (3, 16)) + 1 for k in keys[:3])
  plain = nn.LayerNorm(epsilon=0.1, use_fast_variance=False)  # an epsilon that counts
  variables = plain.init(keys[3], x)
  variables = jax.tree.map(lambda p: p + jax.random.normal(keys[3], p.shape), variables)

  def derivatives(module):
    def loss(v, x):
      return jnp.vdot(jnp.tanh(module.apply(v, x)), dy)

    gradient = jax.grad(loss, argnums=(0, 1))
    forward = jax.jvp(lambda x: module.apply(variables, x), (x,), (dx,))
    second = jax.jvp(lambda x: gradient(variables, x), (x,), (dx,))
    return forward, second

  ours, flax = (jax.jit(derivatives, static_argnums=0)(m) for m in (LayerNorm(0.1), plain))
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), ours, flax)
  other = jax.jit(derivatives, static_argnums=0)(LayerNorm(0.11))  # negative control
  assert np.abs(other[1][0][1] - flax[1][0][1]).max() > 1e-3


def test_batch_norm_statistics():
  x = 3 * jax.random.normal(jax.random.key(0), (4, 5, 5, 2)) + 7
  module = Norm("batch")
  variables = init(module, x, deviation=0)
  y, updates = train(module, variables, x)
  flat = np.asarray(x, np.float64).reshape(-1, 2)
  expected = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
  np.testing.assert_allclose(y.reshape(-1, 2), expected, atol=1e-5)
  stats = updates["batch_stats"]["norm"]
  np.testing.assert_allclose(stats["mean"], 0.1 * flat.mean(0), rtol=1e-5)
  np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * flat.var(0), rtol=1e-5)
  np.testing.assert_allclose(evaluate(module, variables, x, train=False), x / np.sqrt(1 + 1e-5), rtol=1e-6)


def test_batch_statistics_are_float32_in_a_bfloat16_model():
  x = (jax.random.normal(jax.random.key(0), (8, 16, 16, 1)) + 100).astype(jnp.bfloat16)
  module = Norm("batch", jnp.bfloat16)
  updates = train(module, init(module, x, deviation=0), x)[1]
  exact = 0.1 * np.asarray(x.astype(jnp.float32), np.float64).mean()
  np.testing.assert_allclose(updates["batch_stats"]["norm"]["mean"][0], exact, rtol=1e-6)


@pytest.mark.parametrize(
  ("width", "stride", "gated"), [(4, 1, False), (8, 2, False), (8, 1, True), (32, 2, True)]
)
def test_residual_block_against_numpy(width, stride, gated):
  x = jax.random.normal(jax.random.key(0), (2, 6, 6, 4))
  block = ResidualBlock(width, stride, gated)
  variables = init(block, x, deviation=0.2, train=False)
  p, s = (jax.tree.map(lambda a: np.asarray(a, np.float64), variables[k]) for k in ("params", "batch_stats"))

  def norm(y, name):
    return (y - s[name]["mean"]) / np.sqrt(s[name]["var"] + 1e-5) * p[name]["scale"] + p[name]["bias"]

  y = np.maximum(norm(conv_reference(x, p["conv1"]["kernel"], stride), "bn1"), 0)
  y = norm(conv_reference(y, p["conv2"]["kernel"]), "bn2")
  if gated:
    gate = np.maximum(y.mean((1, 2)) @ p["se"]["fc1"]["kernel"], 0) @ p["se"]["fc2"]["kernel"]
    y = y / (1 + np.exp(-gate))[:, None, None]
  got = evaluate(block, variables, x, train=False)
  assert ("downsample_conv" in p) == (stride != 1 or width != 4)
  if "downsample_conv" in p:
    x = norm(conv_reference(x, p["downsample_conv"]["kernel"], stride, pad=0), "downsample_bn")
  np.testing.assert_allclose(got, np.maximum(x + y, 0), atol=1e-5)


def test_drop_path_drops_whole_samples_and_keeps_the_expectation():
  x = jnp.ones((4096, 3, 2))
  y = np.asarray(train(DropPath(0.3), {}, x, key=jax.random.key(0))[0])
  assert np.all(y == y[:, :1, :1])  # a sample's entries share one fate
  kept = y[:, 0, 0] > 0
  np.testing.assert_allclose(y[kept], 1 / 0.7, rtol=1e-6)
  deviation = np.sqrt(0.3 * 0.7 / 4096)
  assert abs(kept.mean() - 0.7) < 4 * deviation
  assert abs(y.mean() - 1) < 4 * deviation / 0.7
  np.testing.assert_array_equal(DropPath(0.3).apply({}, x, train=False), x)
  np.testing.assert_array_equal(DropPath(0.0).apply({}, x, train=True), x)  # needs no rng
