"""How the samples of a batch lie to each other: relational KD (RKD) and similarity preservation (SP)."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxkd.losses.attention_transfer import unit_peak
from jaxkd.losses.cka import unit_scale
from jaxkd.losses.gram import safe_norm
from jaxkd.losses.tokens import unit_tokens

# Samples closer than this part of the largest norm coincide. Even a sample is not exactly 0 from itself once XLA
# fuses its scaling into the subtraction, and a direction made of rounding is as long as any other.
_ROUNDING = 1e-6


def rkd(
  student: Float[Array, "b d"],
  teacher: Float[Array, "b e"],
  *,
  distance_weight: float = 25.0,
  angle_weight: float = 50.0,
) -> Float[Array, ""]:
  """Relational KD, `distance_weight * distances + angle_weight * angles`, a float32 scalar.

  distances: Huber loss (delta 1) of the pairwise distances, each side divided by the mean of its nonzero
  ones; mean over all b^2 pairs. angles: Huber loss of the cosine at sample i between the directions to j and
  k; mean over all b^3 triples. As in the reference code, pairs and triples with equal members are counted and
  contribute 0: the direction between coinciding samples is 0, and so is its cosine with every other. Offset,
  rotation and scale of either side change nothing; coinciding samples (closer than 1e-6 of the largest norm,
  centred) pass no gradient to each other.

  Memory of value and gradient: about four float32 arrays [b b b] and four [b b d]; 0.42 GB at b 256, d 192
  (measured for XLA on a CPU). Weight 0 leaves a part out, and without angles there is no [b b b].

  Raises:
    ValueError: not [b d] and [b e] with the same batch.

  Source: Park et al., CVPR 2019, arXiv:1904.05068.
  """
  if student.ndim != 2 or teacher.ndim != 2 or student.shape[0] != teacher.shape[0]:
    raise ValueError(
      f"rkd: student {student.shape} and teacher {teacher.shape} must be [b d] and [b e] with the same b"
    )
  ours, theirs = (_differences(unit_scale(x)) for x in (student, teacher))
  value = jnp.zeros((), jnp.float32)
  if distance_weight:
    value += distance_weight * optax.losses.huber_loss(_distances(ours), _distances(theirs)).mean()
  if angle_weight:
    value += angle_weight * optax.losses.huber_loss(_cosines(ours), _cosines(theirs)).mean()
  return value


def _differences(x: Float[Array, "b d"]) -> Float[Array, "b b d"]:
  """At [i, j] the way from sample i to sample j; 0, without gradient, where they coincide."""
  differences = x[None, :] - x[:, None]
  square = jnp.sum(differences**2, axis=-1, keepdims=True)
  least = _ROUNDING**2 * jnp.max(jnp.sum(x**2, axis=-1))
  # `<=` and not its negation, so that NaN is passed on rather than hidden.
  return jnp.where(square <= jax.lax.stop_gradient(least), 0.0, differences)


def _distances(differences: Float[Array, "b b d"]) -> Float[Array, "b b"]:
  """Distances in units of the mean of the nonzero ones; all 0 where all samples coincide."""
  distances = safe_norm(jnp.sum(differences**2, axis=-1))
  counted = jnp.maximum(jnp.sum(distances > 0.0), 1).astype(jnp.float32)
  mean = jnp.sum(distances) / counted
  return distances / jnp.where(mean <= 0.0, 1.0, mean)


def _cosines(differences: Float[Array, "b b d"]) -> Float[Array, "b b b"]:
  """At [i, j, k] the cosine between the ways from i to j and from i to k."""
  unit = unit_tokens(differences)
  return jnp.einsum("ijd,ikd->ijk", unit, unit, precision="highest")  # not TensorFloat-32


def similarity_preserving(student: Float[Array, "b ..."], teacher: Float[Array, "b ..."]) -> Float[Array, ""]:
  """`||Gs - Gt||_F^2 / b^2` of the sample x sample Gram matrices with rows of length 1, a float32 scalar.

  Activations of any shape are flattened per sample, so the grids and widths of the two may differ. Rotation
  and scale of either side change nothing; an offset does play a part. A sample of zeros has a row of zeros.

  Raises:
    ValueError: batches differ, or an array has no axis besides the batch.

  Source: Tung and Mori, ICCV 2019, arXiv:1907.09682.
  """
  if student.ndim < 2 or teacher.ndim < 2 or student.shape[0] != teacher.shape[0]:
    raise ValueError(
      f"similarity_preserving: student {student.shape} and teacher {teacher.shape} must be [b ...] with the "
      "same b and at least one more axis"
    )
  difference = _similarities(student) - _similarities(teacher)
  return jnp.sum(difference**2) / student.shape[0] ** 2


def _similarities(x: Float[Array, "b ..."]) -> Float[Array, "b b"]:
  x = unit_peak(x.reshape(x.shape[0], -1), axis=(0, 1))
  return unit_tokens(jnp.einsum("id,jd->ij", x, x, precision="highest"))
