"""What has to be known of training images before the first step: counts of their values, digest, damaged files.

Arrays are read where they are. Image files are decoded once, in order and a chunk at a time; what was found is kept
in `$JAXKD_CACHE/data` under the files' names, sizes and times, so that a resumed run starts at once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from jaxkd import files
from jaxkd.data import streaming
from jaxkd.data.folder import check_skipped
from jaxkd.data.source import reading
from jaxkd.data.splits import Split
from jaxkd.data.stored import StoredImages
from jaxkd.errors import CannotWrite, one_line

log = logging.getLogger("jaxkd")
FORMAT = 1


def survey(split: Split, *, workers: int) -> tuple[np.ndarray, str]:
  """Counts of the 256 values per channel, int64 [c 256], and the SHA-256 of the images' bytes, then the labels'.

  Raises:
    JaxkdError: a file that cannot be read; see `StoredImages.read`.
  """
  images, labels = split.images, split.labels
  if not isinstance(images, StoredImages):
    return _survey([images], labels, images.shape[-1])

  def found() -> dict[str, Any]:
    chunks = streaming.in_order(streaming.Chunks(images), workers=workers, label="images read")
    counts, digest = _survey(chunks, labels, images.channels)
    return {"counts": counts.tolist(), "digest": digest}

  kept = _remembered("survey", images, labels, found)
  return np.asarray(kept["counts"], np.int64), kept["digest"]


def _survey(chunks: Iterable[np.ndarray], labels: np.ndarray, channels: int) -> tuple[np.ndarray, str]:
  counts, digest = np.zeros((channels, 256), np.int64), hashlib.sha256()
  for chunk in chunks:
    digest.update(np.ascontiguousarray(chunk).data)
    for c in range(channels):
      counts[c] += np.bincount(chunk[..., c].reshape(-1), minlength=256)
  digest.update(np.ascontiguousarray(labels).data)
  return counts, digest.hexdigest()


def without_damaged(
  images: StoredImages, labels: np.ndarray, *, workers: int
) -> tuple[StoredImages, np.ndarray]:
  """`images` and `labels` without the files that cannot be decoded (`data.on_error=skip`).

  Raises:
    UserError: more than 1 % of them cannot be.
  """

  def found() -> dict[str, Any]:
    verdicts = streaming.in_order(streaming.Verdicts(images), workers=workers, label="images checked")
    return {"damaged": [pair for chunk in verdicts for pair in chunk]}

  damaged = _remembered("damaged", images, labels, found)["damaged"]
  for count, (i, message) in enumerate(damaged, start=1):
    log.warning("skipped: %s", one_line(message))
    check_skipped(count, len(images), images.paths[i])
  if not damaged:
    return images, labels
  log.warning("skipped %d of %d images (data.on_error=skip)", len(damaged), len(images))
  kept = np.setdiff1d(np.arange(len(images)), [i for i, _ in damaged])
  return images.take(kept), labels[kept]


def _remembered(
  what: str, images: StoredImages, labels: np.ndarray, find: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
  path = cache_folder() / f"{what}-{_key(images, labels)}.json"
  if path.is_file():
    return files.read_json(path)
  found = find()
  try:
    files.write_json(path, found)
  except CannotWrite as e:
    log.warning("%s: the next start reads all images again", e.message)
  return found


def cache_folder() -> Path:
  """`$JAXKD_CACHE/data`, or `~/.cache/jaxkd/data`."""
  return Path(os.environ.get("JAXKD_CACHE") or Path.home() / ".cache" / "jaxkd") / "data"


def _key(images: StoredImages, labels: np.ndarray) -> str:
  """Changes with any file (by name, size and time), what is made of it, and the decoder's version."""
  about = [FORMAT, PIL.__version__, images.shape, images.exact]
  found = hashlib.sha256(json.dumps(about).encode())
  for path in images.paths:
    with reading(path):
      stat = os.stat(path)
    found.update(f"\0{os.path.abspath(path)}\0{stat.st_size}\0{stat.st_mtime_ns}".encode())
  found.update(np.ascontiguousarray(labels).data)
  return found.hexdigest()
