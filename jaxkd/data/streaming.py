"""Reading by number and ahead of need, with grain: batches of a run by step, chunks of files for a survey.

What is read follows from its number alone, so a run goes on at any step without a reader's state, and any number of
worker processes reads the same. grain comes with the `data` extra and is imported when asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import multiprocessing.process
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any, Protocol

import numpy as np

from jaxkd.data.order import batch_indices
from jaxkd.data.source import LoaderFailure
from jaxkd.data.stored import StoredImages, cores
from jaxkd.errors import JaxkdError, UserError

CHUNK = 64  # files of one survey item
FEW = 32  # chunks up to which threads are done before worker processes have started
WORKER = "grain-process-prefetch"  # how grain names its processes


class Numbered(Protocol):
  """What is read by number, in any order and by several threads or processes at once."""

  def __len__(self) -> int: ...
  def __getitem__(self, number: int) -> Any: ...


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Batches:
  """Step -> {"images": uint8 [r h w c], "labels": int32 [r]} of some rows of that step's batch.

  Attributes:
    images, labels: the training images. steps: of the run. batch_size, seed, repeats: as for `order.batch_indices`.
    rows: which of the global batch's `batch_size` rows; together, all processes read each row.
  """

  images: np.ndarray | StoredImages
  labels: np.ndarray
  steps: int
  batch_size: int
  seed: int
  rows: np.ndarray
  repeats: int = 1

  def __len__(self) -> int:
    return self.steps

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    """
    Raises:
      JaxkdError: an image that cannot be read; see `StoredImages.read`.
    """
    options = {"batch_size": self.batch_size, "seed": self.seed, "repeats": self.repeats}
    order = batch_indices(int(step), examples=len(self.labels), **options)
    index = order[self.rows]
    return {"images": _one_by_one(self.images, index), "labels": self.labels[index]}


def _one_by_one(images: np.ndarray | StoredImages, index: np.ndarray) -> np.ndarray:
  """For a caller that is one of several threads or processes already."""
  if isinstance(images, StoredImages):
    return np.stack([images.read(int(i)) for i in index])
  return images[index]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Chunks:
  """Number -> the next `CHUNK` images [k h w c] of a set of files; the last one may be shorter."""

  images: StoredImages

  def __len__(self) -> int:
    return -(-len(self.images) // CHUNK)

  def __getitem__(self, number: int) -> np.ndarray:
    return _one_by_one(self.images, self._index(number))

  def _index(self, number: int) -> np.ndarray:
    return np.arange(len(self.images))[int(number) * CHUNK : (int(number) + 1) * CHUNK]


class Verdicts(Chunks):
  """Number -> what is wrong with files of that chunk: [(image, message)]."""

  def __getitem__(self, number: int) -> list[tuple[int, str]]:  # type: ignore[override]
    from jaxkd.data.pixels import BadImage

    wrong = []
    for i in self._index(number).tolist():
      try:
        self.images.read(i)
      except BadImage as e:
        wrong.append((i, e.message))
    return wrong


class Stream:
  """`source[start], source[start + 1], ...` in that order, read ahead of being asked for.

  Args:
    workers: processes that read; 0 reads in threads of this one, as many as it has cores. Arrays in memory need
      neither, nor grain: they are read when asked for.

  Raises:
    UserError: grain is not installed.
  """

  def __init__(self, source: Numbered, *, start: int = 0, workers: int = 0):
    in_memory = isinstance(getattr(source, "images", None), np.ndarray)
    self._others = set(multiprocessing.active_children())
    self._workers: set[multiprocessing.process.BaseProcess] = set()
    self._items: Any = (
      (source[number] for number in range(start, len(source)))
      if in_memory
      else _read_ahead(source, start=start, workers=workers)
    )

  def __iter__(self) -> Stream:
    return self

  def __next__(self) -> Any:
    """
    Raises:
      JaxkdError: what the source raised. LoaderFailure: a worker process ended.
    """
    try:
      return next(self._items)
    except (StopIteration, JaxkdError):
      raise
    except Exception as e:
      raise self.failure() or LoaderFailure(f"reading ahead failed: {type(e).__name__}: {e}") from e

  def failure(self) -> LoaderFailure | None:
    """Names a worker process that ended before its time, if one did. May be called by any thread."""
    self._workers |= {
      p for p in multiprocessing.active_children() if p.name.startswith(WORKER)
    } - self._others
    for worker in self._workers:
      if code := worker.exitcode:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return LoaderFailure(
          f"data worker process {worker.pid} {how}",
          "if memory ran out, lower data.workers or train.batch_size; the same command continues the run",
        )
    return None

  def close(self, *, kill: bool = False) -> None:
    """Ends threads and processes: after what they are reading, or at once by `kill`, as after a worker's death."""
    if self.failure() or kill:
      for worker in self._workers:
        worker.kill()
    self._items.close()

  def __enter__(self) -> Stream:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


def _read_ahead(source: Numbered, *, start: int, workers: int) -> Any:
  """grain's iterator; its processes start with its first item."""
  grain = _grain()
  threads = 0 if workers else cores()
  reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
  items = grain.MapDataset.source(source)[start:].to_iter_dataset(reading)
  if workers:
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    items = items.mp_prefetch(options, worker_init_fn=_start_worker)
  return iter(items)


def _grain() -> Any:
  try:
    import grain
    from absl import flags
  except ImportError as e:
    raise UserError(f"streamed data needs grain ({e})", "pip install 'jaxkd[data]'") from e
  if not flags.FLAGS.is_parsed():  # grain's processes read flags, which only absl.app.run would parse
    flags.FLAGS.mark_as_parsed()
  return grain


def shield_workers() -> None:
  """Holds Ctrl-C and SIGTERM back from this thread and the worker processes that it starts, until they ignore both.

  For the thread that takes a stream's first item; the main thread still gets the signals.
  """
  if hasattr(signal, "pthread_sigmask"):
    resource_tracker.ensure_running()  # which would lift the block if it started later
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))


def _start_worker(index: int, count: int) -> None:
  """Ctrl-C and SIGTERM reach a whole process group: the run saves and then ends its workers itself."""
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  """Without this a worker would outlive a run that was killed."""
  parent = multiprocessing.parent_process()
  if parent is not None:
    parent.join()
    os._exit(0)


def in_order(chunks: Chunks, *, workers: int, label: str) -> Iterator[Any]:
  """All items of `chunks`, with a line of progress."""
  from jaxkd.metrics import ProgressLine

  total = len(chunks.images)
  progress = ProgressLine(label, done=0, total=total)
  workers = workers if len(chunks) > FEW else 0
  with contextlib.closing(progress), Stream(chunks, workers=workers) as stream:
    for number, item in enumerate(stream, start=1):
      yield item
      progress.update(min(number * CHUNK, total))
