"""What every reader of a data set hands over, and the errors they share."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxkd.errors import JaxkdError, UserError, one_line

if TYPE_CHECKING:
  from jaxkd.data.stored import StoredImages

DOWNLOAD_FLAG = "--config.data.download=true"

Arrays = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Source:
  """A data set before splitting: nothing but the names has to be read until a part is called for.

  Attributes:
    class_names: name of each label.
    train: reads images uint8 [n h w] or [n h w c] and labels [n]; all images where there is no `test`.
    test: reads the set's own test split; `None` has one cut from `train` by `data.test`.
    size: side that `data.image_size=0` stands for; 0 is the images' own.
    stored: the same as `train` with the images left in their files, undecodable ones included; `None` where the
      source can only be read whole.
  """

  class_names: tuple[str, ...]
  train: Callable[[], Arrays]
  test: Callable[[], Arrays] | None = None
  size: int = 0
  stored: Callable[[], tuple[StoredImages, np.ndarray]] | None = None


class LoaderFailure(JaxkdError):
  """Reading ahead stopped: a worker process ended, or raised something unforeseen."""


class MissingFiles(UserError):
  """Files of a data set that are not where they should be."""


def missing(name: str, root: str, wanted: list[str], *, known_url: bool) -> MissingFiles:
  """Names each missing file, where to put it and, if there is one, the flag that downloads it."""
  root = os.path.expanduser(root)
  if not root:
    state = "data.root is empty"
  elif not os.path.exists(root):
    state = f"data.root {root} does not exist"
  elif os.path.isdir(root) and not os.listdir(root):
    state = f"the folder {root} is empty"
  else:
    state = f"not found in {root}"
  name_it = "--config.data.root=FOLDER"
  hint = f"put them into {root}" if root else f"name their folder by {name_it}"
  if known_url:
    hint += f", or download them by {DOWNLOAD_FLAG}" if root else f"; add {DOWNLOAD_FLAG} to download them"
  return MissingFiles(f"data set '{name}' needs {', '.join(wanted)}: {state}", hint)


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
  """Turns what the operating system refuses into a user error that names the path."""
  try:
    yield
  except OSError as e:
    path = e.filename or what
    raise UserError(
      f"cannot read {path}: {e.strerror or e}", f"check that {what} exists and may be read"
    ) from e


def incomplete(path: str | Path, expected: str, found: str) -> UserError:
  """A file that is not whole."""
  return UserError(
    f"{path} is incomplete or damaged: expected {expected}, found {one_line(found)}",
    "fetch it again; nothing of it was used",
  )


def inside(root: str) -> Path:
  """`data.root` as a path, `~` expanded."""
  return Path(root).expanduser()


def gzip_or_plain(path: Path):
  """An open binary file, unpacked on the fly if its first bytes say gzip."""
  with open(path, "rb") as f:
    packed = f.read(2) == b"\x1f\x8b"
  return gzip.open(path, "rb") if packed else open(path, "rb")


TRUNCATED = (EOFError, zlib.error, gzip.BadGzipFile)
