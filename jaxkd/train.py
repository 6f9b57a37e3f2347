"""The only training loop."""

from __future__ import annotations

import dataclasses
import logging
import math
import signal
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxkd import diagnosis, evaluation, files, run_folder
from jaxkd.bank import open_bank
from jaxkd.checkpoint import Checkpoints
from jaxkd.errors import Interrupted, JaxkdError, NumericFailure, Preempted
from jaxkd.experiment import Experiment, build
from jaxkd.metrics import MetricLog, ProgressLine
from jaxkd.signals import Signals
from jaxkd.step import (
  TrainState,
  frozen_inputs,
  init_state,
  make_batch,
  make_gradient_shares,
  make_train_step,
  place,
)

log = logging.getLogger("jaxkd")
# DINO's signs of collapse, after the first tenth of the run: equal features; every output uniform (entropy of a
# sample near log k); every output the same prototype (entropy of the mean near 0). The entropies are shares of log k.
COLLAPSED_SPREAD, COLLAPSED_ENTROPY = 1e-2, 1e-3


@dataclasses.dataclass(frozen=True)
class Result:
  """What a finished run leaves: its folder, last step and `best.json` (step and metrics)."""

  folder: Path
  step: int
  best: dict[str, Any]


def train(config: ConfigDict, folder: Path, *, label: str = "") -> Result:
  """Trains, or resumes, the run in `folder`; returns at once if it is done.

  Raises:
    UserError: the folder holds another run. NumericFailure: divergence or collapse.
    Preempted, Interrupted: a signal arrived; the state is saved.
  """
  folder = folder.absolute()
  run_folder.check_folder(config, folder)
  if (folder / "DONE").exists():
    return Result(folder, *run_folder.finished(folder))
  experiment = build(config)
  run_folder.write_head(config, folder)
  with run_folder.FileLog(folder / "train.log"):
    return _Loop(experiment, folder, label or folder.name).run()


