"""What each step reads, by its number: made on the spot, or ahead of the step by a thread and on the devices."""

from __future__ import annotations

import functools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxkd import bank as bank_of
from jaxkd import data, sharding
from jaxkd.bank import Bank
from jaxkd.data.streaming import Batches, Stream, shield_workers
from jaxkd.experiment import Experiment
from jaxkd.replicas import order_seed

log = logging.getLogger("jaxkd")

# "index" [b] int32; with fixed geometries "geometry" [v*b] int32; "features" [v*b ...] of banks on disk; of streamed
# data "images" uint8 [b h w c] and "labels" int32 [b].
Batch = dict[str, Any]
AHEAD = 2  # batches that wait on the devices
POLL = 1.0  # seconds between two looks at the worker processes


def make_batch(experiment: Experiment, step: int, banks: dict[str, Bank] | None = None) -> Batch:
  """What step `step` (0-based) reads besides `step.frozen_inputs`, made on the spot as numpy arrays."""
  batch = _picks(experiment, step)
  rows = np.arange(len(batch["index"]) * experiment.config.data.views.global_count)
  features = _features(experiment, batch, _on_disk(experiment, banks), rows)
  if features:
    batch["features"] = features
  if experiment.dataset.placement == "streamed":
    train = experiment.dataset.train
    batch |= {"images": train.images[batch["index"]], "labels": train.labels[batch["index"]]}
  return batch


def _picks(experiment: Experiment, step: int) -> Batch:
  """Which images, and which of their geometries."""
  config, train = experiment.config, experiment.dataset.train
  size, geometries = config.train.batch_size, config.data.augment.geometries
  repeats = config.data.augment.repeats
  seed = order_seed(config)
  index = data.batch_indices(step, examples=len(train), batch_size=size, seed=seed, repeats=repeats)
  batch: Batch = {"index": index}
  if geometries:
    count = size * config.data.views.global_count
    batch["geometry"] = data.geometry_indices(step, count=count, geometries=geometries, seed=seed)
  return batch


def _on_disk(experiment: Experiment, banks: dict[str, Bank] | None) -> dict[str, Bank]:
  return {n: b for n, b in (banks or {}).items() if bank_of.place(experiment, b) == "disk"}


