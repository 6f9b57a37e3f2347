"""k students of one config that differ in their seed only, trained in one program: `train.replicas`.

Every array of the training state has a leading axis of replicas, and `jax.vmap` carries one run's step over it. The
order of the data is that of `data.order_seed` for all, so that what depends on the batch alone (the images, fixed
geometries, what a frozen teacher makes of them) is computed once: `vmap` leaves it without the axis by itself.

A run keeps its replicas together until it is over. Then each becomes a run folder of its own, `<run>/seed<s>`, as if
it had been trained alone; its metrics are written there from the start.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxkd import checkpoint, files, run_folder
from jaxkd.experiment import Experiment


def single(config: ConfigDict, seed: int) -> ConfigDict:
  """The config of the ordinary run that the replica with `seed` equals."""
  run = copy.deepcopy(config)
  with run.unlocked():
    run.seed, run.train.replicas, run.data.order_seed = int(seed), (), order_seed(config)
  return run


def order_seed(config: ConfigDict) -> int:
  """The seed of the data order."""
  return config.seed if config.data.order_seed < 0 else config.data.order_seed


def folder_of(folder: Path, seed: int) -> Path:
  """Where the replica with `seed` of the run in `folder` is."""
  return folder / f"seed{seed}"


def folders(experiment: Experiment, folder: Path) -> list[Path]:
  """Where the metrics go: one folder for each replica, or the run's own."""
  return [folder_of(folder, s) for s in experiment.replicas] or [folder]


def names(experiment: Experiment, metric: str) -> list[str]:
  """What a checkpoint of the run calls a metric of each replica; of a single run, `metric` itself."""
  return [f"seed{s}/{metric}" for s in experiment.replicas] or [metric]


def own_metrics(metrics: dict[str, float], seed: int) -> dict[str, float]:
  """Of the metrics of a checkpoint those of one replica, by their usual names."""
  prefix = f"seed{seed}/"
  return {k.removeprefix(prefix): v for k, v in metrics.items() if k.startswith(prefix)}


def over(experiment: Experiment, function: Callable) -> Callable:
  """`function(state, batch, frozen)` of one run, for all replicas: state and seed's key have the axis, nothing else."""
  if not experiment.replicas:
    return function

  def each(state, batch, frozen):
    axes = {name: 0 if name == "key" else None for name in frozen}
    return jax.vmap(function, in_axes=(0, None, axes))(state, batch, frozen)

  return each


def stack(trees: list[Any]) -> Any:
  """Trees of one structure as one of numpy arrays with a leading axis."""
  return jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(trees))


def each(experiment: Experiment, tree: Any) -> list[Any]:
  """A device tree of the run as one for every replica; of a single run, as it is."""
  return [_take(tree, np.int32(i)) for i in range(len(experiment.replicas))] or [tree]


@jax.jit
def _take(tree: Any, index: jax.Array) -> Any:
  return jax.tree.map(lambda leaf: leaf[index], tree)


def rows(metrics: dict[str, Any]) -> list[dict[str, float]]:
  """Fetched metrics, each a scalar or [k], as one row for every replica."""
  flat = {name: np.asarray(value).reshape(-1) for name, value in metrics.items()}
  return [dict(zip(flat, map(float, values), strict=True)) for values in zip(*flat.values(), strict=True)]


def part(config: ConfigDict, folder: Path, index: int, steps: set[int]) -> Path:
  """Writes the replica `index` of the run in `folder` as a run folder of its own, with checkpoints of `steps`."""
  seed = config.train.replicas[index]
  own, run = folder_of(folder, seed), single(config, seed)
  shutil.rmtree(own / "checkpoints", ignore_errors=True)  # of an earlier attempt
  run_folder.write_head(run, own)
  checkpoints = checkpoint.Checkpoints(own / "checkpoints", keep=max(len(steps), 1), metrics=())
  for step in sorted(steps):
    found = checkpoint.read_step(folder / "checkpoints" / str(step))
    state = jax.tree.map(lambda leaf: np.asarray(leaf[index]), found.state)
    metrics = own_metrics(found.meta["metrics"], seed)
    meta = {k: v for k, v in found.meta.items() if k not in ("replicas", "metrics", "step")}
    checkpoints.save(step, state, config=run, meta=meta, metrics=metrics)
  checkpoints.close()
  return own


def finish(experiment: Experiment, folder: Path, end: int, best: list[int]) -> None:
  """Writes the folder of every replica, done: with its best checkpoint and that of the last step, `end`."""
  for index, step in enumerate(best):
    own = part(experiment.config, folder, index, {step, end})
    metrics = checkpoint.read_json(own / "checkpoints" / str(step), "meta")["metrics"]
    files.write_json(own / "best.json", {"step": step, "metrics": metrics})
    files.write_json(own / "DONE", {"step": end})


def mean(found: list[dict[str, float]]) -> dict[str, float]:
  """Means over replicas of what all of them have."""
  common = [name for name in found[0] if all(name in row for row in found)]
  return {name: float(np.mean([row[name] for row in found])) for name in common}
