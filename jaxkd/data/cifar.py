"""CIFAR-10 and CIFAR-100 as published (https://www.cs.toronto.edu/~kriz/cifar.html), python and binary versions.

`data.root` is the `.tar.gz`, its unpacked folder, or a folder that holds one of these. The python version is a
pickle; it is read by `read_pickle`, which builds containers and byte arrays and can call nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.data.archive import read_members
from jaxkd.data.source import Arrays, Source, incomplete, inside, missing
from jaxkd.errors import UserError

PIXELS = 3 * 32 * 32


@dataclasses.dataclass(frozen=True)
class Layout:
  """One version of one data set: archive and folder names, files, and where a record keeps its label."""

  archive: str
  folder: str
  train: tuple[str, ...]
  test: tuple[str, ...]
  names: str
  binary: bool
  label_bytes: int = 1  # of a binary record; the last one is the (fine) label
  label_key: str = "labels"
  names_key: str = "label_names"

  @property
  def files(self) -> tuple[str, ...]:
    return (*self.train, *self.test, self.names)


BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
LAYOUTS = {
  "cifar10": (
    Layout(
      "cifar-10-python.tar.gz", "cifar-10-batches-py", BATCHES, ("test_batch",), "batches.meta", binary=False
    ),
    Layout(
      "cifar-10-binary.tar.gz",
      "cifar-10-batches-bin",
      tuple(f"{b}.bin" for b in BATCHES),
      ("test_batch.bin",),
      "batches.meta.txt",
      binary=True,
    ),
  ),
  "cifar100": (
    Layout(
      "cifar-100-python.tar.gz",
      "cifar-100-python",
      ("train",),
      ("test",),
      "meta",
      binary=False,
      label_key="fine_labels",
      names_key="fine_label_names",
    ),
    Layout(
      "cifar-100-binary.tar.gz",
      "cifar-100-binary",
      ("train.bin",),
      ("test.bin",),
      "fine_label_names.txt",
      binary=True,
      label_bytes=2,
    ),
  ),
}


def open_cifar(options, *, known_url: bool) -> Source:
  """The first version found at `data.root`; of a folder with several, python before binary.

  Raises:
    MissingFiles: no version is there as a whole.
    UserError: see `read_members` and `read_pickle`.
  """
  layouts = LAYOUTS[options.name]
  root = inside(options.root)
  place = _locate(root, layouts) if options.root else None
  if place is None:
    wanted = f"{layouts[0].archive} or {layouts[1].archive} (or their unpacked folders)"
    raise missing(options.name, options.root, [wanted], known_url=known_url)
  found = read_members(place, {f for layout in layouts for f in layout.files})
  scores = [sum(f in found for f in layout.files) for layout in layouts]
  layout = layouts[int(np.argmax(scores))]
  absent = [f for f in layout.files if f not in found]
  if absent:
    raise missing(options.name, str(place), absent, known_url=known_url)

  def read(files: tuple[str, ...]) -> Arrays:
    parts = [_batch(found[f], layout, f"{place}: {f}") for f in files]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

  names = _class_names(found[layout.names], layout, f"{place}: {layout.names}")
  return Source(names, functools.partial(read, layout.train), functools.partial(read, layout.test))


def _locate(root: Path, layouts: tuple[Layout, ...]) -> Path | None:
  """The file or folder to read: `root` itself, or what has a published name in it."""
  if root.is_file():
    return root
  inner = [root / name for layout in layouts for name in (layout.folder, layout.archive)]
  if any((root / f).is_file() for layout in layouts for f in layout.train):
    return root
  return next((p for p in inner if p.exists()), None)


def _batch(data: bytes, layout: Layout, where: str) -> Arrays:
  """images uint8 [n 32 32 3] and labels int32 [n] of one file; stored channel by channel."""
  if layout.binary:
    record = layout.label_bytes + PIXELS
    if not data or len(data) % record:
      raise incomplete(where, f"a multiple of {record:,} bytes", f"{len(data):,}")
    rows = np.frombuffer(data, np.uint8).reshape(-1, record)
    flat, labels = rows[:, layout.label_bytes :], rows[:, layout.label_bytes - 1]
  else:
    batch = read_pickle(data, where)
    flat, labels = _entry(batch, "data", where), np.asarray(_entry(batch, layout.label_key, where))
    if not isinstance(flat, np.ndarray) or flat.ndim != 2 or flat.shape[1] != PIXELS:
      raise incomplete(where, f"'data' of [n, {PIXELS}] uint8", f"{getattr(flat, 'shape', type(flat))}")
    if labels.dtype.kind != "i" or labels.shape != flat.shape[:1]:
      raise incomplete(where, f"{len(flat)} integer labels", f"{labels.shape} of {labels.dtype}")
  return flat.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels.astype(np.int32)


def _class_names(data: bytes, layout: Layout, where: str) -> tuple[str, ...]:
  if layout.binary:
    return tuple(line.strip() for line in data.decode("latin1").splitlines() if line.strip())
  names = _entry(read_pickle(data, where), layout.names_key, where)
  if not isinstance(names, list):
    raise incomplete(where, f"a list '{layout.names_key}'", type(names).__name__)
  return tuple(map(_text, names))


def _entry(batch: Any, key: str, where: str) -> Any:
  """`batch[key]`; Python 2 wrote its keys as bytes."""
  keyed = {_text(k): v for k, v in batch.items()} if isinstance(batch, dict) else {}
  if key not in keyed:
    raise incomplete(where, f"the entry '{key}'", ", ".join(sorted(keyed)) or "no entries")
  return keyed[key]


def _text(value: Any) -> str:
  return value.decode("latin1") if isinstance(value, bytes) else str(value)


class _Array:
  """Stands in for an array while the pickle is read: takes its state, checks it, calls nothing of numpy's."""

  values: np.ndarray

  def __setstate__(self, state: Any) -> None:
    _, shape, dtype, fortran, raw = state
    if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
      raise ValueError("an array of other values than bytes")
    self.values = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Dtype:
  """Stands in for `numpy.dtype`; only uint8 is known."""

  def __init__(self, name: Any, *_: Any):
    if name not in ("u1", b"u1"):
      raise ValueError(f"an array of type {name!r}, expected uint8")

  def __setstate__(self, state: Any) -> None:
    """Byte order and such: nothing that one-byte values need."""


