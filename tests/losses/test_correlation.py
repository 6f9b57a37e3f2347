"""Correlation losses: invariances, direction, diagonal, degenerate batches."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses

RNG = np.random.default_rng(0)
STATIC = ("temperature", "direction", "over", "keep_diagonal", "metric")
correlation_kl = jax.jit(losses.correlation_kl, static_argnames=STATIC)
S, T = np.float32(RNG.normal(size=(2, 8, 12))), np.float32(RNG.normal(size=(2, 8, 6)))
OPTIONS = [{}, {"direction": "teacher||student"}, {"keep_diagonal": True}, {"metric": "frobenius"}]


@pytest.mark.parametrize("options", OPTIONS)
def test_equal_and_rotated_tokens_cost_nothing(options):
  rotation = np.float32(np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))[0])
  for other in (S, S @ rotation):
    np.testing.assert_allclose(correlation_kl(S, other, **options), 0.0, atol=3e-6)


@pytest.mark.parametrize("options", OPTIONS)
def test_the_length_of_each_token_plays_no_part(options):
  lengths = np.float32(np.random.default_rng(1).uniform(0.1, 10, size=(2, 8, 1)))
  value = correlation_kl(S, T, **options)
  scaled = correlation_kl(S * lengths, T / lengths, **options)
  np.testing.assert_allclose(scaled, value, rtol=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_an_offset_does_play_a_part(options):
  value = correlation_kl(S, T, **options)
  assert not np.allclose(correlation_kl(S + 2, T, **options), value, rtol=0.05)


def test_options_are_different_losses():
  values = [np.asarray(correlation_kl(S, T, **o)) for o in OPTIONS]
  for i, a in enumerate(values):
    for b in values[i + 1 :]:
      assert not np.allclose(a, b, rtol=0.02)


def test_directions_swap_with_the_arguments():
  forward = correlation_kl(S, T, direction="student||teacher")
  backward = correlation_kl(T, S, direction="teacher||student")
  np.testing.assert_allclose(forward, backward, rtol=1e-6)


def test_three_tokens_by_hand():
  """Rows without the diagonal have two entries. Orthogonal student tokens: (1/2, 1/2) in each."""
  root = np.sqrt(0.75)
  teacher = jnp.asarray([[[1.0, 0.0], [1.0, 0.0], [0.5, root]]], jnp.float32)  # cosines 1 and twice 1/2
  q = np.exp([1.0, 0.5]) / np.exp([1.0, 0.5]).sum()  # rows 0 and 1, temperature 1; row 2 is (1/2, 1/2)
  expected = 2 / 3 * np.sum(0.5 * np.log(0.5 / q))
  value = correlation_kl(jnp.eye(3)[None], teacher, temperature=1.0)
  np.testing.assert_allclose(value, [expected], rtol=1e-5)
  assert (
    abs(correlation_kl(jnp.eye(3)[None], teacher, temperature=1.0, keep_diagonal=True) - expected) > 0.005
  )


@pytest.mark.parametrize("options", OPTIONS)
def test_constant_batch(options):
  """Equal samples are equally similar: the student's rows are uniform, and moving one is still defined."""
  step = jax.jit(jax.value_and_grad(lambda s: correlation_kl(s, T[0], over="samples", **options)))
  value, gradient = step(jnp.ones((8, 12)))
  assert value > 0
  assert np.isfinite(gradient).all()


def test_frobenius_against_a_zero_teacher_is_0():
  loss = partial(correlation_kl, teacher=jnp.zeros((2, 8, 3)), metric="frobenius")
  step = jax.jit(jax.value_and_grad(lambda s: loss(s).sum()))
  value, gradient = step(S)
  assert value == 0.0
  np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"over": "rows"}, "unknown over 'rows'; known: tokens, samples"),
    ({"direction": "both"}, r"known: student\|\|teacher, teacher\|\|student"),
    ({"metric": "l2"}, "known: kl, frobenius"),
    ({"temperature": 0.0}, "temperature is 0.0"),
  ],
)
def test_unknown_options(options, message):
  with pytest.raises(ValueError, match=message):
    correlation_kl(S, T, **options)


def test_shapes_that_do_not_fit():
  with pytest.raises(ValueError, match="need shapes"):
    correlation_kl(S, T[:, :4])
  with pytest.raises(ValueError, match="batches of 2 and 1 differ"):
    correlation_kl(S, T[:1], over="samples")
  with pytest.raises(ValueError, match=r"takes \[b d\] or \[b n d\]"):
    correlation_kl(jnp.zeros(3), jnp.zeros(3), over="samples")
