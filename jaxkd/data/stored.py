"""Images that stay in their files until they are asked for: a data set may be larger than memory."""

from __future__ import annotations

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from jaxkd.data import pixels
from jaxkd.data.source import LoaderFailure
from jaxkd.errors import JaxkdError, UserError


def cores() -> int:
  """Processor cores this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclasses.dataclass(frozen=True)
class StoredImages:
  """Image files that read like an array uint8 [n size size channels]; only what is indexed is decoded.

  Attributes:
    paths: one file for each image. exact: files must be `size` x `size` already, as in `folder.read_image`.
  """

  paths: tuple[str, ...]
  size: int
  channels: int
  exact: bool = False

  def __len__(self) -> int:
    return len(self.paths)

  @property
  def shape(self) -> tuple[int, int, int, int]:
    return len(self.paths), self.size, self.size, self.channels

  @property
  def ndim(self) -> int:
    return 4

  @property
  def nbytes(self) -> int:
    """What all of them take once decoded."""
    return int(np.prod(self.shape, dtype=np.int64))

  def take(self, index: np.ndarray) -> StoredImages:
    """Those of `index`, still unread."""
    return dataclasses.replace(self, paths=tuple(self.paths[i] for i in index))

  def __getitem__(self, index) -> np.ndarray:
    """One image for an integer, else images [k size size channels], decoded by a thread for each core."""
    if isinstance(index, int | np.integer):
      return self.read(int(index))
    wanted = np.arange(len(self))[index]
    out = np.empty((len(wanted), *self.shape[1:]), np.uint8)
    with ThreadPoolExecutor(cores()) as pool:
      for k, image in enumerate(pool.map(self.read, wanted.tolist())):
        out[k] = image
    return out

  def read(self, i: int) -> np.ndarray:
    """Image `i`, uint8 [size size channels].

    Raises:
      BadImage, UserError: the file cannot be decoded or opened, or has another size under `exact`.
      LoaderFailure: anything else. All of them name `i` and the path.
    """
    from jaxkd.data.folder import read_image  # which lists files as StoredImages

    path = self.paths[i]
    try:
      return read_image(Path(path), size=self.size, channels=self.channels, exact=self.exact)
    except pixels.BadImage as e:
      raise pixels.BadImage(f"image {i}: {e.message}", e.hint) from e
    except JaxkdError as e:
      raise UserError(f"image {i}: {e.message}", e.hint) from e
    except OSError as e:
      raise UserError(f"image {i}: cannot read {path}: {e.strerror or e}", "put the file back") from e
    except Exception as e:
      raise LoaderFailure(
        f"image {i} ({path}): {type(e).__name__}: {e}",
        "look at that file; the same command continues the run",
      ) from e
