"""Where activations are strong, as a map over positions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd.losses.tokens import unit_tokens


def attention_transfer(
  student: Float[Array, "b h w c"], teacher: Float[Array, "b h w e"]
) -> Float[Array, " b"]:
  """Mean squared difference of the spatial activation maps, float32, one value per image.

  A map is the mean over channels of the squared activations, flattened and scaled to length 1 (over the h w
  positions). Widths may differ, the scale of an image's activations has no influence, and values lie in
  [0, 2 / (h w)]: small beside a cross entropy, hence weights of order 1000 in use. An image of zeros has map
  0 and gradient 0.

  Raises:
    ValueError: not [b h w c] with equal batch and grid (bring the teacher to it with `resize_grid`).

  Source: Zagoruyko and Komodakis, ICLR 2017, arXiv:1612.03928, as released: the mean, not the sum or the norm.
  """
  if student.ndim != 4 or teacher.ndim != 4 or student.shape[:3] != teacher.shape[:3]:
    raise ValueError(
      f"attention_transfer: student {student.shape} and teacher {teacher.shape} need shapes [b h w c] and "
      "[b h w e]; bring the teacher to the student's grid with resize_grid"
    )
  return jnp.mean((_map(student) - _map(teacher)) ** 2, axis=-1)


def _map(x: Float[Array, "b h w c"]) -> Float[Array, "b n"]:
  strength = jnp.mean(unit_peak(x, axis=(1, 2, 3)) ** 2, axis=-1)
  return unit_tokens(strength.reshape(x.shape[0], -1))


def unit_peak(x: Float[Array, "*shape"], *, axis: int | tuple[int, ...]) -> Float[Array, "*shape"]:
  """Largest magnitude over `axis` scaled to 1, in float32, so that fourth powers stay in range; 0 stays 0.

  The scale is a constant of the gradient, which is exact for whatever does not depend on scale.
  """
  x = x.astype(jnp.float32)
  peak = jax.lax.stop_gradient(jnp.abs(x).max(axis=axis, keepdims=True))
  return x / jnp.where(peak <= 0.0, 1.0, peak)
