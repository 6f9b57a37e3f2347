"""Stratified seeded parts of a labelled set, few-shot subsets, class-balanced samples."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxkd.errors import UserError


@dataclasses.dataclass(frozen=True)
class Split:
  """images uint8 [n h w c], labels int32 [n].

  `images` may be `StoredImages`, which are decoded when indexed (`images[:]` is all of them).
  """

  images: Any  # np.ndarray or StoredImages
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.labels)


def resident(split: Split) -> Split:
  """`split` with its images in memory."""
  return split if isinstance(split.images, np.ndarray) else Split(split.images[:], split.labels)


def stratified(
  index: np.ndarray, labels: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Two stratified parts of `index`, the second of size `share`, each in ascending order.

  Ascending, so that the digest does not depend on the order in which the shuffle left them.

  Raises:
    UserError: a part would leave a class without an image.
  """
  from sklearn.model_selection import train_test_split  # slow to import, and data workers never split

  try:
    a, b = train_test_split(index, test_size=share, random_state=seed, stratify=labels[index])
  except ValueError as e:
    raise UserError(
      f"cannot split {len(index)} images at {share}: {e}", "use more images or another share"
    ) from e
  return np.sort(a), np.sort(b)


def thin(index: np.ndarray, labels: np.ndarray, *, subset: float, per_class: int, seed: int) -> np.ndarray:
  """A class-balanced part of `index`: a share `subset` of every class, or `per_class` images of each.

  Nested: for one seed, a smaller request is part of every larger one, so that few-shot curves add images and
  never exchange them. A share keeps at least one image of each class.

  Raises:
    UserError: both are asked for, or a class has fewer than `per_class` images.
  """
  if subset == 1.0 and not per_class:
    return index
  if subset < 1.0 and per_class:
    raise UserError(
      f"data.subset={subset} and data.per_class={per_class} both choose training images", "set one of them"
    )
  kept = []
  for label in np.unique(labels[index]):
    members = index[labels[index] == label]
    count = per_class or max(round(subset * len(members)), 1)
    if count > len(members):
      raise UserError(
        f"data.per_class={count}, but class {label} has {len(members)} training images",
        f"ask for at most {len(members)}",
      )
    # One stream per class: another class's size does not change which images are drawn.
    kept.append(np.random.default_rng((seed, int(label), 0x5EB5)).permutation(members)[:count])
  return np.sort(np.concatenate(kept))


def balanced_sample(split: Split, count: int, seed: int = 0) -> Split:
  """`count` images of `split`, as evenly over the classes as possible, the same for the same arguments.

  Raises:
    UserError: the split has fewer than `count` images.
  """
  if count > len(split):
    raise UserError(
      f"a sample of {count} images from a split of {len(split)}", f"ask for at most {len(split)}"
    )
  order = np.random.default_rng(seed).permutation(len(split))
  rank = np.zeros(len(split), np.int64)  # how many of the same class come before it
  for label in np.unique(split.labels):
    members = order[split.labels[order] == label]
    rank[members] = np.arange(len(members))
  index = np.sort(order[np.argsort(rank[order], kind="stable")][:count])
  return Split(split.images[index], split.labels[index])
