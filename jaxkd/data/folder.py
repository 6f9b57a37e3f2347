"""Image files: class folders or a CSV list.

`data.root` is one of

- a folder with `train/CLASS/*` and, if there is a test split, `test/CLASS/*`;
- a folder of class folders, `CLASS/*`;
- a folder with `train.csv` and, if there is a test split, `test.csv`; or one `.csv` file. Columns `path,label`,
  with paths relative to the file.

Classes are the names of folders (or the labels in the list), sorted; by value where all are whole numbers. A
source of grey files only stays at one channel.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import logging
from pathlib import Path

import numpy as np

from jaxkd.data import pixels
from jaxkd.data.source import Arrays, Source, inside, missing
from jaxkd.data.stored import StoredImages
from jaxkd.errors import UserError, did_you_mean, one_line

log = logging.getLogger("jaxkd")

ENDINGS = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))
SKIP_LIMIT = 0.01  # share of undecodable files at which even `data.on_error=skip` stops


@dataclasses.dataclass(frozen=True)
class Listing:
  """Files and labels of one split, unread."""

  paths: tuple[Path, ...]
  labels: tuple[int, ...]


Pairs = list[tuple[Path, str]]


def open_folder(options) -> Source:
  """Lists the files of `data.root`; they are decoded when a part is called for.

  Raises:
    MissingFiles: the folder is absent or has no images in one of the known layouts.
    UserError: a list names a file that is not there, or the test split has a class of its own.
  """
  class_names, train, test = listing(options.root)
  shape = functools.cache(lambda: _shape(train, options))

  def read(part: Listing) -> Arrays:
    size, channels = shape()
    return read_images(
      part, size=size, channels=channels, skip=options.on_error == "skip", exact=not options.image_size
    )

  def stored() -> tuple[StoredImages, np.ndarray]:
    images = StoredImages(tuple(map(str, train.paths)), *shape(), exact=not options.image_size)
    return images, np.asarray(train.labels, np.int32)

  read_test = functools.partial(read, test) if test else None
  return Source(class_names, functools.partial(read, train), read_test, stored=stored)


def listing(root: str) -> tuple[tuple[str, ...], Listing, Listing | None]:
  """Class names, training files, and test files if the layout has a test split."""
  path = inside(root)
  folders: set[str] = set()
  if root and path.is_file() and path.suffix == ".csv":
    train, test = _read_csv(path), None
  elif root and (path / "train.csv").is_file():
    test_csv = path / "test.csv"
    train, test = _read_csv(path / "train.csv"), _read_csv(test_csv) if test_csv.is_file() else None
  elif root and path.is_dir():
    has_train = (path / "train").is_dir()
    train = _read_folders(path / "train" if has_train else path)
    test = _read_folders(path / "test") if has_train and (path / "test").is_dir() else None
    folders = {p.name for p in _class_folders(path / "train" if has_train else path)}
  else:
    train, test = [], None
  if not train or (test is not None and not test):
    layouts = "train/CLASS/*.png (and test/CLASS/*.png), CLASS/*.png, or train.csv with path,label"
    raise missing("folder", root, [layouts], known_url=False)
  names = _sorted_names(folders | {label for _, label in train})
  number = {name: i for i, name in enumerate(names)}
  return names, _numbered(train, number), _numbered(test, number) if test else None


def _numbered(pairs: Pairs, number: dict[str, int]) -> Listing:
  for path, label in pairs:
    if label not in number:
      raise UserError(
        f"{path}: class {one_line(label)!r} is not among the training classes", did_you_mean(label, number)
      )
  return Listing(tuple(p for p, _ in pairs), tuple(number[label] for _, label in pairs))


def _sorted_names(names: set[str]) -> tuple[str, ...]:
  return tuple(sorted(names, key=int) if all(n.isdecimal() for n in names) else sorted(names))


def _class_folders(root: Path) -> list[Path]:
  return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _read_folders(root: Path) -> Pairs:
  files = [p for folder in _class_folders(root) for p in sorted(folder.iterdir())]
  return [(p, p.parent.name) for p in files if p.suffix.lower() in ENDINGS and not p.name.startswith(".")]


def _read_csv(path: Path) -> Pairs:
  try:
    return _rows(path)
  except (UnicodeDecodeError, csv.Error) as e:
    raise UserError(
      f"{path} is not a list of files ({e})", "write UTF-8 text with the columns path,label"
    ) from e


def _rows(path: Path) -> Pairs:
  out = []
  with open(path, newline="", encoding="utf-8") as f:
    rows = csv.DictReader(f)
    if not {"path", "label"} <= set(rows.fieldnames or ()):
      raise UserError(f"{path} has the columns {rows.fieldnames}", "the first line must be: path,label")
    for row in rows:
      if not row["path"] or row["label"] is None:
        raise UserError(f"{path} line {rows.line_num}: no path or no label", "write one of each per line")
      file = path.parent / row["path"]
      if not file.exists():
        raise UserError(
          f"{path} line {rows.line_num}: {file} does not exist", "paths are relative to the list's folder"
        )
      out.append((file, row["label"].strip()))
  return out


def _shape(train: Listing, options) -> tuple[int, int]:
  """Side and channels of the whole source, from the headers of its training files."""
  headers = (probed for path in train.paths if (probed := _probe(path, options.on_error == "skip")))
  if options.channels:
    size, channels = next(headers, (0, True))[0], options.channels
  else:
    size, grey = next(headers, (0, True))
    channels = 1 if grey and all(other for _, other in headers) else 3
  return options.image_size or size, channels


def _probe(path: Path, skip: bool) -> tuple[int, bool] | None:
  try:
    return pixels.probe(path)
  except pixels.BadImage:
    if not skip:
      raise
    return None


def read_images(part: Listing, *, size: int, channels: int, skip: bool, exact: bool) -> Arrays:
  """images uint8 [n size size channels] and labels int32 [n] of the files that can be decoded.

  Args:
    skip: leave out (and log) undecodable files, up to 1 % of all. exact: files must be `size` x `size` already.

  Raises:
    BadImage: an undecodable file without `skip`.
    UserError: more than 1 % of the files are undecodable, or one has another size under `exact`.
  """
  n = len(part.paths)
  images = np.empty((n, size, size, channels), np.uint8)
  kept: list[int] = []
  bad = 0
  for i, path in enumerate(part.paths):
    try:
      images[len(kept)] = read_image(path, size=size, channels=channels, exact=exact)
      kept.append(i)
    except pixels.BadImage as e:
      if not skip:
        raise
      bad += 1
      log.warning("skipped: %s", one_line(e.message))
      check_skipped(bad, n, path)
  if bad:
    log.warning("skipped %d of %d images (data.on_error=skip)", bad, n)
  return images[: len(kept)], np.asarray(part.labels, np.int32)[kept]


def check_skipped(bad: int, n: int, path: str | Path) -> None:
  """Raises UserError when `bad` undecodable files of `n`, `path` the last of them, are too many to skip."""
  if bad > SKIP_LIMIT * n:
    raise UserError(
      f"{bad} of {n} images cannot be decoded, more than {SKIP_LIMIT:.0%}; the last is {path}",
      "repair or remove them",
    )


def read_image(path: Path, *, size: int, channels: int, exact: bool = False) -> np.ndarray:
  """One file as uint8 [size size channels] by the rules of `jaxkd.data.pixels`."""
  image = pixels.decode(path)
  if exact and image.shape[:2] != (size, size):
    raise UserError(
      f"{path} has {image.shape[1]} x {image.shape[0]} pixels, the first image {size} x {size}",
      "set --config.data.image_size to bring all to one size",
    )
  image = image[..., None] if image.ndim == 2 else image
  return pixels.fit(pixels.to_channels(image, channels), size)
