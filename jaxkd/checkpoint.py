"""Checkpoints that describe themselves: state, config, preprocessing, metrics and a digest of every array.

A step folder holds the Orbax items `state`, `config`, `meta` and `digests`. Orbax commits a step by renaming its
folder, so a kill leaves the previous step; flipped bytes are found by our own digests, because Orbax restores them.

Of several processes that run together the first one writes what it gathers from all, as one process would: a step has
no trace of how many there were, its digests are of whole arrays, and any number of processes reads it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization
from orbax.checkpoint import checkpoint_managers as policies

from jaxkd import distributed, files, sharding
from jaxkd.errors import CannotWrite, IntegrityFailure, UserError

ITEMS = ("state", "config", "meta", "digests")
TEMPORARY = "*.orbax-checkpoint-tmp"
log = logging.getLogger("jaxkd")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """One restored step. `state` is a nested dict of numpy arrays; `meta` is what `train.describe` wrote."""

  path: Path
  step: int
  state: dict[str, Any]
  config: dict[str, Any]
  meta: dict[str, Any]
  digest: str

  @property
  def model_options(self) -> dict[str, Any]:
    """Arguments for `jaxkd.models.create`."""
    return self.meta["model"]

  @property
  def variables(self) -> dict[str, Any]:
    """What the model is applied with: an average of parameters where the run kept one."""
    return inference_variables(self.state, self.meta["inference"])


def inference_variables(state: dict[str, Any], inference: str) -> dict[str, Any]:
  """Variables of the model in a training state: its average ("swa"), moving average ("ema") or last "params"."""
  if inference == "swa":
    return state["average"]
  return {"params": state[inference]["model"], **state["stats"]}


class Checkpoints:
  """The checkpoints of one run folder.

  Args:
    folder: `<run>/checkpoints`. keep: number of newest steps kept.
    metrics: names in the saved metrics; by each of them one best step is kept besides.
  """

  def __init__(self, folder: Path, *, keep: int, metrics: tuple[str, ...]):
    self.folder = folder.absolute()
    kept = [policies.LatestN(keep), *(_best_by(metric) for metric in metrics)]
    policy = policies.AnyPreservationPolicy(kept)
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policy, create=False, multiprocessing_options=_for_this_process()
    )
    for name in ("absl", "asyncio"):  # Orbax logs, with tracebacks, what it then raises
      logging.getLogger(name).setLevel(logging.CRITICAL)
    self.size = 0  # of the last checkpoint, in bytes before compression
    self.writes = distributed.is_first()
    if self.writes:
      with self._disk_errors():
        self._remove_unfinished()
        self.folder.mkdir(parents=True, exist_ok=True)  # Orbax does not, for one of several processes
        self.manager = ocp.CheckpointManager(self.folder, options=options, item_names=ITEMS)

  def save(self, step: int, state, *, config, meta: dict, metrics: dict[str, float]) -> None:
    """Writes `step` in the background from a host copy, so that the caller may donate `state` at once.

    All processes that run together must call it: each has a part of the state.

    Raises:
      CannotWrite: this save could not start, or the one before it failed in the background.
    """
    tree = serialization.to_state_dict(sharding.fetch(state))
    if not self.writes:
      return
    items = {
      "state": ocp.args.StandardSave(tree),
      "config": ocp.args.JsonSave(config.to_dict()),
      "meta": ocp.args.JsonSave({**meta, "step": step, "metrics": metrics}),
      "digests": ocp.args.JsonSave(digests(tree)),
    }
    self.size = sum(x.nbytes for x in jax.tree.leaves(tree))
    with self._disk_errors():
      self.manager.save(step, args=ocp.args.Composite(**items), metrics=metrics, force=True)

  def restore(self, target) -> tuple[Any, int] | None:
    """The newest good step as (state shaped like `target`, step); a bad one is kept as `<step>.corrupt`.

    Returns None when there is no step at all.

    Raises:
      IntegrityFailure: there are steps and none of them is good.
    """
    found: Checkpoint | None = None

    def newest() -> int | None:
      nonlocal found
      found = self._newest_good()
      return found.step if found else None

    step = distributed.from_first(newest)
    if step is None:
      return None
    found = found or read_step(self.folder / str(step))
    return serialization.from_state_dict(target, found.state), step

  def _newest_good(self) -> Checkpoint | None:
    steps = sorted(self.manager.all_steps(), reverse=True)
    for step in steps:
      try:
        return read_step(self.folder / str(step))
      except IntegrityFailure as e:
        bad = _unused(self.folder / f"{step}.corrupt")
        log.warning("%s; kept as %s, falling back", e.message, bad.name)
        (self.folder / str(step)).rename(bad)
        self.manager.reload()
    if steps or any(self.folder.glob("*.corrupt*")):  # never a silent fresh start
      raise IntegrityFailure(f"no good checkpoint in {self.folder}", "start again in another --workdir")
    return None

  def best_step(self, metric: str | None) -> int:
    """The saved step where `metric` is highest (the first of equals), or the newest for None."""
    return distributed.from_first(lambda: self._best_step(metric))

  def _best_step(self, metric: str | None) -> int:
    self.wait()
    steps = sorted(self.manager.all_steps())
    if metric is None:
      return steps[-1]
    return max(steps, key=lambda s: self.metrics(s).get(metric, -np.inf))

  def metrics(self, step: int) -> dict[str, float]:
    """What was saved as the metrics of `step`."""
    return read_json(self.folder / str(step), "meta")["metrics"]

  def wait(self) -> None:
    """Returns once everything is on the disk.

    Raises:
      CannotWrite: a save failed in the background.
    """
    if self.writes:
      with self._disk_errors():
        self.manager.wait_until_finished()

  def close(self) -> None:
    self.wait()
    if self.writes:
      self.manager.close()

  def _remove_unfinished(self) -> None:
    """Removes what a killed or failed save left behind; nothing reads it, and a full disk needs the room."""
    for path in self.folder.glob(TEMPORARY):
      shutil.rmtree(path, ignore_errors=True)

  @contextlib.contextmanager
  def _disk_errors(self) -> Iterator[None]:
    """The operating system's refusals, in whatever wrapping Orbax and TensorStore give them, as CannotWrite."""
    try:
      yield
    except Exception as e:
      number = _os_error(e)
      if number is None:
        raise
      room = f", {shutil.disk_usage(self.folder).free:,} are free" if self.folder.is_dir() else ""
      need = f"; a checkpoint needs {self.size:,} bytes{room}" if self.size else ""
      hint = "free space (earlier steps are intact), then run the same command to continue"
      raise CannotWrite(f"cannot write {self.folder}: {os.strerror(number)}{need}", hint) from e


