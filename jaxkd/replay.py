"""What a failed run leaves to look into, and running its failing step again.

`failed/replay.npz` holds the step (0-based) whose batch failed, the indices of its images (and of their fixed
geometries), the data of the run's PRNG key, and the metrics of the row that stopped the run. Randomness is a function
of (seed, step), so these and the last good checkpoint are the whole story.
"""

from __future__ import annotations

import dataclasses
import io
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import serialization

from jaxkd import checkpoint, files, step, stopping
from jaxkd import config as configs
from jaxkd.bank import open_bank
from jaxkd.checkpoint import Checkpoint
from jaxkd.errors import IntegrityFailure, UserError
from jaxkd.experiment import Experiment, build
from jaxkd.feed import make_batch, place_batch
from jaxkd.metrics import read
from jaxkd.step import TrainState

NAME = "failed/replay.npz"
ROW = "row/"


@dataclasses.dataclass(frozen=True)
class Replay:
  """`rows`: metrics of the steps run again, by the number of steps done. `recorded`: of the row that stopped the run.

  `step`: the failing one, 0-based. `start`: the steps of the checkpoint it was run from, 0 for a fresh state.
  """

  step: int
  start: int
  rows: dict[int, dict[str, float]]
  recorded: dict[str, float]

  @property
  def differing(self) -> dict[str, tuple[float, float]]:
    """Recorded metrics that came out otherwise, as {name: (then, now)}; two NaNs are equal."""
    now = self.rows[int(self.recorded["step"])]
    both = {k: (v, now[k]) for k, v in self.recorded.items() if k in now}
    return {k: (a, b) for k, (a, b) in both.items() if a != b and not (math.isnan(a) and math.isnan(b))}

  @property
  def reproduces(self) -> bool:
    """Whether the same values are finite, and those equal to a part in a thousand (`differing`: to the last bit)."""
    return all(math.isfinite(a) and math.isclose(a, b, rel_tol=1e-3) for a, b in self.differing.values())


def save_failure(experiment: Experiment, folder: Path, row: dict[str, float], failing: int) -> Path:
  """Writes `failed/replay.npz` for the failing step (0-based) and the row in which it was noticed."""
  batch = make_batch(experiment, failing)
  arrays = {f"batch/{k}": v for k, v in batch.items() if isinstance(v, np.ndarray)}
  values = {f"{ROW}{k}": np.float64(v) for k, v in row.items() if not k.startswith("time/")}
  key = np.asarray(jax.random.key_data(step.seed_key(experiment)))
  path = folder / NAME
  files.write_npz(path, {"step": np.int64(failing), "key": key, **arrays, **values})
  return path


def replay(folder: Path) -> Replay:
  """Runs the failed run in `folder` again from its last good checkpoint to the step that failed. Writes nothing.

  Raises:
    UserError: no failed run there, or its data are not the same any more. IntegrityFailure: no good checkpoint.
  """
  saved = _read(folder)
  experiment = build(configs.from_json((folder / "config.json").read_text()))
  failing, banks = (
    int(saved["step"]),
    {n: open_bank(experiment, n) for n, t in experiment.teachers.items() if t.bank},
  )
  recorded = {k.removeprefix(ROW): float(v) for k, v in saved.items() if k.startswith(ROW)}
  _check_batch(experiment, saved, folder)
  state, start = _restored(experiment, folder, failing)
  run, frozen, rows = step.make_train_step(experiment), step.frozen_inputs(experiment, banks), {}
  validated = _validated(experiment, folder)
  for number in range(start, max(failing + 1, int(recorded["step"]))):
    state, metrics = run(state, place_batch(experiment, make_batch(experiment, number, banks)), frozen)
    rows[number + 1] = {k: float(v) for k, v in jax.device_get(metrics).items()}
    if number + 1 in validated:
      state = stopping.after_validation(experiment, state, validated[number + 1])
  return Replay(failing, start, rows, recorded)


def _read(folder: Path) -> dict[str, np.ndarray]:
  path = folder / NAME
  if not path.is_file():
    raise UserError(
      f"{folder} has no {NAME}: nothing failed there", "name the folder of a run that ended in exit 3"
    )
  try:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
      return dict(found)
  except Exception as e:  # zip and numpy each raise their own kinds on damaged files
    raise IntegrityFailure(f"{path} is unreadable ({type(e).__name__})", "run the training again") from e


def _check_batch(experiment: Experiment, saved: dict[str, np.ndarray], folder: Path) -> None:
  """The batch of the failing step must be the one that failed, or the replay would be of something else."""
  now: dict[str, Any] = {f"batch/{k}": v for k, v in make_batch(experiment, int(saved["step"])).items()}
  now["key"] = np.asarray(jax.random.key_data(step.seed_key(experiment)))
  wrong = [
    k
    for k, v in now.items()
    if isinstance(v, np.ndarray) and (k not in saved or not np.array_equal(v, saved[k]))
  ]
  if wrong:
    raise UserError(
      f"{folder}: {', '.join(wrong)} of step {saved['step']} is not what failed",
      "use the same data and version",
    )


def _validated(experiment: Experiment, folder: Path) -> dict[int, float]:
  """What validations gave, by step: they steer the learning rate on a plateau."""
  name = f"validation/{experiment.config.eval.metric}"
  rows = read(folder / "metrics.jsonl")
  return {int(row["step"]): row[name] for row in rows if name in row}


def _restored(experiment: Experiment, folder: Path, failing: int) -> tuple[TrainState, int]:
  """(state on the mesh, its step): the newest good checkpoint not after the failing step, or a fresh state."""
  state, start = step.init_state(experiment), 0
  if found := _newest_good(folder / "checkpoints", failing):
    state, start = serialization.from_state_dict(jax.device_get(state), found.state), found.step
  return step.place(experiment, state), start


def _newest_good(folder: Path, failing: int) -> Checkpoint | None:
  steps = sorted((int(p.name) for p in folder.glob("*") if p.name.isdigit()), reverse=True)
  for number in (n for n in steps if n <= failing):
    try:
      return checkpoint.read_step(folder / str(number))
    except IntegrityFailure:
      continue  # left where it is: a replay changes nothing
  return None
