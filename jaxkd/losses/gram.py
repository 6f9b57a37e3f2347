"""Distance of token x token Gram matrices."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd.losses.tokens import check_token_pair, unit_tokens


def cosine_matrix(x: Float[Array, "*shape n d"]) -> Float[Array, "*shape n n"]:
  """Cosine of each token with each other, float32; the row of a zero token is 0, its diagonal too."""
  unit = unit_tokens(x)
  # Full float32: the default on GPUs is TensorFloat-32, with 10 bits of mantissa.
  return jnp.einsum("...nd,...md->...nm", unit, unit, precision="highest")


def safe_norm(square: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
  """Square root of a sum of squares; value and gradient are 0 at 0."""
  zero = square <= 0.0
  return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


def gram(
  student: Float[Array, "b n d"], teacher: Float[Array, "b n e"], *, published: bool = False
) -> Float[Array, " b"]:
  """Relative squared distance of the Gram matrices of length-1 tokens, float32, one value per image.

  `||Gs - Gt||_F^2 / ||Gt||_F^2`. The widths may differ, and rotating either space changes nothing. With
  `published` it is `||Gs - Gt||_F / n^2`, about 1e-3 in size and therefore inert beside a cross entropy. An
  image whose teacher tokens are all zero has value and gradient 0 (not with `published`).

  Raises:
    ValueError: batch or token counts differ.
  """
  check_token_pair("gram", student, teacher)
  teacher_gram = cosine_matrix(teacher)
  difference = jnp.sum((cosine_matrix(student) - teacher_gram) ** 2, axis=(1, 2))
  if published:
    return safe_norm(difference) / student.shape[1] ** 2
  size = jnp.sum(teacher_gram**2, axis=(1, 2))
  empty = size <= 0.0
  return jnp.where(empty, 0.0, difference / jnp.where(empty, 1.0, size))
