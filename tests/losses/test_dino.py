"""DINO: two views by hand, skipped pairs, the centre, and the entropies that show collapse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from tests.losses import references as ref

RNG = np.random.default_rng(0)
dino = jax.jit(losses.dino, static_argnames="student_temperature")
output_entropy = jax.jit(losses.output_entropy)
update_center = jax.jit(losses.update_center, static_argnames="momentum")
ZERO = jnp.zeros(5)
STUDENT, TEACHER = np.float32(RNG.normal(size=(6, 3, 5))), np.float32(RNG.normal(size=(2, 3, 5)))


def test_two_views_by_hand():
  """Each view answers the other: (H(t0, s1) + H(t1, s0)) / 2, two prototypes, temperatures 1."""
  student = jnp.asarray([[[0.0, np.log(3.0)]], [[np.log(4.0), 0.0]]], jnp.float32)  # (1/4 3/4), (4/5 1/5)
  teacher = jnp.asarray([[[np.log(9.0), 0.0]], [[0.0, 0.0]]], jnp.float32)  # (9/10 1/10), (1/2 1/2)
  expected = -0.5 * ((0.9 * np.log(0.8) + 0.1 * np.log(0.2)) + 0.5 * (np.log(0.25) + np.log(0.75)))
  value = dino(student, teacher, jnp.zeros(2), student_temperature=1.0, teacher_temperature=1.0)
  np.testing.assert_allclose(value, [expected], rtol=1e-6)
  # Answering itself as well would be another number.
  with_self = -0.25 * (
    (0.9 * np.log(0.8) + 0.1 * np.log(0.2))
    + 0.5 * (np.log(0.25) + np.log(0.75))
    + (0.9 * np.log(0.25) + 0.1 * np.log(0.75))
    + 0.5 * (np.log(0.8) + np.log(0.2))
  )
  assert abs(with_self - expected) > 0.05


def test_one_teacher_view_skips_its_own_student_view():
  value = dino(STUDENT[:2], TEACHER[:1], ZERO)
  np.testing.assert_allclose(value, ref.dino(STUDENT[:2], TEACHER[:1], np.zeros(5)), rtol=2e-6)


def test_an_offset_shared_by_teacher_and_centre_cancels():
  offset = np.float32([0.5, -0.5, 1, 0, 2])
  value = dino(STUDENT, TEACHER, ZERO)
  moved = dino(STUDENT, TEACHER + offset, offset)
  np.testing.assert_allclose(moved, value, rtol=1e-5)
  assert not np.allclose(dino(STUDENT, TEACHER + offset, ZERO), value, rtol=0.05)


def test_the_teacher_temperature_may_be_traced():
  warm = jax.jit(lambda tau: dino(STUDENT, TEACHER, ZERO, teacher_temperature=tau))
  for tau in (0.04, 0.07):
    expected = ref.dino(STUDENT, TEACHER, np.zeros(5), teacher_temperature=tau)
    np.testing.assert_allclose(warm(jnp.float32(tau)), expected, rtol=3e-6)


def test_sharpening_can_be_zero_loss_and_uniform_costs_log_k():
  sure = jnp.broadcast_to(10 * jnp.eye(5)[0], (2, 3, 5))
  np.testing.assert_allclose(dino(sure, sure, ZERO), 0.0, atol=1e-6)
  np.testing.assert_allclose(dino(0 * sure, sure, ZERO), np.log(5), rtol=1e-6)


def test_centre_moves_by_a_tenth_to_the_mean_over_views_and_batch():
  center = jnp.arange(5, dtype=jnp.float32)
  expected = 0.9 * np.arange(5) + 0.1 * TEACHER.astype(np.float64).reshape(-1, 5).mean(0)
  np.testing.assert_allclose(update_center(center, TEACHER), expected, rtol=1e-6)
  np.testing.assert_allclose(update_center(center, TEACHER, momentum=1.0), center, rtol=0)
  assert update_center(center, jnp.asarray(TEACHER, jnp.bfloat16)).dtype == jnp.float32


def test_entropies_tell_the_two_collapses_from_health():
  log_k = np.log(8)
  uniform = output_entropy(jnp.zeros((2, 16, 8)), jnp.zeros(8))
  np.testing.assert_allclose(uniform, (log_k, log_k), rtol=1e-6)
  one = output_entropy(jnp.broadcast_to(10 * jnp.eye(8)[3], (2, 16, 8)), jnp.zeros(8))
  np.testing.assert_allclose(one, (0.0, 0.0), atol=1e-6)
  spread = output_entropy(10 * jnp.tile(jnp.eye(8)[None], (2, 2, 1)), jnp.zeros(8))
  np.testing.assert_allclose(spread, (0.0, log_k), atol=1e-6)


def test_entropy_against_the_formula():
  p = ref.softmax((TEACHER.astype(np.float64) - 0.1) / 0.5)
  expected = -(p * np.log(p)).sum(-1).mean(), -(p.mean((0, 1)) * np.log(p.mean((0, 1)))).sum()
  value = output_entropy(TEACHER, jnp.full(5, 0.1), teacher_temperature=0.5)
  np.testing.assert_allclose(value, expected, rtol=2e-6)


@pytest.mark.parametrize(
  ("student", "teacher", "options", "message"),
  [
    (STUDENT[:1], TEACHER[:1], {}, "1 student views for 1 teacher views"),
    (STUDENT[:1], TEACHER, {}, "1 student views for 2 teacher views"),
    (STUDENT[:, :2], TEACHER, {}, r"\(6, 2, 5\)"),
    (STUDENT[..., :4], TEACHER[..., :4], {}, r"center \(5,\) does not fit 4 prototypes"),
    (STUDENT, TEACHER, {"student_temperature": 0.0}, "student_temperature is 0.0"),
  ],
)
def test_refusals(student, teacher, options, message):
  with pytest.raises(ValueError, match=message):
    dino(student, teacher, ZERO, **options)
