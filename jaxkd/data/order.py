"""Which images make up a batch: a pure function of (seed, step), so a run resumes from one integer."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Int

from jaxkd.errors import UserError


def steps_per_epoch(examples: int, batch_size: int) -> int:
  """Whole batches in one pass; the rest of a permutation is dropped, a different rest each epoch.

  Raises:
    UserError: the batch is larger than the data set.
  """
  if batch_size > examples:
    raise UserError(
      f"batch size {batch_size} is larger than the {examples} training images",
      f"set --config.train.batch_size to at most {examples}",
    )
  return examples // batch_size


@functools.lru_cache(maxsize=2)
def _permutation(examples: int, seed: int, number: int) -> np.ndarray:
  return np.random.default_rng((seed, number)).permutation(examples).astype(np.int32)


def batch_indices(
  step: int, *, examples: int, batch_size: int, seed: int, repeats: int = 1
) -> Int[np.ndarray, " {batch_size}"]:
  """The training images of `step` (0-based), int32.

  Without repetition within an epoch; or with every image `repeats` times in its batch, to be augmented differently
  each time (repeated augmentation, Berman et al., 2019, arXiv:1902.05509). The copies are `batch_size / repeats`
  places apart. As in DeiT an epoch keeps its number of steps, so it shows 1 / `repeats` of the images; unlike there
  the next epochs show the others, and a pass over all images takes `repeats` epochs.

  Raises:
    UserError: the batch is larger than the data set, or no multiple of `repeats`.
  """
  steps_per_epoch(examples, batch_size)
  if repeats < 1 or batch_size % repeats:
    raise UserError(
      f"batch size {batch_size} is not divisible by {repeats} repeats",
      f"set --config.train.batch_size to a multiple of {max(repeats, 1)}, or change --config.data.augment.repeats",
    )
  distinct = batch_size // repeats
  number, position = divmod(step, examples // distinct)
  part = _permutation(examples, seed, number)[position * distinct : (position + 1) * distinct]
  return np.tile(part, repeats)


def geometry_indices(step: int, *, count: int, geometries: int, seed: int) -> np.ndarray:
  """Which of an image's fixed geometries each of `count` views of `step` shows: int32 [count]."""
  rng = np.random.default_rng((seed, 1, step))
  return rng.integers(0, geometries, count).astype(np.int32)
