"""Correlation losses: how similar each token (or sample) is to the others, in student and teacher."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxkd.losses.gram import cosine_matrix, safe_norm
from jaxkd.losses.tokens import check_token_pair, pool_samples

# Takes an entry out of a softmax. Finite, because 0 * (inf - inf) in the KL would be NaN.
_MASKED = -1e9


def correlation_kl(
  student: Float[Array, "b n d"] | Float[Array, "b d"],
  teacher: Float[Array, "b m e"] | Float[Array, "b e"],
  *,
  temperature: float = 0.1,
  direction: str = "student||teacher",
  over: str = "tokens",
  keep_diagonal: bool = False,
  metric: str = "kl",
) -> Float[Array, " b"] | Float[Array, ""]:
  """Distance of the cosine-similarity matrices of student and teacher, float32.

  `over="tokens"`: matrices over the tokens of an image; [b n d] and [b n e] give [b].
  `over="samples"`: matrices over the batch, of features [b d] or mean-pooled tokens [b n d]; gives a scalar.

  `metric="kl"`: each row is divided by `temperature` and softmaxed without its diagonal entry (kept with
  `keep_diagonal`); the KL of each row in nats, averaged over the rows. `direction="student||teacher"` is
  KL(student || teacher). `metric="frobenius"`: `||Cs - Ct||_F / ||Ct||_F` of the whole matrices (temperature,
  direction and diagonal play no part), 0 where the teacher's matrix is 0.

  Widths may differ; the length of a token has no influence; a zero token is similar to nothing.

  Raises:
    ValueError: shapes do not fit, an option is unknown, or the temperature is not positive.
  """
  if over == "tokens":
    check_token_pair("correlation_kl", student, teacher)
  elif over == "samples":
    student, teacher = (pool_samples("correlation_kl", x) for x in (student, teacher))
    if student.shape[0] != teacher.shape[0]:
      raise ValueError(f"correlation_kl: batches of {student.shape[0]} and {teacher.shape[0]} differ")
  else:
    raise ValueError(f"correlation_kl: unknown over {over!r}; known: tokens, samples")
  ours, theirs = cosine_matrix(student), cosine_matrix(teacher)
  if metric == "frobenius":
    return _frobenius(ours, theirs)
  if metric != "kl":
    raise ValueError(f"correlation_kl: unknown metric {metric!r}; known: kl, frobenius")
  if not temperature > 0:
    raise ValueError(f"correlation_kl: temperature is {temperature}; it must be positive")
  log_student, log_teacher = (_log_rows(c / temperature, keep_diagonal) for c in (ours, theirs))
  kl = optax.losses.kl_divergence_with_log_targets
  if direction == "student||teacher":
    return kl(log_teacher, log_student).mean(axis=-1)
  if direction == "teacher||student":
    return kl(log_student, log_teacher).mean(axis=-1)
  raise ValueError(
    f"correlation_kl: unknown direction {direction!r}; known: student||teacher, teacher||student"
  )


def _log_rows(logits: Float[Array, "*shape n n"], keep_diagonal: bool) -> Float[Array, "*shape n n"]:
  if not keep_diagonal:
    diagonal = jnp.broadcast_to(jnp.eye(logits.shape[-1], dtype=bool), logits.shape)
    logits = jnp.where(diagonal, _MASKED, logits)
  return jax.nn.log_softmax(logits, axis=-1)


def _frobenius(
  ours: Float[Array, "*shape n n"], theirs: Float[Array, "*shape n n"]
) -> Float[Array, "*shape"]:
  distance = safe_norm(jnp.sum((ours - theirs) ** 2, axis=(-2, -1)))
  size = safe_norm(jnp.sum(theirs**2, axis=(-2, -1)))
  empty = size <= 0.0
  return jnp.where(empty, 0.0, distance / jnp.where(empty, 1.0, size))
