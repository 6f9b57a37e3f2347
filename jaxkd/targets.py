"""What a term wants of its teacher, and how it is made from the teacher's taps: the form that a bank stores."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxkd import losses, schema
from jaxkd.errors import UserError, did_you_mean

Taps = dict[str, jax.Array]
DEFAULT_STUDENT = {
  "soft_kd": "logits/dist",
  "hard_kd": "logits/dist",
  "dkd": "logits/dist",
  "dist": "logits/dist",
  "dino": "features",
}


@dataclasses.dataclass(frozen=True)
class Owner:
  """Student or teacher, as far as terms need to know it."""

  name: str
  taps: Taps  # shapes, for a batch of 2
  special: int  # leading tokens that are no patches
  layers: int
  grid: tuple[int, int] = (1, 1)  # rows and columns of patches

  def check(self, field: str, tap: str) -> None:
    """Raises UserError for a tap that this model does not have."""
    if tap not in self.taps:
      raise UserError(f"{field}: {self.name} has no '{tap}'", did_you_mean(tap, self.taps))


@dataclasses.dataclass(frozen=True)
class Target:
  """One array that a term takes from a teacher.

  `form`: "raw" as it is, "pooled" [b d] over patches, "map" [b h w d] on the teacher's own grid, or "grid" [b h w d]
  resized to `grid`.
  """

  teacher: str
  tap: str
  form: str
  grid: tuple[int, int] | None = None

  @property
  def key(self) -> str:
    """Its name among the teacher's targets."""
    size = f"{self.grid[0]}x{self.grid[1]}" if self.grid else ""
    return self.tap if self.form == "raw" else f"{self.tap}@{self.form}{size}"

  def make(self, taps: Taps, special: int) -> jax.Array:
    """The target from a teacher's taps; float32 but for "raw"."""
    tap = taps[self.tap]
    if self.form == "raw":
      return tap
    if self.form == "pooled":
      return pooled(tap, special)
    maps = spatial(tap, special)
    return losses.resize_grid(maps, self.grid) if self.grid else maps


def spatial(tap: jax.Array, special: int) -> jax.Array:
  """Tokens [b n d] (special ones dropped, the rest on a square grid) or maps [b h w d], as float32 [b h w d]."""
  tap = tap.astype(jnp.float32)
  if tap.ndim == 4:
    return tap
  patches = tap[:, special:]
  side = round(patches.shape[1] ** 0.5)
  if side * side != patches.shape[1]:
    raise UserError(f"{patches.shape[1]} patch tokens are no square grid", "use square images")
  return patches.reshape(patches.shape[0], side, side, -1)


def pooled(tap: jax.Array, special: int) -> jax.Array:
  """[b d] float32: the mean over patches or map positions, or the feature itself."""
  return tap.astype(jnp.float32) if tap.ndim == 2 else spatial(tap, special).mean((1, 2))


def student_taps(options) -> tuple[str, ...]:
  """The student's taps of a term, its kind's own where none are listed."""
  return tuple(options.student_taps) or (DEFAULT_STUDENT.get(options.kind, "logits/cls"),)


def teacher_taps(options, student: Owner, teacher: Owner) -> tuple[str, ...]:
  """The teacher's taps of a term: listed, its logits, or the layers at the same relative depth."""
  if options.teacher_taps:
    return tuple(options.teacher_taps)
  if options.kind in schema.LOGIT_KINDS:
    return ("logits",)
  if options.kind == "dino":
    return ("features",)
  return tuple(at_same_depth(tap, student.layers, teacher) for tap in student_taps(options))


def at_same_depth(tap: str, layers: int, teacher: Owner) -> str:
  """The teacher's tap at the relative depth of the student's `blockNN/...` or `stageN`; other taps keep their name.

  Block i of l is at depth (i + 1) / l; of the teacher the layer that ends nearest is taken, a later one of two equals.
  """
  name, _, kind = tap.partition("/")
  digits = name.removeprefix("block").removeprefix("stage")
  if not digits.isdigit():
    return tap
  layer = max(math.floor((int(digits) + 1) / layers * teacher.layers + 0.5), 1) - 1
  if any(t.startswith("stage") for t in teacher.taps):
    return f"stage{layer}"
  return f"block{layer:02d}/{kind or 'tokens'}"


def form_of(options, tap_shape: tuple[int, ...]) -> str:
  """How a term of this kind uses a teacher's tap."""
  if options.kind in schema.LOGIT_KINDS or options.kind == "dino":
    return "raw"
  if options.kind == "rkd" or getattr(options, "over", "tokens") == "samples":
    return "pooled"
  if options.kind == "similarity_preserving":
    return "pooled" if len(tap_shape) == 2 else "map"
  return "grid"