def _features(
  experiment: Experiment, batch: Batch, banks: dict[str, Bank], rows: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
  """What banks on disk hold for `rows` of a batch with all its views."""
  tiled = np.tile(batch["index"], experiment.config.data.views.global_count)
  geometry = batch.get("geometry", np.zeros_like(tiled))
  return {n: b.rows(tiled[rows], geometry[rows]) for n, b in banks.items()}


def place_batch(experiment: Experiment, batch: Batch) -> Batch:
  """A batch of `make_batch` as a step takes it: on the devices, split over all of them."""
  return sharding.shard_batch(batch, experiment.mesh)


def local_rows(split: NamedSharding, batch_size: int, process: int) -> np.ndarray:
  """Which rows of a global batch the devices of `process` hold, ascending."""
  parts = split.devices_indices_map((batch_size,))
  devices: Any = parts  # its keys' type is known to jaxlib only
  mine = [np.arange(batch_size)[devices[d]] for d in devices if d.process_index == process]
  return np.unique(np.concatenate(mine))


def place(rows: np.ndarray, local: np.ndarray, batch_size: int, split: NamedSharding) -> jax.Array:
  """`local`, the rows `rows` of a global batch, as the global array on the devices."""

  def part(index: Any) -> np.ndarray:  # one slice for each axis
    first, last, _ = index[0].indices(batch_size)
    start = np.searchsorted(rows, first)
    return local[start : start + last - first]

  return sharding.assemble((batch_size, *local.shape[1:]), split, part)


class Feed:
  """The batches of steps `start` ... `stop - 1`, asked for in that order.

  With all images (and banks) on the device a batch is a few indices, made when asked for. Otherwise a thread makes
  them ahead and puts them on the devices, split like the batch. Ends what it started when used as a context manager.

  Attributes:
    waited: seconds the caller has spent in `batch` and `batches`.

  Raises:
    UserError: image files are to be streamed and grain is not installed.
  """

  def __init__(
    self,
    experiment: Experiment,
    banks: dict[str, Bank] | None = None,
    start: int = 0,
    stop: int | None = None,
  ):
    self.experiment, self.banks, self.waited = experiment, banks, 0.0
    self.stop = experiment.steps if stop is None else stop
    self.step = start
    self._stream: Stream | None = None
    self._thread: threading.Thread | None = None
    streamed, on_disk = experiment.dataset.placement == "streamed", _on_disk(experiment, banks)
    if streamed:
      self._stream = self._open_stream()
    if streamed or on_disk:
      self._ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=AHEAD)
      self._closed = threading.Event()
      self._thread = threading.Thread(target=self._fill, args=(on_disk,), name="jaxkd-feed", daemon=True)
      self._thread.start()

  def _open_stream(self) -> Stream:
    config, train = self.experiment.config, self.experiment.dataset.train
    size = config.train.batch_size
    self._rows = local_rows(sharding.batch_sharding(self.experiment.mesh), size, jax.process_index())
    workers = config.data.workers
    if workers and isinstance(train.images, np.ndarray):
      log.warning(
        "data.workers=%d is not used: '%s' is in memory, nothing to decode", workers, config.data.name
      )
    repeats = config.data.augment.repeats
    seed = order_seed(config)
    batches = Batches(train.images, train.labels, self.stop, size, seed, self._rows, repeats)
    return Stream(batches, start=self.step, workers=workers)

  def batch(self, step: int) -> Batch:
    """The batch of `step`, which must be the next one.

    Raises:
      ValueError: it is not. JaxkdError: an image that cannot be read. LoaderFailure: a worker process ended.
    """
    if step != self.step or step >= self.stop:
      raise ValueError(f"batch {step} was asked for, the next one is {self.step} of {self.stop}")
    began = time.monotonic()
    found = self._take() if self._thread else self._made(step)
    self.step += 1
    self.waited += time.monotonic() - began
    return found

  def batches(self, first: int, count: int) -> list[Batch]:
    """Those of `count` consecutive steps; see `stack`."""
    return [self.batch(step) for step in range(first, first + count)]

  def __iter__(self) -> Iterator[tuple[int, Batch]]:
    """What is left, as (step, batch)."""
    while self.step < self.stop:
      yield self.step, self.batch(self.step)

  def take_waited(self) -> float:
    """`waited` since the last call."""
    waited, self.waited = self.waited, 0.0
    return waited

  def _made(self, step: int) -> Batch:
    return place_batch(self.experiment, make_batch(self.experiment, step, self.banks))

  def _take(self) -> Batch:
    while True:
      if self._stream and (failure := self._stream.failure()):
        raise failure
      try:
        found = self._ready.get(timeout=POLL)
      except queue.Empty:
        continue
      if isinstance(found, BaseException):
        raise found
      return found

  def _fill(self, on_disk: dict[str, Bank]) -> None:
    """The thread: batches into the queue, until closed or the first error."""
    shield_workers()
    try:
      for step in range(self.step, self.stop):
        if not self._put(self._make(step, on_disk)):
          return
    except BaseException as e:
      self._put(e)

  def _make(self, step: int, on_disk: dict[str, Bank]) -> Batch:
    split = sharding.batch_sharding(self.experiment.mesh)
    batch = _picks(self.experiment, step)
    size = len(batch["index"])
    if self._stream:
      # A worker's arrays lie in shared memory that ends with them, and a device may keep the buffer it is given.
      batch |= {k: place(self._rows, np.array(v), size, split) for k, v in next(self._stream).items()}
    if on_disk:
      count = size * self.experiment.config.data.views.global_count
      rows = local_rows(split, count, jax.process_index())
      features = _features(self.experiment, batch, on_disk, rows)
      batch["features"] = jax.tree.map(lambda a: place(rows, a, count, split), features)
    picks = {k: v for k, v in batch.items() if isinstance(v, np.ndarray)}
    return {**batch, **place_batch(self.experiment, picks)}

  def _put(self, item: Batch | BaseException) -> bool:
    """Whether there was room before the feed was closed."""
    while not self._closed.is_set():
      try:
        self._ready.put(item, timeout=POLL)
        return True
      except queue.Full:
        continue
    return False

  def close(self, *, kill: bool = False) -> None:
    """Ends the thread and the worker processes, these at once by `kill`."""
    if self._thread is None:
      return
    self._closed.set()
    if self._stream and (kill or self._stream.failure()):
      self._stream.close(kill=kill)  # first: the thread may wait for the dead
    self._thread.join(timeout=10 * POLL)
    if self._stream:
      self._stream.close()

  def __enter__(self) -> Feed:
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    self.close(kill=kind is KeyboardInterrupt)


def stack(batches: list[Batch]) -> Batch:
  """Batches on the devices as one with a leading axis of steps, split as before."""
  return jax.tree.map(_stack, *batches)


def _stack(*leaves: Any) -> Any:
  split: Any = leaves[0].sharding  # of `place`
  return _stacker(NamedSharding(split.mesh, P(None, *split.spec)))(leaves)


@functools.lru_cache(maxsize=4)
def _stacker(split: NamedSharding) -> Callable[[tuple[jax.Array, ...]], jax.Array]:
  return jax.jit(lambda leaves: jnp.stack(leaves), out_shardings=split)