def _encode(text: str, encoding: str) -> bytes:
  """Python 3 writes bytes into old protocols as `_codecs.encode(text, "latin1")`."""
  if encoding != "latin1":
    raise ValueError(f"the encoding {encoding!r}")
  return text.encode("latin1")


# Module and name in the file -> what takes its place. Nothing else can be named, and none of these runs code.
_STAND_INS: dict[tuple[str, str], Any] = {
  ("numpy", "ndarray"): object,
  ("numpy", "dtype"): _Dtype,
  ("_codecs", "encode"): _encode,
  **{(f"{m}.multiarray", "_reconstruct"): lambda *_: _Array() for m in ("numpy.core", "numpy._core")},
}


class _Reader(pickle.Unpickler):
  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in _STAND_INS:
      raise pickle.UnpicklingError(f"it names {module}.{name}")
    return _STAND_INS[module, name]


def read_pickle(data: bytes, where: str) -> Any:
  """Dicts, lists, strings, numbers and uint8 arrays of a pickle; whatever else it names is refused, not run.

  Raises:
    UserError: the pickle is truncated or holds anything else.
  """
  try:
    return _plain(_Reader(io.BytesIO(data), encoding="bytes").load())
  except pickle.UnpicklingError as e:
    refused = str(e).startswith("it names")
    raise (_refused(where, str(e)) if refused else incomplete(where, "a whole pickle", str(e))) from e
  except (EOFError, IndexError, KeyError, UnicodeDecodeError, OverflowError, MemoryError) as e:
    raise incomplete(where, "a whole pickle", f"{len(data):,} bytes ({e})") from e
  except (ValueError, TypeError, AttributeError, RecursionError) as e:
    raise _refused(where, str(e)) from e


def _refused(where: str, why: str) -> UserError:
  return UserError(
    f"{where} is refused: {why}; nothing of it was run",
    "a CIFAR batch holds dicts, lists, text, numbers and uint8 arrays; take the official archive",
  )


def _plain(value: Any) -> Any:
  """`value` with arrays in place of their stand-ins."""
  if isinstance(value, dict):
    return {k: _plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(v) for v in value]
  if isinstance(value, _Array):
    return value.values
  if value is None or isinstance(value, str | bytes | int | float):
    return value
  raise ValueError(f"it holds a {type(value).__name__}")
