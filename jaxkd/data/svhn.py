"""Street View House Numbers, cropped digits (http://ufldl.stanford.edu/housenumbers): MATLAB files of 32x32 RGB."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from scipy import io as scipy_io

from jaxkd.data.source import Arrays, Source, incomplete, inside, missing

FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}


def open_svhn(options, *, known_url: bool) -> Source:
  """`train_32x32.mat` and `test_32x32.mat` of `data.root`.

  Raises:
    MissingFiles: one of them is not there.
  """
  root = inside(options.root)
  absent = [f for f in FILES.values() if not options.root or not (root / f).exists()]
  if absent:
    raise missing(options.name, options.root, absent, known_url=known_url)
  train, test = (functools.partial(read_mat, root / f) for f in FILES.values())
  return Source(tuple("0123456789"), train, test)


def read_mat(path: Path) -> Arrays:
  """images uint8 [n 32 32 3] and labels int32 [n]; the file calls the digit 0 label 10.

  Raises:
    UserError: the file is truncated or holds something else.
  """
  try:
    found = scipy_io.loadmat(path, variable_names=["X", "y"])
    images, labels = found["X"], found["y"].reshape(-1)
  except PermissionError:
    raise
  except Exception as e:  # the reader fails in many ways on damaged files, all of which mean the same
    raise incomplete(path, "a MATLAB file with X and y", f"{path.stat().st_size:,} bytes ({e})") from e
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
    raise incomplete(path, "X of [32 32 3 n] uint8", f"{images.shape} of {images.dtype}")
  return np.moveaxis(images, 3, 0), np.where(labels == 10, 0, labels).astype(np.int32)
