"""Which images make up a batch: a pure function of (seed, step), so a run resumes from one integer."""

from __future__ import annotations

import functools

import numpy as np

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
def _permutation(examples: int, seed: int, epoch: int) -> np.ndarray:
  return np.random.default_rng((seed, epoch)).permutation(examples).astype(np.int32)


def batch_indices(step: int, *, examples: int, batch_size: int, seed: int) -> np.ndarray:
  """The training images of `step` (0-based): int32 [b], without repetition within an epoch."""
  epoch, position = divmod(step, steps_per_epoch(examples, batch_size))
  return _permutation(examples, seed, epoch)[position * batch_size : (position + 1) * batch_size]


def geometry_indices(step: int, *, count: int, geometries: int, seed: int) -> np.ndarray:
  """Which of an image's fixed geometries each of `count` views of `step` shows: int32 [count]."""
  rng = np.random.default_rng((seed, 1, step))
  return rng.integers(0, geometries, count).astype(np.int32)
