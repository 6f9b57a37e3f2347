"""Token matching, and the normalisations that the other token losses share."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Tokens shorter than this have no direction: they normalise to 0, with gradient 0.
_SHORTEST = 1e-12


def check_token_pair(name: str, student: Array, teacher: Array, *, same_width: bool = False) -> None:
  """Raises ValueError unless both arrays are [b n d] with equal b and n (and equal d with `same_width`)."""
  known = 3 if same_width else 2
  if student.ndim != 3 or teacher.ndim != 3 or student.shape[:known] != teacher.shape[:known]:
    wanted = "equal shapes [b n d]" if same_width else "shapes [b n d] and [b n e]"
    raise ValueError(
      f"{name}: student {student.shape} and teacher {teacher.shape} need {wanted}; "
      "bring the teacher to the student's grid with resize_grid"
      + (", the student to the teacher's width with a head" if same_width else "")
    )


def unit_tokens(x: Float[Array, "*shape d"]) -> Float[Array, "*shape d"]:
  """Tokens scaled to length 1, in float32; a zero token stays zero and passes no gradient."""
  x = x.astype(jnp.float32)
  square = jnp.sum(x * x, axis=-1, keepdims=True)
  # `<=` and not its negation, so that NaN is passed on rather than hidden.
  zero = square <= _SHORTEST**2
  return jnp.where(zero, 0.0, x / jnp.sqrt(jnp.where(zero, 1.0, square)))


def normalize_tokens(x: Float[Array, "*shape d"], *, epsilon: float = 1e-6) -> Float[Array, "*shape d"]:
  """LayerNorm over the width without parameters, in float32: the frozen space of a teacher."""
  x = x.astype(jnp.float32)
  x = x - x.mean(axis=-1, keepdims=True)
  return x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon)


def pool_samples(name: str, x: Float[Array, "b n d"] | Float[Array, "b d"]) -> Float[Array, "b d"]:
  """One float32 feature per sample: the mean of its tokens [b n d], or the feature [b d] itself."""
  if x.ndim not in (2, 3):
    raise ValueError(f"{name}: over='samples' takes [b d] or [b n d], got {x.shape}")
  x = x.astype(jnp.float32)
  return x.mean(axis=1) if x.ndim == 3 else x


def resize_grid(x: Float[Array, "b h w c"], grid: tuple[int, int]) -> Float[Array, "b H W c"]:
  """Bilinear resize of a token grid to `grid` (rows, columns), in float32.

  Half-pixel centres, edges repeated, no antialiasing: `interpolate(mode="bilinear", align_corners=False)` of
  torch. An equal grid is returned unchanged.

  Raises:
    ValueError: `x` is not [b h w c], or `grid` is not two positive integers.
  """
  if x.ndim != 4:
    raise ValueError(
      f"resize_grid: x must be [b h w c], got {x.shape}; reshape tokens [b n d] to their grid first"
    )
  if len(grid) != 2 or min(grid) < 1:
    raise ValueError(f"resize_grid: grid is {grid}; it must be two positive numbers (rows, columns)")
  shape = (x.shape[0], *grid, x.shape[3])
  return jax.image.resize(x.astype(jnp.float32), shape, method="bilinear", antialias=False)


def token_cosine(
  student: Float[Array, "b n d"], teacher: Float[Array, "b n d"], *, metric: str = "cosine"
) -> Float[Array, " b"]:
  """Distance of matching tokens, float32, one value per image.

  `cosine`: 1 minus the mean cosine over the tokens, in [0, 2]; a zero token has cosine 0 and gradient 0.
  `mse`: the mean squared difference over tokens and width.

  Raises:
    ValueError: the shapes differ or the metric is unknown.
  """
  check_token_pair("token_cosine", student, teacher, same_width=True)
  if metric == "cosine":
    return 1.0 - jnp.sum(unit_tokens(student) * unit_tokens(teacher), axis=-1).mean(axis=-1)
  if metric == "mse":
    return jnp.mean((student.astype(jnp.float32) - teacher.astype(jnp.float32)) ** 2, axis=(1, 2))
  raise ValueError(f"token_cosine: unknown metric {metric!r}; known: cosine, mse")