def _best_by(metric: str) -> policies.BestN:
  return policies.BestN(get_metric_fn=lambda m: m.get(metric, -np.inf), reverse=False, n=1)


def _for_this_process() -> ocp.options.MultiprocessingOptions:
  """Lets Orbax work in one of several processes without waiting for the others."""
  me = jax.process_index()
  return ocp.options.MultiprocessingOptions(
    primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
  )


def _os_error(error: BaseException | None) -> int | None:
  """The errno behind an exception; TensorStore hides it in the text of a ValueError."""
  while error is not None:
    if isinstance(error, OSError) and error.errno:
      return error.errno
    if found := re.search(r"os_error_code='(\d+)'", str(error)):
      return int(found[1])
    error = error.__cause__ or error.__context__
  return None


def _unused(path: Path) -> Path:
  """`path`, or `path2`, `path3`, ...: the first that does not exist."""
  names = (path.with_name(f"{path.name}{i or ''}") for i in (0, *range(2, 1000)))
  return next(p for p in names if not p.exists())


def digests(tree) -> dict[str, str]:
  """sha256 of dtype, shape and bytes of every leaf, by path."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): array_digest(np.asarray(leaf))
    for path, leaf in leaves
  }


def array_digest(array: np.ndarray) -> str:
  """sha256 of dtype, shape and bytes."""
  head = f"{array.dtype}{array.shape}".encode()
  return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


def resolve(path: str | Path) -> Path:
  """The step folder meant by a run folder, its `checkpoints` folder or a step folder.

  Of a run the best step is taken (`best.json`), of a `checkpoints` folder the newest.

  Raises:
    UserError: nothing there is a checkpoint; the message lists the steps that do exist.
  """
  path = Path(path).absolute()
  if (path / "state").is_dir():
    return path
  folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
  steps = sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit() and (p / "state").is_dir())
  if steps:
    best = path / "best.json"
    return folder / str(files.read_json(best)["step"] if best.is_file() else steps[-1])
  beside = (
    sorted(p.name for p in path.parent.glob("*") if (p / "state").is_dir()) if path.parent.is_dir() else []
  )
  hint = (
    f"steps there: {', '.join(beside)}" if beside else "name a run folder or runs/<name>/checkpoints/<step>"
  )
  raise UserError(f"no checkpoint at {path}", hint)


def load(path: str | Path) -> Checkpoint:
  """Reads and verifies the checkpoint at `path` (see `resolve`).

  Raises:
    UserError: no checkpoint there, or one of several replicas. IntegrityFailure: its bytes are damaged.
  """
  step_folder = resolve(path)
  if seeds := read_json(step_folder, "meta").get("replicas"):
    run = step_folder.parent.parent
    raise UserError(
      f"{run} trained {len(seeds)} students at once",
      f"name one of them: {', '.join(f'{run}/seed{s}' for s in seeds)}",
    )
  return read_step(step_folder)


def read_step(path: Path) -> Checkpoint:
  """One step folder as numpy arrays, every array checked against its digest."""
  state = _read_tree(path / "state")
  recorded, meta = read_json(path, "digests"), read_json(path, "meta")
  actual = digests(state)
  if bad := sorted(k for k in {*recorded, *actual} if recorded.get(k) != actual.get(k)):
    raise IntegrityFailure(
      f"checkpoint {path}: digest mismatch in {', '.join(bad[:3])}", "restore another step"
    )
  total = hashlib.sha256("".join(recorded[k] for k in sorted(recorded)).encode()).hexdigest()
  return Checkpoint(path, int(meta["step"]), state, read_json(path, "config"), meta, total)


def read_json(step_folder: Path, item: str) -> dict[str, Any]:
  """The JSON item `config`, `meta` or `digests` of a step."""
  try:
    return files.read_json(step_folder / item / "metadata")
  except (OSError, ValueError) as e:
    raise IntegrityFailure(
      f"checkpoint {step_folder}: cannot read its {item}: {e}", "restore another step"
    ) from e


def _read_tree(path: Path) -> dict[str, Any]:
  """An Orbax tree as numpy arrays, without a model or a target."""
  try:
    options = _for_this_process()
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    with _quiet_orbax(), ocp.Checkpointer(handler, multiprocessing_options=options) as reader:
      shapes = reader.metadata(path).item_metadata.tree
      arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
      return reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=arrays))
  except Exception as e:  # Orbax, TensorStore and JSON each raise their own kinds on damaged files
    raise IntegrityFailure(
      f"checkpoint {path.parent}: unreadable ({type(e).__name__})", "restore another step"
    ) from e


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
  """Hides Orbax's warning that a file is missing which its manager does not write for single items."""
  logger = logging.getLogger("absl")
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(level)


def arrays(found: Checkpoint) -> list[dict[str, Any]]:
  """Name, shape, dtype, size in bytes and digest of every array, in path order."""
  leaves = jax.tree_util.tree_leaves_with_path(found.state)
  return [
    {
      "name": jax.tree_util.keystr(path, simple=True, separator="/"),
      "shape": list(x.shape),
      "dtype": str(x.dtype),
      "bytes": int(x.nbytes),
      "sha256": array_digest(x),
    }
    for path, x in leaves
  ]
