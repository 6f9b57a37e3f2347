"""The Gram loss: invariances, scale, closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses

RNG = np.random.default_rng(0)
gram = jax.jit(losses.gram, static_argnames="published")
S, T = np.float32(RNG.normal(size=(2, 64, 24))), np.float32(RNG.normal(size=(2, 64, 48)))


@pytest.mark.parametrize("published", [False, True])
def test_rotation_of_either_side_and_length_of_tokens(published):
  q, r = (np.float32(np.linalg.qr(np.random.default_rng(1).normal(size=(d, d)))[0]) for d in (24, 48))
  value = gram(S, T, published=published)
  turned = gram(5 * S @ q, T @ r, published=published)
  np.testing.assert_allclose(turned, value, rtol=1e-5)
  np.testing.assert_allclose(gram(S @ q, S, published=published), 0.0, atol=1e-6)


def test_an_offset_does_play_a_part():
  assert gram(S + 1, S).min() > 0.5


def test_orthogonal_student_and_equal_teacher_tokens():
  """Identity against all ones, n = 4: 12 differing entries of 16."""
  student, teacher = jnp.eye(4)[None], jnp.ones((1, 4, 2))
  np.testing.assert_allclose(gram(student, teacher), [12 / 16], rtol=1e-6)
  np.testing.assert_allclose(gram(student, teacher, published=True), [np.sqrt(12) / 16], rtol=1e-6)


def test_the_published_scale_is_inert():
  """64 tokens of independent features: 1e-3 in size, where the relative one is of order 1."""
  assert gram(S, T, published=True).max() < 5e-3
  assert gram(S, T).min() > 0.5


def test_a_zero_teacher_asks_for_nothing():
  value, gradient = jax.jit(jax.value_and_grad(lambda s: gram(s, jnp.zeros((2, 64, 8))).sum()))(S)
  assert value == 0.0
  np.testing.assert_array_equal(gradient, 0.0)


def test_token_counts_must_fit():
  with pytest.raises(ValueError, match=r"gram: student \(2, 64, 24\) and teacher \(2, 60, 48\)"):
    gram(S, T[:, :60])
