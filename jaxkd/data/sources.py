"""Data sets by name: uint8 images, integer labels, stratified seeded splits. The test split has its own door."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxkd.data import builtin, cifar, download, folder, idx, npz, shapes, svhn, tfds_source
from jaxkd.data.pixels import conform
from jaxkd.data.source import MissingFiles, Source, inside, reading
from jaxkd.data.splits import Split, balanced_sample, resident, stratified, thin
from jaxkd.data.stored import StoredImages
from jaxkd.data.survey import survey, without_damaged
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
  placement: str = "device"  # of the training images: all on the device, or "streamed" by batch

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
  images, labels = _training_images(source, options)
  names = tuple(map(one_line, source.class_names))
  for empty in np.flatnonzero(np.bincount(labels, minlength=len(names)) == 0):
    log.warning("data set '%s': class %d ('%s') has no image", options.name, empty, names[empty])
  rest = _without_test(source, labels, options)[0]
  train_index, validation_index = stratified(rest, labels, options.validation, options.split_seed + 1)
  train_index = thin(
    train_index, labels, subset=options.subset, per_class=options.per_class, seed=options.split_seed
  )
  train, validation = (_part(images, labels, i, source, options) for i in (train_index, validation_index))
  placement = _placement(train.images, options)
  train = train if placement == "streamed" else resident(train)
  validation = validation if _large(validation.images, options) else resident(validation)
  counts, digest = survey(train, workers=options.workers)
  mean, std = _statistics(counts, options)
  return Dataset(options.name, names, train, validation, mean, std, digest, placement)


def _training_images(source: Source, options) -> tuple[Any, np.ndarray]:
  """All images of `source.train` with their labels; left in their files where they are many or to be streamed."""
  if source.stored and options.placement != "device":
    images, labels = _read(source, source.stored, options, "train")
    if options.placement == "streamed" or _large(images, options):
      if options.on_error == "skip":
        images, labels = without_damaged(images, labels, workers=options.workers)
      return images, labels
  return _read(source, source.train, options, "train")


def _large(images: np.ndarray, options) -> bool:
  return images.nbytes > options.device_gib * 2**30


def _placement(images: np.ndarray, options) -> str:
  if options.placement != "auto":
    return options.placement
  return "streamed" if _large(images, options) else "device"


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


def _part(
  images: np.ndarray | StoredImages, labels: np.ndarray, index: np.ndarray, source: Source, options
) -> Split:
  """The images of `index` in their final size and channels."""
  if isinstance(images, StoredImages):  # which have both already
    return Split(images.take(index), labels[index])
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


def _read(
  source: Source, part: Callable[[], tuple[Any, np.ndarray]], options, what: str
) -> tuple[Any, np.ndarray]:
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


def _statistics(counts: np.ndarray, options) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Mean and standard deviation per channel in [0, 1], from counts [c 256] of values."""
  channels = len(counts)
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
  mean = tuple(float(np.average(value, weights=n)) for n in counts)
  std = tuple(
    float(np.sqrt(np.average((value - m) ** 2, weights=n))) for n, m in zip(counts, mean, strict=True)
  )
  return mean, std
