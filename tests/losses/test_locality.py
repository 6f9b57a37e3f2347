"""The locality knob: closed forms, agreement with the analysis, and attention that moves to its target."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import losses
from jaxkd.analysis import attention_statistics, uniform_distance
from tests.losses import references as ref

RNG = np.random.default_rng(0)
OPTIONS = ("grid", "special_tokens", "relative")
attention_distance = jax.jit(losses.attention_distance, static_argnames=OPTIONS[:2])
locality = jax.jit(losses.locality, static_argnames=("target", *OPTIONS))


def attention(tokens, *, images=2, heads=3, scale=3.0):
  return np.float32(ref.softmax(scale * RNG.normal(size=(images, heads, tokens, tokens))))


@pytest.mark.parametrize(("grid", "expected"), [((7, 7), 3.609), ((8, 8), 4.1365), ((14, 14), 7.281)])
def test_uniform_attention(grid, expected):
  n = grid[0] * grid[1] + 2
  value = attention_distance(jnp.full((1, 1, n, n), 1 / n), grid=grid, special_tokens=2)
  np.testing.assert_allclose(value, uniform_distance(grid), rtol=5e-7)
  np.testing.assert_allclose(value, expected, atol=5e-4)


def test_identity_and_one_step_by_hand():
  stay = jnp.eye(4)[None, None]
  np.testing.assert_array_equal(attention_distance(stay, grid=(2, 2), special_tokens=0), 0.0)
  # Patches 0 1 / 2 3: across, down, diagonally, and half of each way across and stay.
  rows = jnp.asarray([[0, 1, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0.5, 0.5]], jnp.float32)[None, None]
  value = attention_distance(rows, grid=(2, 2), special_tokens=0)
  np.testing.assert_allclose(value, (1 + 1 + math.sqrt(2) + 0.5) / 4, rtol=1e-6)
  # On a row of four the same maps reach 1, 2, 1 and half of 1.
  value = attention_distance(rows, grid=(1, 4), special_tokens=0)
  np.testing.assert_allclose(value, (1 + 2 + 1 + 0.5) / 4, rtol=1e-6)


@pytest.mark.parametrize(("grid", "special"), [((8, 8), 2), ((3, 5), 1), ((2, 2), 0)])
def test_agrees_with_the_analysis(grid, special):
  attn = attention(grid[0] * grid[1] + special)
  value = attention_distance(attn, grid=grid, special_tokens=special)
  measured = attention_statistics(attn[None], grid, special, reduce=None)
  np.testing.assert_allclose(value, measured["mean_distance"][0], rtol=0, atol=1e-6)
  ratio = measured["distance_to_uniform"][0].mean(axis=1)
  np.testing.assert_allclose(
    locality(attn, 0.25, grid=grid, special_tokens=special, relative=True), (ratio - 0.25) ** 2, atol=1e-6
  )


def test_special_tokens_play_no_part_but_which_they_are_does():
  attn = attention(9 + 2)
  value = attention_distance(attn, grid=(3, 3), special_tokens=2)
  bare = attention_distance(attn[..., 2:, 2:], grid=(3, 3), special_tokens=0)
  np.testing.assert_allclose(value, bare, rtol=1e-6)
  at_the_end = attention_distance(attn[..., :9, :9], grid=(3, 3), special_tokens=0)
  assert not np.allclose(value, at_the_end, rtol=0.01)


def test_heads_are_averaged_before_the_square():
  """A head that stays and one that is uniform meet the target halfway without loss."""
  heads = jnp.stack([jnp.eye(4), jnp.full((4, 4), 0.25)])[None]
  uniform = (2 + math.sqrt(2)) / 4
  options = {"grid": (2, 2), "special_tokens": 0}
  np.testing.assert_allclose(locality(heads, uniform / 2, **options), 0.0, atol=1e-13)
  np.testing.assert_allclose(locality(heads, 0.5, relative=True, **options), 0.0, atol=1e-13)
  np.testing.assert_allclose(locality(heads, 1.0, relative=True, **options), 0.25, rtol=1e-6)
  each = [locality(heads[:, [h]], 0.5, relative=True, **options)[0] for h in range(2)]
  np.testing.assert_allclose(each, 0.25, rtol=1e-6)  # the mean of squares would not be 0


def test_queries_without_weight_on_patches_are_left_out():
  attn = attention(9 + 1)
  attn[0, :, 3] = np.eye(10)[0]  # patch 2 of image 0 sees the cls token only
  attn[1, 1, 1:] = np.eye(10)[0]  # and so does all of head 1 of image 1
  step = jax.jit(
    jax.value_and_grad(lambda a: losses.attention_distance(a, grid=(3, 3), special_tokens=1).sum())
  )
  value, gradient = step(attn)
  distances = np.asarray(attention_distance(attn, grid=(3, 3), special_tokens=1))
  with np.errstate(invalid="ignore"):
    per_query = np.einsum("hij,ij->hi", attn[0, :, 1:, 1:].astype(np.float64), lengths(3)) / attn[
      0, :, 1:, 1:
    ].sum(-1)
  assert np.isnan(per_query[:, 2]).all()
  np.testing.assert_allclose(distances[0], np.nanmean(per_query, axis=1), rtol=1e-6)
  assert distances[1, 1] == 0.0
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()
  np.testing.assert_array_equal(gradient[1, 1], 0.0)
  assert np.abs(gradient[0]).max() > 0.01


def lengths(side):
  y, x = np.divmod(np.arange(side * side), side)
  return np.hypot(y[:, None] - y, x[:, None] - x)


@pytest.mark.parametrize("relative", [False, True])
def test_descent_on_free_logits_reaches_the_target(relative):
  """From attention near uniform to half and nine tenths of it, with special tokens, in both units."""
  grid, special = (4, 4), 2
  start = np.float32(RNG.normal(size=(2, 2, 18, 18)))
  optimizer = optax.adam(0.1)

  @partial(jax.jit, static_argnames="target")
  def descend(logits, target):
    def loss(z):
      options = {"grid": grid, "special_tokens": special, "relative": relative}
      return losses.locality(jax.nn.softmax(z), target, **options).mean()

    def step(carry, _):
      logits, state = carry
      updates, state = optimizer.update(jax.grad(loss)(logits), state)
      return (optax.apply_updates(logits, updates), state), None

    with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
      (logits, _), _ = jax.lax.scan(step, (logits, optimizer.init(logits)), length=150)
    return jax.nn.softmax(logits)

  def ratio(attn):  # the analysis, not the loss, says where it is
    measured = attention_statistics(np.asarray(attn)[None], grid, special, reduce=None)
    return np.asarray(measured["distance_to_uniform"])[0].mean(axis=1)

  before = ratio(ref.softmax(start))
  for wanted in (0.5, 0.9):
    target = wanted if relative else wanted * uniform_distance(grid)
    np.testing.assert_allclose(ratio(descend(start, target)), wanted, atol=1e-2)
    assert np.abs(before - wanted).min() > 0.05, "it was there before"


@pytest.mark.parametrize(
  ("shape", "options", "message"),
  [
    ((1, 2, 17, 17), {"grid": (4, 4), "special_tokens": 2}, r"n = 18 for grid 4x4 and 2 special tokens"),
    ((2, 16, 16), {"grid": (4, 4), "special_tokens": 0}, r"\(2, 16, 16\) must be \[b h n n\]"),
    ((1, 2, 16, 15), {"grid": (4, 4), "special_tokens": 0}, r"must be \[b h n n\]"),
    ((1, 2, 1, 1), {"grid": (1, 1), "special_tokens": 0}, r"grid \(1, 1\) has no distances"),
    ((1, 2, 14, 14), {"grid": (4, 4), "special_tokens": -2}, "-2 special tokens"),
  ],
)
def test_refuses_shapes(shape, options, message):
  with pytest.raises(ValueError, match=message):
    losses.attention_distance(jnp.ones(shape), **options)


def test_refuses_a_target_that_no_attention_reaches():
  """On 2x2 every query's farthest patch is sqrt 2 away; uniform attention has (2 + sqrt 2) / 4."""
  attn = jnp.ones((1, 1, 4, 4))
  options = {"grid": (2, 2), "special_tokens": 0}
  losses.locality(attn, 1.414, **options)
  losses.locality(attn, 1.656, relative=True, **options)
  for target, relative, message in (
    (1.42, False, r"target is 1\.42; on a 2x2 grid it lies in 0 to 1\.414 patches"),
    (1.66, True, r"0 to 1\.657 \(1 is uniform attention\)"),
    (-0.1, False, r"target is -0\.1"),
    (float("nan"), False, "target is nan"),
  ):
    with pytest.raises(ValueError, match=message):
      losses.locality(attn, target, relative=relative, **options)
