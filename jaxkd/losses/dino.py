"""Self-distillation with no labels (DINO, Caron et al., ICCV 2021, arXiv:2104.14294)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class OutputEntropy(NamedTuple):
  """Entropies in nats of k-way outputs. Collapse to the uniform output drives `per_sample` to log k, collapse
  to one prototype drives `of_mean` to 0; a healthy teacher has a small first and a large second."""

  per_sample: Float[Array, ""]
  of_mean: Float[Array, ""]


def dino(
  student: Float[Array, "s b k"],
  teacher: Float[Array, "t b k"],
  center: Float[Array, " k"],
  *,
  student_temperature: float = 0.1,
  teacher_temperature: float | Float[Array, ""] = 0.04,
) -> Float[Array, " b"]:
  """Cross entropy of student views with teacher views, in nats, float32, one value per sample.

  The first t student views are the teacher's own (global) views; the mean goes over all pairs of different
  views. The teacher's logits are centred and sharpened; `teacher_temperature` may be traced (it is warmed).

  Raises:
    ValueError: shapes do not fit, no pair of different views exists, or `student_temperature` <= 0.
  """
  if student.ndim != 3 or teacher.ndim != 3 or student.shape[1:] != teacher.shape[1:]:
    raise ValueError(f"dino: student {student.shape} and teacher {teacher.shape} must be [s b k] and [t b k]")
  views, targets = student.shape[0], teacher.shape[0]
  if views < targets or views < 2:
    raise ValueError(
      f"dino: {views} student views for {targets} teacher views; the student needs the teacher's views "
      "and at least 2 in all"
    )
  if not student_temperature > 0:
    raise ValueError(f"dino: student_temperature is {student_temperature}; it must be positive")
  log_student = jax.nn.log_softmax(student.astype(jnp.float32) / student_temperature)
  target = teacher_probabilities(teacher, center, teacher_temperature=teacher_temperature)
  pairs = -jnp.einsum("tbk,sbk->tsb", target, log_student, precision="highest")
  different = ~np.eye(targets, views, dtype=bool)
  return pairs[np.nonzero(different)].mean(axis=0)


def teacher_probabilities(
  teacher: Float[Array, "t b k"],
  center: Float[Array, " k"],
  *,
  teacher_temperature: float | Float[Array, ""] = 0.04,
) -> Float[Array, "t b k"]:
  """Centred and sharpened softmax of the teacher's logits, float32.

  Raises:
    ValueError: `center` is not [k].
  """
  if center.shape != teacher.shape[-1:]:
    raise ValueError(f"dino: center {center.shape} does not fit {teacher.shape[-1]} prototypes")
  temperature = jnp.asarray(teacher_temperature, jnp.float32)
  centered = teacher.astype(jnp.float32) - center.astype(jnp.float32)[None, None]
  return jax.nn.softmax(centered / temperature)


def update_center(
  center: Float[Array, " k"], teacher: Float[Array, "t b k"], *, momentum: float = 0.9
) -> Float[Array, " k"]:
  """Moving average, float32, of the teacher's mean logits over views and batch."""
  return momentum * center.astype(jnp.float32) + (1.0 - momentum) * teacher.astype(jnp.float32).mean(
    axis=(0, 1)
  )


def output_entropy(
  teacher: Float[Array, "t b k"],
  center: Float[Array, " k"],
  *,
  teacher_temperature: float | Float[Array, ""] = 0.04,
) -> OutputEntropy:
  """Mean entropy of the teacher's outputs and entropy of their mean, float32 nats: the signs of collapse."""
  p = teacher_probabilities(teacher, center, teacher_temperature=teacher_temperature)
  return OutputEntropy(_entropy(p).mean(), _entropy(p.mean(axis=(0, 1))))


def _entropy(p: Float[Array, "*shape k"]) -> Float[Array, "*shape"]:
  return jax.scipy.special.entr(p).sum(axis=-1)
