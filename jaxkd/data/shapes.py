"""`synthetic_shapes`: 32x32 RGB images whose class is told by a local cue, a global cue, or both.

The *local* cue is the texture of the background: one of ten patterns of period 4 or less with random phase,
contrast and polarity. Any 8x8 window shows it.

The *global* cue is the arrangement of four blobs, one in each quadrant, each in one of 2x2 spots. With the spot of
blob i written as two bits s_i, an image of class c has s_i = u xor code_i(c), where u is drawn uniformly with
probability `data.global_shift` and is 0 otherwise; then all four move together by up to one pixel. The blobs of two
quadrants are never nearer than 8 pixels, so an 8x8 window sees one at most, and one blob looks like another: what a
window shows does not tell the arrangement. Nor does its place when `global_shift` is 1: each blob by itself is then
uniform over its spots whatever the class, and only comparing distant parts tells. That is also harder to learn (the
first step of a gradient sees nothing); at 0 the place of a single blob already tells something. The codes of two
classes differ in at least two blobs.

Each cue agrees with the class with its own probability and is drawn uniformly otherwise. Neither mirrored nor
rotated images keep their class (a mirrored diagonal texture is another one): augmentation may shift and recolour.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from jaxkd.data.pixels import conform
from jaxkd.data.source import Arrays, Source
from jaxkd.errors import UserError, did_you_mean

SIDE = 32
SEED = 32
CUES = ("agree", "conflict", "local", "global")

_y, _x = np.mgrid[:4, :4]
# Ten textures of period <= 4, each with as many +1 as -1, no two of them shifts of each other or inverses.
TEXTURES = {
  "rows 1": _y % 2,
  "columns 1": _x % 2,
  "checks 1": (_x + _y) % 2,
  "rows 2": _y // 2,
  "columns 2": _x // 2,
  "checks 2": (_x // 2 + _y // 2) % 2,
  "diagonal": (_x + _y) // 2 % 2,
  "antidiagonal": (_x - _y) // 2 % 2,
  "wide bricks": (_x // 2 + _y) % 2,
  "tall bricks": (_x + _y // 2) % 2,
}
_TILES = np.stack(list(TEXTURES.values())) * 2 - 1

BLOB = np.array([[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]], bool)
# First row (or column) of a blob by half of the image and by bit; the four are moved together by up to JITTER pixels.
STARTS = np.array([[4, 8], [20, 24]])
JITTER = 1


def codes(classes: int) -> np.ndarray:
  """Spot of each blob relative to the first, as two bits (row, column): int [c 4 2]; any two rows differ twice."""
  index = np.arange(classes)
  second, third = index % 4, index // 4
  spots = np.stack([0 * index, second, third, second ^ third], 1)
  return np.stack([spots >> 1, spots & 1], -1)


def draw(local: np.ndarray, global_: np.ndarray, *, shift: float, rng: np.random.Generator) -> np.ndarray:
  """Images uint8 [n 32 32 3] with texture `local` [n] and arrangement `global_` [n], displaced as often as `shift`."""
  n = len(local)
  phase = rng.integers(0, 4, (2, n, 1, 1))
  rows, columns = np.mgrid[:SIDE, :SIDE]
  texture = _TILES[local[:, None, None], (rows + phase[0]) % 4, (columns + phase[1]) % 4].astype(np.float32)
  base = rng.uniform(85, 115, (n, 1, 1, 3)).astype(np.float32)
  contrast = (rng.uniform(20, 32, n) * rng.choice((-1, 1), n)).astype(np.float32)
  images = base + (texture * contrast[:, None, None])[..., None]
  colour = rng.uniform(195, 250, (n, 1, 1, 3)).astype(np.float32)
  images = np.where(_blobs(global_, shift, rng)[..., None], colour, images)
  images += rng.normal(0, 6, images.shape).astype(np.float32)
  return np.clip(np.round(images), 0, 255).astype(np.uint8)


def _blobs(global_: np.ndarray, shift: float, rng: np.random.Generator) -> np.ndarray:
  """Where a blob covers the texture: bool [n 32 32]."""
  n = len(global_)
  shared = rng.integers(0, 2, (n, 1, 2)) * (rng.random((n, 1, 1)) < shift)
  jitter = rng.integers(-JITTER, JITTER + 1, (n, 1, 2))
  return place(codes(int(global_.max(initial=0)) + 1)[global_] ^ shared, jitter)


def place(spots: np.ndarray, jitter: np.ndarray) -> np.ndarray:
  """Blob masks bool [n 32 32] for `spots` [n 4 2] in {0, 1} and `jitter` [n 1 2] in pixels."""
  n = len(spots)
  half = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])  # (lower, right) of each quadrant
  start = STARTS[half, spots] + jitter
  mask = np.zeros((n, SIDE, SIDE), bool)
  offset = np.argwhere(BLOB)
  at = start[:, :, None] + offset  # [n 4 pixels 2]
  mask[np.arange(n)[:, None, None], at[..., 0], at[..., 1]] = True
  return mask


def open_shapes(options) -> Source:
  """`data.examples` images, of which a share `data.test` are the test split, drawn apart from the others.

  Raises:
    UserError: more classes than there are textures.
  """
  _check(options)
  names = tuple(f"{texture}, arrangement {i}" for i, texture in enumerate(TEXTURES))[: options.classes]
  train = functools.partial(_strengths, options, "train")
  return Source(names, train, functools.partial(_strengths, options, "test"), size=SIDE)


def _check(options) -> None:
  if options.classes > len(TEXTURES):
    raise UserError(
      f"data.classes={options.classes}: synthetic_shapes has {len(TEXTURES)} textures",
      f"ask for at most {len(TEXTURES)} classes",
    )
  if 0 < options.image_size < SIDE:
    raise UserError(
      f"data.image_size={options.image_size} would blur the textures of synthetic_shapes",
      f"set it to 0 or at least {SIDE}",
    )


def _labels(options, part: str) -> tuple[np.ndarray, np.random.Generator]:
  """Labels, evenly over the classes, and the generator of one part: parts share no random numbers."""
  held_out = round(options.examples * options.test)
  count = options.examples - held_out if part == "train" else held_out
  stream = ("train", "test", *CUES).index(part)
  rng = np.random.default_rng((SEED, options.split_seed, stream))
  return (np.arange(count) % options.classes).astype(np.int32), rng


def _strengths(options, part: str) -> Arrays:
  labels, rng = _labels(options, part)
  local, global_ = (
    _agreeing(labels, options.classes, strength, rng)
    for strength in (options.local_strength, options.global_strength)
  )
  return draw(local, global_, shift=options.global_shift, rng=rng), labels


def _agreeing(labels: np.ndarray, classes: int, strength: float, rng: np.random.Generator) -> np.ndarray:
  """Each label with probability `strength`, else uniform over all classes."""
  agrees = rng.random(len(labels)) < strength
  return np.where(agrees, labels, rng.integers(0, classes, len(labels)))


@dataclasses.dataclass(frozen=True)
class Cued:
  """images uint8 [n s s c] and what each of the two cues says, int32 [n]."""

  images: np.ndarray
  global_labels: np.ndarray
  local_labels: np.ndarray


def cued(options, cues: str) -> Cued:
  """Test images with the cues in a known relation, of the size and channels of `options`.

  Args:
    cues: `agree` both say the class; `conflict` they say two different classes; `local` (`global`) only that one
      says the class, the other is drawn uniformly and independently of it.

  Raises:
    UserError: the data set has no such cues, or `cues` is none of these.
  """
  if options.name != "synthetic_shapes":
    raise UserError(f"data set '{options.name}' has no cues to set", "use data.name=synthetic_shapes")
  if cues not in CUES:
    raise UserError(f"unknown cues '{cues}'", did_you_mean(cues, CUES))
  _check(options)
  labels, rng = _labels(options, cues)
  other = rng.integers(0, options.classes, len(labels))
  differing = (labels + rng.integers(1, options.classes, len(labels))) % options.classes
  local = {"conflict": differing, "global": other}.get(cues, labels).astype(np.int32)
  global_ = {"local": other}.get(cues, labels).astype(np.int32)
  images = draw(local, global_, shift=options.global_shift, rng=rng)
  return Cued(conform(images, size=options.image_size, channels=options.channels), global_, local)


def cue_conflict(options) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """`(images, global_labels, local_labels)` of test images whose two cues say different classes.

  A classifier that follows the arrangement agrees with the first labels, one that follows the texture with the second.

  Raises:
    UserError: see `cued`.
  """
  found = cued(options, "conflict")
  return found.images, found.global_labels, found.local_labels
