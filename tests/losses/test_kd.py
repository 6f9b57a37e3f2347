"""Logit distillation: zero on equal logits, the temperature's square, hard labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from tests.losses import references as ref

RNG = np.random.default_rng(0)
soft_kd = jax.jit(losses.soft_kd, static_argnames="temperature")
hard_kd = jax.jit(losses.hard_kd)
STUDENT, TEACHER = (np.float32(RNG.normal(size=(5, 10))) for _ in range(2))


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_equal_logits_and_equal_softmax_cost_nothing(temperature):
  shifted = STUDENT + np.float32(3.0)
  for other in (STUDENT, shifted):
    value = soft_kd(STUDENT, other, temperature=temperature)
    np.testing.assert_allclose(value, 0.0, atol=3e-7 * temperature**2)


def test_two_classes_by_hand():
  student, teacher = jnp.asarray([[0.0, 0.0]]), jnp.asarray([[4.0 * np.log(3.0), 0.0]])
  expected = 16 * (0.75 * np.log(1.5) + 0.25 * np.log(0.5))  # teacher (3/4, 1/4) at temperature 4
  np.testing.assert_allclose(soft_kd(student, teacher)[0], expected, rtol=1e-6)
  # Neither without the square, nor the other direction, nor divided by the classes.
  assert not np.isclose(expected / 16, soft_kd(student, teacher)[0], rtol=0.1)
  reverse = 16 * (0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25))
  assert not np.isclose(reverse, soft_kd(student, teacher)[0], rtol=0.05)


def test_the_square_keeps_the_gradient_of_hot_temperatures():
  """Hinton 2015: for large temperature the gradient tends to (s - t) / c, of centred logits."""
  s, t = (x - x.mean(1, keepdims=True) for x in (STUDENT, TEACHER))
  gradient = jax.jit(jax.grad(lambda z: soft_kd(z, t, temperature=100.0).sum()))(s)
  # KL's gradient is tau^2 (q - p) / tau; q - p is (s - t) / (tau c) to first order.
  np.testing.assert_allclose(gradient, (s - t) / 10, atol=5e-3)
  assert np.abs(gradient).max() > 0.1


def test_hard_kd_is_cross_entropy_with_the_teachers_class():
  value = hard_kd(STUDENT, TEACHER)
  labels = TEACHER.argmax(1)
  np.testing.assert_allclose(value, losses.cross_entropy(STUDENT, labels), rtol=1e-6)
  assert not np.allclose(value, ref.cross_entropy(STUDENT, STUDENT.argmax(1)), rtol=0.05)


def test_extreme_logits():
  student, teacher = jnp.asarray([[1e4, 0.0]]), jnp.asarray([[0.0, 1e4]])
  value, gradient = jax.jit(jax.value_and_grad(lambda s: soft_kd(s, teacher)[0]))(student)
  np.testing.assert_allclose(value, 16 * 1e4 / 4, rtol=1e-6)
  np.testing.assert_allclose(gradient, [[4.0, -4.0]], rtol=1e-6)


@pytest.mark.parametrize("loss", [soft_kd, hard_kd])
def test_refuses_unequal_shapes(loss):
  with pytest.raises(ValueError, match=r"student logits \(2, 3\) and teacher logits \(2, 4\)"):
    loss(jnp.zeros((2, 3)), jnp.zeros((2, 4)))


def test_refuses_a_temperature_of_zero():
  with pytest.raises(ValueError, match=r"temperature is 0\.0"):
    soft_kd(jnp.zeros((2, 3)), jnp.zeros((2, 3)), temperature=0.0)
