"""Data sets: uint8 images, integer labels, stratified seeded splits. The test split has its own door."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
from PIL import Image
from sklearn import datasets as sklearn_datasets
from sklearn.model_selection import train_test_split

from jaxkd.errors import UserError


@dataclasses.dataclass(frozen=True)
class Split:
  """images uint8 [n h w c], labels int32 [n]."""

  images: np.ndarray
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Dataset:
  """What training may see. `mean` and `std` [c] are in [0, 1], computed on the training images."""

  name: str
  class_names: tuple[str, ...]
  train: Split
  validation: Split
  mean: tuple[float, ...]
  std: tuple[float, ...]
  digest: str

  @property
  def image_shape(self) -> tuple[int, int, int]:
    return self.train.images.shape[1:]


def load(options) -> Dataset:
  """Training and validation images of `config.data`; never the test images.

  Raises:
    UserError: a split would leave a class without an image.
  """
  parts, class_names = _parts(options)
  train, validation = parts["train"], parts["validation"]
  pixels = train.images.astype(np.float64) / 255
  mean, std = pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))
  digest = hashlib.sha256(train.images.tobytes() + train.labels.tobytes()).hexdigest()
  return Dataset(
    options.name, class_names, train, validation, tuple(mean.tolist()), tuple(std.tolist()), digest
  )


def load_test(options) -> Split:
  """The sealed test split: for `evaluate`, `forensics` and `study`, never for training or selection."""
  return _parts(options)[0]["test"]


def _parts(options) -> tuple[dict[str, Split], tuple[str, ...]]:
  images, labels, class_names = SOURCES[options.name](options)
  rest, test = _split(np.arange(len(labels)), labels, options.test, options.split_seed)
  train, validation = _split(rest, labels, options.validation, options.split_seed + 1)
  parts = {"train": train, "validation": validation, "test": test}
  return {name: Split(images[index], labels[index]) for name, index in parts.items()}, class_names


def _split(index: np.ndarray, labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Two stratified parts of `index`, each in ascending order so that the digest does not depend on the shuffle."""
  try:
    a, b = train_test_split(index, test_size=share, random_state=seed, stratify=labels[index])
  except ValueError as e:
    raise UserError(
      f"cannot split {len(index)} images at {share}: {e}", "use more images or another share"
    ) from e
  return np.sort(a), np.sort(b)


def _digits(options) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
  """1,797 handwritten digits, 8x8 with 17 grey levels (Alpaydin and Kaynak, 1998; bundled with scikit-learn)."""
  raw = sklearn_datasets.load_digits()
  grey = np.round(raw.images * (255 / 16)).astype(np.uint8)
  side = options.image_size
  resized = [np.asarray(Image.fromarray(im).resize((side, side), Image.Resampling.BICUBIC)) for im in grey]
  return np.stack(resized)[..., None], raw.target.astype(np.int32), tuple("0123456789")


def _synthetic(options) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
  """Seeded noise around one random pattern per class: for smoke runs and tests, not for claims."""
  rng = np.random.default_rng(20)
  shape = (options.image_size, options.image_size, options.channels)
  patterns = rng.integers(40, 216, (options.classes, *shape))
  labels = np.arange(options.examples, dtype=np.int32) % options.classes
  images = patterns[labels] + rng.normal(0, 20, (options.examples, *shape))
  return np.clip(images, 0, 255).astype(np.uint8), labels, tuple(f"class{i}" for i in range(options.classes))


SOURCES = {"digits": _digits, "synthetic": _synthetic}


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
