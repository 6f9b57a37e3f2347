"""Distillation of logits."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float


def _check(name: str, student: Array, teacher: Array) -> None:
  if student.ndim != 2 or student.shape != teacher.shape:
    raise ValueError(
      f"{name}: student logits {student.shape} and teacher logits {teacher.shape} must be equal, [b c]"
    )


def soft_kd(
  student: Float[Array, "b c"], teacher: Float[Array, "b c"], *, temperature: float = 4.0
) -> Float[Array, " b"]:
  """Softened `temperature^2 KL(teacher || student)` in nats, float32, one value per example.

  Hinton et al., 2015, arXiv:1503.02531. The square keeps the gradient's size independent of the temperature.
  The sum over classes is not divided by their number (the released DeiT code does divide).

  Raises:
    ValueError: the shapes differ or the temperature is not positive.
  """
  _check("soft_kd", student, teacher)
  if not temperature > 0:
    raise ValueError(f"soft_kd: temperature is {temperature}; it must be positive")
  log_student, log_teacher = (
    jax.nn.log_softmax(z.astype(jnp.float32) / temperature) for z in (student, teacher)
  )
  return temperature**2 * optax.losses.kl_divergence_with_log_targets(log_student, log_teacher)


def hard_kd(student: Float[Array, "b c"], teacher: Float[Array, "b c"]) -> Float[Array, " b"]:
  """Cross entropy with the teacher's most likely class, in nats, float32, one value per example.

  DeiT, Touvron et al., ICML 2021, arXiv:2012.12877. Of equal teacher logits the first class counts.

  Raises:
    ValueError: the shapes differ.
  """
  _check("hard_kd", student, teacher)
  return optax.losses.softmax_cross_entropy_with_integer_labels(
    student.astype(jnp.float32), teacher.argmax(axis=-1)
  )
