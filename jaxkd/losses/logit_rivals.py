"""Other ways to distil logits than `soft_kd`: DKD, DIST, and OFA for the logits of intermediate stages."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxkd.losses.cka import center_rows

# Takes an entry out of a softmax. Finite, because 0 * (inf - inf) in the KL would be NaN.
_MASKED = -1e9
# Probabilities that vary by less than this part of their length, or by less than _SHORTEST, vary by rounding.
_ROUNDING, _SHORTEST = 1e-6, 1e-12


def dkd(
  student: Float[Array, "b c"],
  teacher: Float[Array, "b c"],
  labels: Int[Array, " b"],
  *,
  alpha: float = 1.0,
  beta: float = 8.0,
  temperature: float = 4.0,
) -> Float[Array, " b"]:
  """Decoupled KD, `temperature^2 (alpha TCKD + beta NCKD)` in nats, float32, one value per example.

  TCKD is KL(teacher || student) of "the label or another class", NCKD that of the softmax over the other
  classes. With p the softened probability that the teacher gives the label,
  `soft_kd = temperature^2 (TCKD + (1 - p) NCKD)`: a sure teacher silences its own NCKD there, and not here.
  A label outside [0, c) gives NaN.

  Raises:
    ValueError: shapes do not fit, labels are no integers, there are fewer than 2 classes, or the temperature
      is not positive.

  Source: Zhao et al., CVPR 2022, arXiv:2203.08679. beta is 8 for its CIFAR-100 pairs with a strong teacher and
    0.5 on ImageNet.
  """
  _check_logits("dkd", student, teacher, temperature)
  labels = _check_labels("dkd", student, labels)
  student_gap, student_others = _split(student, labels, temperature)
  teacher_gap, teacher_others = _split(teacher, labels, temperature)
  # The log-sigmoids of a gap and of minus the gap are log p and log (1 - p), both exact where p is near 0 or 1.
  kl = optax.losses.kl_divergence_with_log_targets
  student_pair, teacher_pair = (
    jnp.stack([jax.nn.log_sigmoid(gap), jax.nn.log_sigmoid(-gap)], axis=-1)
    for gap in (student_gap, teacher_gap)
  )
  target, others = kl(student_pair, teacher_pair), kl(student_others, teacher_others)
  return temperature**2 * (alpha * target + beta * others)


def _split(
  logits: Float[Array, "b c"], labels: Int[Array, " b"], temperature: float
) -> tuple[Float[Array, " b"], Float[Array, "b c"]]:
  """Log odds of the label against all other classes, and the log-softmax over those (the label is masked)."""
  logits = logits.astype(jnp.float32) / temperature
  others = jnp.where(_is_label(logits, labels), _MASKED, logits)
  label = jnp.take_along_axis(logits, labels[:, None], axis=-1, mode="fill")[:, 0]  # NaN for a wrong label
  return label - jax.nn.logsumexp(others, axis=-1), jax.nn.log_softmax(others, axis=-1)


def dist(
  student: Float[Array, "b c"],
  teacher: Float[Array, "b c"],
  *,
  beta: float = 1.0,
  gamma: float = 1.0,
  temperature: float = 1.0,
) -> Float[Array, ""]:
  """Distance by correlation, `temperature^2 (beta inter + gamma intra)`, a float32 scalar.

  inter is 1 minus the Pearson correlation of a sample's class probabilities, mean over samples; intra is 1
  minus that of a class's probabilities along the batch, mean over classes. Each lies in [0, 2], and a
  positive scale or an offset of a row or column costs nothing. A row or column without variation (uniform
  output, constant batch, one sample) has correlation 0 and gradient 0.

  Raises:
    ValueError: the shapes differ or the temperature is not positive.

  Source: Huang et al., NeurIPS 2022, arXiv:2205.10536. Its code keeps denominators from 0 by adding 1e-8,
    which also discounts classes that are improbable throughout the batch; nothing is added here.
  """
  _check_logits("dist", student, teacher, temperature)
  ours, theirs = (jax.nn.softmax(z.astype(jnp.float32) / temperature) for z in (student, teacher))
  inter = 1.0 - jnp.mean(_pearson(ours, theirs))
  intra = 1.0 - jnp.mean(_pearson(ours.T, theirs.T))
  return temperature**2 * (beta * inter + gamma * intra)


def _pearson(x: Float[Array, "n p"], y: Float[Array, "n p"]) -> Float[Array, " n"]:
  return jnp.sum(_standardize(x) * _standardize(y), axis=-1)


def _standardize(x: Float[Array, "n p"]) -> Float[Array, "n p"]:
  """Rows minus their mean, scaled to length 1; a constant row becomes 0 and passes no gradient."""
  centered = center_rows(x.T).T
  square = jnp.sum(centered**2, axis=-1, keepdims=True)
  least = jnp.maximum(_ROUNDING**2 * jnp.sum(x**2, axis=-1, keepdims=True), _SHORTEST**2)
  flat = square <= least
  return jnp.where(flat, 0.0, centered / jnp.sqrt(jnp.where(flat, 1.0, square)))


def ofa(
  student: Float[Array, "b c"],
  teacher: Float[Array, "b c"],
  labels: Int[Array, " b"],
  *,
  epsilon: float = 1.0,
  temperature: float = 1.0,
) -> Float[Array, " b"]:
  """One-for-all KD of one stage's logits with adaptive target enhancement, in nats, float32, one per example.

  With softened probabilities s of the student and t of the teacher, and y the label:
  `-((1 + t_y)^epsilon - 1) log s_y - sum_{j != y} t_j^epsilon log s_j`. epsilon > 1 raises the label above the
  other classes, the more so the surer the teacher is of it. epsilon = 1 leaves the cross entropy of t and s,
  so that together with a cross entropy of the labels it is CE + KL(t || s) + the teacher's entropy, which is
  constant: plain KD at that stage, not scaled by the temperature. A label outside [0, c) gives NaN.

  Raises:
    ValueError: shapes do not fit, labels are no integers, there are fewer than 2 classes, or `epsilon` or the
      temperature is not positive.

  Source: Hao et al., NeurIPS 2023, arXiv:2310.19444. The paper's formula holds the labels' cross entropy (the
    1 taken off here, where it is a term of its own) and leaves the other classes at t_j; the released code,
    which this follows, raises them to epsilon too. At epsilon = 1 the two agree.
  """
  _check_logits("ofa", student, teacher, temperature)
  labels = _check_labels("ofa", student, labels)
  if not epsilon > 0:
    raise ValueError(f"ofa: epsilon is {epsilon}; it must be positive (1 is plain KD, the paper uses 1 to 2)")
  log_student, log_teacher = (
    jax.nn.log_softmax(z.astype(jnp.float32) / temperature) for z in (student, teacher)
  )
  enhanced = jnp.expm1(epsilon * jnp.log1p(jnp.exp(log_teacher)))  # (1 + t)^epsilon - 1 without cancellation
  target = jnp.where(_is_label(student, labels), enhanced, jnp.exp(epsilon * log_teacher))
  value = -jnp.sum(target * log_student, axis=-1)
  return jnp.where(labels < student.shape[-1], value, jnp.nan)


def _is_label(logits: Float[Array, "b c"], labels: Int[Array, " b"]) -> Array:
  return jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)


def _check_logits(name: str, student: Array, teacher: Array, temperature: float) -> None:
  if student.ndim != 2 or student.shape != teacher.shape:
    raise ValueError(
      f"{name}: student logits {student.shape} and teacher logits {teacher.shape} must be equal, [b c]"
    )
  if not temperature > 0:
    raise ValueError(f"{name}: temperature is {temperature}; it must be positive")


def _check_labels(name: str, logits: Array, labels: Array) -> Array:
  """The labels, negative ones moved past the last class (as an index they would count from the end)."""
  if labels.shape != logits.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(
      f"{name}: logits {logits.shape} need integer labels [b], got {labels.dtype} {labels.shape}; "
      "mixed labels [b c] have no single target class"
    )
  if logits.shape[-1] < 2:
    raise ValueError(f"{name}: {logits.shape[-1]} classes; it compares the label with the others, 2 or more")
  return jnp.where(labels < 0, logits.shape[-1], labels)