class _Loop:
  """One run: dispatches steps, and fetches the metrics of a step only after the next one was dispatched."""

  def __init__(self, experiment: Experiment, folder: Path, label: str):
    self.experiment, self.folder, self.label = experiment, folder, label
    self.config, self.total = experiment.config, experiment.steps
    self.banks = {n: open_bank(experiment, n) for n, t in experiment.teachers.items() if t.bank}
    metric = self.config.eval.metric
    tracked = None if metric == "none" else f"validation/{metric}"
    self.checkpoints = Checkpoints(folder / "checkpoints", keep=self.config.checkpoint.keep, metric=tracked)
    # Resume order: 1. fresh state for the shapes, 2. newest good checkpoint into it, 3. metric rows after its step
    # dropped, 4. data order and randomness follow from the step alone.
    state = init_state(experiment)
    restored = self.checkpoints.restore(jax.device_get(state))
    state, self.start = restored or (state, 0)
    self.state: TrainState = place(experiment, state)
    self.metrics = MetricLog(folder, resume_step=self.start)
    self.pending: tuple[int, dict[str, Any]] | None = None
    self.row: dict[str, float] = {}
    self.warned: set[tuple[str, str]] = set()
    self.clock = (self.start, time.monotonic())

  def run(self) -> Result:
    log.info("step %d of %d", self.start, self.total)
    self.progress = ProgressLine(
      self.label, done=self.start, total=self.total, unit_size=self.config.train.batch_size
    )
    try:
      with Signals() as signals:
        self._steps(signals)
      return self._finish()
    finally:
      self.progress.close()
      self.metrics.close()
      self.checkpoints.close()

  def _steps(self, signals: Signals) -> None:
    train_step, frozen = make_train_step(self.experiment), frozen_inputs(self.experiment, self.banks)
    shares = make_gradient_shares(self.experiment) if len(self.config.terms) > 1 else None
    for step in range(self.start, self.total):
      batch, done = make_batch(self.experiment, step, self.banks), step + 1
      extra = shares(self.state, batch, frozen) if shares and self._measures_shares(done) else {}
      self.state, metrics = train_step(self.state, batch, frozen)
      self._flush()
      if self._logs(done):
        found = self._validate() if self._evaluates(done) else {}
        self.pending = (done, {**metrics, **{f"gradient/{k}": v for k, v in extra.items()}, **found})
      if self._due(done, self.config.checkpoint.every_epochs) or signals.received:
        self._flush()
        self._save(done)
      if signals.received and done < self.total:
        self._stop(done, signals.received)
    self._flush()

  def _due(self, done: int, epochs: float) -> bool:
    return done == self.total or done % self.experiment.every(epochs) == 0

  def _evaluates(self, done: int) -> bool:
    return self.config.eval.metric != "none" and self._due(done, self.config.eval.every_epochs)

  def _logs(self, done: int) -> bool:
    every = self.config.log.every_steps or self.experiment.steps_per_epoch
    return done == self.total or done % every == 0 or self._evaluates(done)

  def _measures_shares(self, done: int) -> bool:
    every = (self.config.log.every_steps or self.experiment.steps_per_epoch) * self.config.log.shares_every
    return bool(every) and self._logs(done) and (done % every == 0 or done == self.total)

  def _flush(self) -> None:
    """Fetches and writes the row that waits, if one does."""
    if self.pending is None:
      return
    (step, metrics), self.pending = self.pending, None
    row = {k: float(v) for k, v in jax.device_get(metrics).items()}
    now = time.monotonic()
    rate = (step - self.clock[0]) * self.config.train.batch_size / max(now - self.clock[1], 1e-9)
    self.clock = (step, now)
    self.row = {
      "step": step,
      "epoch": step / self.experiment.steps_per_epoch,
      **row,
      "time/images_per_s": rate,
    }
    self._guard()
    self.metrics.write(self.row)
    for key, message in diagnosis.warnings(self.row).items():
      if key not in self.warned:
        self.warned.add(key)
        log.warning(message)
    notes = {k.split("/")[-1]: v for k, v in self.row.items() if k == "loss" or k.startswith("validation/")}
    text = " ".join(f"{k} {v:.4f}" for k, v in notes.items())
    log.info("step %d %s", step, text)
    self.progress.update(step, text)

  def _guard(self) -> None:
    """Stops a run that diverged or whose self-supervised targets collapsed."""
    row = self.row
    if row["skipped"] > self.config.train.max_skips:
      bad = [t for t in self.config.terms if not math.isfinite(row[f"loss/{t}"])]
      what = f"terms {', '.join(bad)}" if bad else "gradient"
      self._fail(
        f"{int(row['skipped'])} updates up to step {row['step']} were not finite ({what})", "lower optim.lr"
      )
    for name, term in self.config.terms.items():
      if term.kind != "dino" or row["step"] < self.total / 10:
        continue
      sample, marginal = (
        row[f"{name}/{k}"] / math.log(term.prototypes) for k in ("entropy", "marginal_entropy")
      )
      spread = row[f"{name}/feature_spread"]
      if spread < COLLAPSED_SPREAD or sample > 1 - COLLAPSED_ENTROPY or marginal < COLLAPSED_ENTROPY:
        self._fail(
          f"terms.{name} collapsed at step {row['step']}: output entropy {sample:.3f}, entropy of the mean output "
          f"{marginal:.3f} (shares of log k), feature spread {spread:.4f}",
          f"lower optim.lr or terms.{name}.teacher_temperature",
        )

  def _fail(self, message: str, hint: str) -> None:
    files.write_json(self.folder / "FAILED.json", {"error": message, "hint": hint, "row": self.row})
    raise NumericFailure(message, hint)

  def _validate(self) -> dict[str, float]:
    experiment = self.experiment
    split, params = experiment.dataset.validation, (self.state.ema or self.state.params)["model"]
    logits = evaluation.head_logits(
      experiment.model,
      {"params": params, **self.state.stats},
      split,
      mean=experiment.dataset.mean,
      std=experiment.dataset.std,
      batch_size=self.config.eval.batch_size,
    )
    found = {
      f"validation/accuracy_{head}": evaluation.accuracy(z, split.labels) for head, z in logits.items()
    }
    primary = logits.get("mean", logits["cls"])
    found["validation/accuracy"] = evaluation.accuracy(primary, split.labels)
    found["validation/loss"] = evaluation.log_likelihood_loss(logits["cls"], split.labels)
    return found

  def _save(self, done: int) -> None:
    metrics = (
      {k: v for k, v in self.row.items() if not k.startswith("time/")} if self.row.get("step") == done else {}
    )
    self.checkpoints.save(
      done, self.state, config=self.config, meta=describe(self.experiment), metrics=metrics
    )

  def _stop(self, done: int, number: int) -> None:
    self.checkpoints.wait()
    files.write_json(self.folder / "PREEMPTED", {"step": done, "signal": signal.Signals(number).name})
    error: type[JaxkdError] = Interrupted if number == signal.SIGINT else Preempted
    raise error(f"stopped at step {done} of {self.total}; saved", "run the same command again to continue")

  def _finish(self) -> Result:
    best = self.checkpoints.best_step()
    found = {"step": best, "metrics": self.checkpoints.metrics(best)}
    files.write_json(self.folder / "best.json", found)
    files.write_json(self.folder / "DONE", {"step": self.total})
    return Result(self.folder, self.total, found)


def describe(experiment: Experiment) -> dict[str, Any]:
  """What a checkpoint says of itself besides its config: enough to evaluate it from its path alone."""
  dataset = experiment.dataset
  model = {k: list(v) if isinstance(v, tuple) else v for k, v in experiment.model_options.items()}
  return {
    "model": model,
    "inference": "ema" if experiment.uses_ema else "params",
    "image_shape": list(dataset.image_shape),
    "num_classes": model["num_classes"],
    "class_names": list(dataset.class_names),
    "mean": list(dataset.mean),
    "std": list(dataset.std),
    "data_digest": dataset.digest,
    "teachers": {n: t.digest for n, t in experiment.teachers.items()},
  }
