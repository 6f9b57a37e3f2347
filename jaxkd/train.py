"""The only training loop."""

from __future__ import annotations

import dataclasses
import logging
import math
import signal
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxkd import (
  averaging,
  diagnosis,
  distributed,
  evaluation,
  files,
  memory,
  replay,
  replicas,
  run_folder,
  sharding,
  stopping,
  warm_start,
)
from jaxkd.bank import open_bank
from jaxkd.checkpoint import Checkpoints, inference_variables
from jaxkd.errors import Interrupted, JaxkdError, NumericFailure, Preempted, is_out_of_memory
from jaxkd.experiment import Experiment, build, coupled_terms
from jaxkd.feed import Feed, make_batch, stack
from jaxkd.lock import Lock
from jaxkd.metrics import MetricLog, ProgressLine
from jaxkd.rhythm import Rhythm
from jaxkd.signals import Signals
from jaxkd.step import (
  TrainState,
  frozen_inputs,
  init_state,
  make_batch_statistics,
  make_gradient_shares,
  make_train_step,
  make_train_steps,
  place,
)
from jaxkd.writers import Writer, open_writers

log = logging.getLogger("jaxkd")
# DINO's signs of collapse, after the first tenth of the run: equal features; every output uniform (entropy of a
# sample near log k); every output the same prototype (entropy of the mean near 0). The entropies are shares of log k.
COLLAPSED_SPREAD, COLLAPSED_ENTROPY = 1e-2, 1e-3
# Where no step waits in a queue: a step's buffers are allocated when it is dispatched, so that a queue holds several
# sets of them, and the cores that would prepare a step are those that compute the one before.
UNQUEUED = ("cpu",)


@dataclasses.dataclass(frozen=True)
class Result:
  """What a finished run leaves: its folder, last step and `best.json` (step and metrics)."""

  folder: Path
  step: int
  best: dict[str, Any]


def train(config: ConfigDict, folder: Path, *, label: str = "") -> Result:
  """Trains, or resumes, the run in `folder`; returns at once if it is done.

  Processes that run together all call it, and see the same folder.

  Raises:
    UserError: the folder holds another run, is in use, or the processes differ. NumericFailure: divergence or collapse.
    OutOfDeviceMemory: the step is too large. CannotWrite: the disk is full or read-only.
    Preempted, Interrupted: a signal arrived; the state is saved.
  """
  folder = folder.absolute()
  run_folder.check_folder(config, folder)
  state = distributed.from_first(lambda: run_folder.state(folder))
  if state == "done":
    return Result(folder, *run_folder.finished(folder))
  experiment = build(config)
  initial = None if state == "begun" else warm_start.load(experiment)
  with Lock(folder) as lock, run_folder.FileLog(folder / "train.log"):
    if lock.note:
      log.warning(lock.note)
    distributed.agree(run_folder.facts(experiment))
    run_folder.write_head(config, folder)
    return _Loop(experiment, folder, label or folder.name, initial).run()


class _Loop:
  """One run: dispatches steps, and fetches the metrics of a step only after the next one was dispatched."""

  def __init__(
    self, experiment: Experiment, folder: Path, label: str, initial: warm_start.WarmStart | None = None
  ):
    self.experiment, self.folder, self.label = experiment, folder, label
    self.config, self.total = experiment.config, experiment.steps
    self.banks = {n: open_bank(experiment, n) for n, t in experiment.teachers.items() if t.bank}
    metric = self.config.eval.metric
    # By which of a checkpoint's metrics its best one is chosen: one name for each replica.
    self.tracked = replicas.names(experiment, f"validation/{metric}") if metric != "none" else []
    keep = self.config.checkpoint.keep
    self.checkpoints = Checkpoints(folder / "checkpoints", keep=keep, metrics=tuple(self.tracked))
    # Resume order: 1. fresh state for the shapes, 2. newest good checkpoint into it, or else the weights of
    # `init`, 3. metric rows after its step dropped, 4. data order and randomness follow from the step alone.
    state = init_state(experiment)
    restored = self.checkpoints.restore(jax.device_get(state))
    if initial and not restored:
      initial.record(folder)
      state = initial.apply(state)
    state, self.start = restored or (state, 0)
    self.state: TrainState = place(experiment, state)
    self.rhythm = Rhythm(experiment)
    self.stopped_early = stopping.is_over(experiment, self.state)
    self.end = self.start  # steps done; those of the whole run once it is over
    # The average has no statistics of BatchNorm of its own (yet).
    self.stale = averaging.points(experiment, self.start) > 0 and bool(state.stats)
    self.folders = replicas.folders(experiment, folder)
    self.metrics = [MetricLog(f, resume_step=self.start, writers=self._writers(f)) for f in self.folders]
    self.pending: tuple[int, dict[str, Any]] | None = None
    self.rows: list[dict[str, float]] = []  # the last one of each replica
    self.warned: set[tuple[str, str]] = set()
    self.clock = (self.start, time.monotonic())

  def _writers(self, folder: Path) -> dict[str, Writer]:
    project = self.config.log.wandb
    wandb = {"project": project, "config": self.config.to_dict(), "label": self.label} if project else None
    return open_writers(folder, resume_step=self.start, wandb=wandb)

  def run(self) -> Result:
    log.info("step %d of %d", self.start, self.total)
    self._announce()
    self.progress = ProgressLine(
      self.label, done=self.start, total=self.total, unit_size=self.config.train.batch_size
    )
    try:
      with Signals() as signals, Feed(self.experiment, self.banks, self.start) as self.feed:
        self._steps(signals)
      return self._finish()
    except RuntimeError as e:
      if not is_out_of_memory(e):
        raise
      raise memory.explain(self.experiment, e, self._step_bytes()) from e
    finally:
      self.progress.close()
      for metrics in self.metrics:
        metrics.close()
      if not isinstance(sys.exception(), KeyboardInterrupt):  # a second Ctrl-C waits for no save
        self.checkpoints.close()

  def _step_bytes(self) -> int | None:
    """What the training step needs on each device, as far as the compiler says."""
    frozen = vars(self).get("frozen")
    if frozen is None:  # it did not get so far as to have the data and teachers on the device
      return None
    batch = make_batch(self.experiment, self.start, self.banks)
    return memory.step_bytes(make_train_step(self.experiment), self.state, batch, frozen)

  def _steps(self, signals: Signals) -> None:
    self.frozen, rhythm = frozen_inputs(self.experiment, self.banks), self.rhythm
    while not self._is_over():
      count = rhythm.steps_in_call(self.end)
      done = self.end + count
      metrics = self._advance(count)
      self._flush()
      if rhythm.averages(done):
        self._average(done)
      if rhythm.logs(done):
        found = self._validate() if rhythm.evaluates(done) else {}
        self.pending = (done, {**metrics, **found})
      stop = signals.due()
      if rhythm.saves(done) or self._is_over() or stop:
        self._flush()
        if not stop or self._is_over():
          self._refresh()
        self._save(done)
      if stop and not self._is_over():
        self._stop(done, stop)
    self._flush()

  def _is_over(self) -> bool:
    return self.end >= self.total or self.stopped_early

  def _advance(self, count: int) -> dict[str, jax.Array]:
    """Dispatches the next `count` steps; returns the metrics of the last of them."""
    if jax.default_backend() in UNQUEUED:
      jax.block_until_ready(self.state.step)
    first, self.end = self.end, self.end + count
    batches = self.feed.batches(first, count)
    extra = {}
    if len(self.config.terms) > 1 and self.rhythm.measures_shares(self.end):
      extra = make_gradient_shares(self.experiment)(self.state, batches[0], self.frozen)
    if count == 1:
      self.state, metrics = make_train_step(self.experiment)(self.state, batches[0], self.frozen)
    else:
      self.state, metrics = make_train_steps(self.experiment)(self.state, stack(batches), self.frozen)
    return {**metrics, **{f"gradient/{k}": v for k, v in extra.items()}}

  def _average(self, done: int) -> None:
    """Takes the parameters after `done` steps into the SWA."""
    count = sharding.put(
      np.int32(averaging.points(self.experiment, done) - 1), sharding.replicated(self.experiment.mesh)
    )
    average = averaging.make_absorb(self.experiment)(self.state.average, self.state.params["model"], count)
    self.state, self.stale = self.state.replace(average=average), bool(self.state.stats)

  def _refresh(self) -> None:
    """Gives the SWA statistics of BatchNorm of its own, from one epoch of training batches."""
    if self.stale:
      statistics = make_batch_statistics(self.experiment)
      with Feed(self.experiment, self.banks, stop=self.experiment.steps_per_epoch) as batches:
        average = averaging.refresh(self.state.average, statistics, self.frozen, batches)
      self.state, self.stale = self.state.replace(average=average), False

  def _inference(self) -> str:
    """Which parameters of the state a model is used with."""
    if averaging.points(self.experiment, self.end) and not self.stale:
      return "swa"
    return "ema" if self.experiment.uses_ema else "params"

  def _announce(self) -> None:
    """Says at the start what a user might not expect of the numbers."""
    every, size = self.config.optim.accumulate, self.config.train.batch_size
    for term, what in (coupled_terms(self.config) if every > 1 else {}).items():
      log.warning(
        "optim.accumulate=%d: term '%s' sees %s of %d images, not of the %d of an update",
        *(every, term, what, size, every * size),
      )

  def _flush(self) -> None:
    """Fetches and writes the row that waits, if one does."""
    if self.pending is None:
      return
    (step, metrics), self.pending = self.pending, None
    found = replicas.rows(jax.device_get(metrics))
    now = time.monotonic()
    rate = (step - self.clock[0]) * self.config.train.batch_size / max(now - self.clock[1], 1e-9)
    share = self.feed.take_waited() / max(now - self.clock[1], 1e-9)
    self.clock = (step, now)
    head = {"step": step, "epoch": step / self.experiment.steps_per_epoch}
    times = {"time/images_per_s": rate, "time/data_wait": share}
    self.rows = [{**head, **row, **times} for row in found]
    for i, row in enumerate(self.rows):
      self._guard(i)
      self.metrics[i].write(row)
      for key, message in diagnosis.warnings(row).items():
        if key not in self.warned:
          self.warned.add(key)
          log.warning(message)
    notes = {
      k.split("/")[-1]: v
      for k, v in replicas.mean(self.rows).items()
      if k == "loss" or k.startswith("validation/")
    }
    text = " ".join(f"{k} {v:.4f}" for k, v in notes.items())
    log.info("step %d %s", step, text)
    self.progress.update(step, text)

  def _guard(self, index: int) -> None:
    """Stops a run of which a replica diverged, or its self-supervised targets collapsed."""
    row = self.rows[index]
    if row["skipped"] > self.config.train.max_skips:
      fault = self._fault(index)
      bad = [t for t, is_bad in zip(self.config.terms, fault["terms"], strict=True) if is_bad]
      what = f"terms {', '.join(bad)}" if bad else "gradient"
      self._fail(
        index,
        f"{int(row['skipped'])} updates up to step {row['step']} were not finite ({what})",
        "lower optim.lr",
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
          index,
          f"terms.{name} collapsed at step {row['step']}: output entropy {sample:.3f}, entropy of the mean output "
          f"{marginal:.3f} (shares of log k), feature spread {spread:.4f}",
          f"lower optim.lr or terms.{name}.teacher_temperature",
        )

  def _fault(self, index: int) -> dict[str, Any]:
    return jax.device_get(replicas.each(self.experiment, self.state.fault)[index])

  def _fail(self, index: int, message: str, hint: str) -> None:
    """Leaves FAILED.json and what `replay` needs; the failing step is the last faulty one, or that of the row."""
    fault, row, folder = int(self._fault(index)["step"]), self.rows[index], self.folders[index]
    failing = fault if fault >= 0 else int(row["step"]) - 1
    experiment = self.experiment
    if seeds := experiment.replicas:  # the one that failed, as if it had been trained alone
      message = f"seed {seeds[index]}: {message}"
      self.checkpoints.wait()
      if distributed.is_first():
        replicas.part(self.config, self.folder, index, run_folder.steps(self.folder))
      experiment = dataclasses.replace(experiment, config=replicas.single(self.config, seeds[index]))
    kept = replay.save_failure(experiment, folder, row, failing)
    failure = {"error": message, "hint": hint, "step": failing + 1, "replay": str(kept), "row": row}
    for path in {folder, self.folder}:
      files.write_json(path / "FAILED.json", failure)
    raise NumericFailure(message, f"{hint}; look at it with: jaxkd replay {folder}")

  def _validate(self) -> dict[str, Any]:
    """Scores on the validation images: numbers, of replicas an array of each."""
    self._refresh()
    variables = inference_variables(vars(self.state), self._inference())
    found = [self._scores(v) for v in replicas.each(self.experiment, variables)]
    if self.experiment.replicas:  # nothing follows them, see config_rules
      return {k: np.array([scores[k] for scores in found]) for k in found[0]}
    value = found[0][f"validation/{self.config.eval.metric}"]
    self.state = stopping.after_validation(self.experiment, self.state, value)
    self.stopped_early = stopping.is_over(self.experiment, self.state)
    return found[0]

  def _scores(self, variables) -> dict[str, float]:
    experiment = self.experiment
    split = experiment.dataset.validation
    logits = evaluation.head_logits(
      experiment.model,
      variables,
      split,
      mean=experiment.dataset.mean,
      std=experiment.dataset.std,
      batch_size=self.config.eval.batch_size,
      mesh=experiment.mesh,
    )
    found = {
      f"validation/accuracy_{head}": evaluation.accuracy(z, split.labels) for head, z in logits.items()
    }
    primary = logits.get("mean", logits["cls"])
    found["validation/accuracy"] = evaluation.accuracy(primary, split.labels)
    found["validation/loss"] = evaluation.log_likelihood_loss(logits["cls"], split.labels)
    return found

  def _save(self, done: int) -> None:
    metrics = {}
    if self.rows and self.rows[0]["step"] == done:
      kept = [k for k in self.rows[0] if not k.startswith("time/")]
      metrics = {
        n: row[k] for k in kept for n, row in zip(replicas.names(self.experiment, k), self.rows, strict=True)
      }
    for rows in self.metrics:
      rows.sync()
    self.checkpoints.save(
      done, self.state, config=self.config, meta=describe(self.experiment, self._inference()), metrics=metrics
    )

  def _stop(self, done: int, number: int) -> None:
    self.checkpoints.wait()
    files.write_json(self.folder / "PREEMPTED", {"step": done, "signal": signal.Signals(number).name})
    error: type[JaxkdError] = Interrupted if number == signal.SIGINT else Preempted
    raise error(f"stopped at step {done} of {self.total}; saved", "run the same command again to continue")

  def _finish(self) -> Result:
    metrics: list[str | None] = [*self.tracked] or [None] * len(self.folders)
    bests = [self.checkpoints.best_step(metric) for metric in metrics]
    found = {"step": bests[0], "metrics": self.checkpoints.metrics(bests[0])}
    if seeds := self.experiment.replicas:
      each = [replicas.own_metrics(self.checkpoints.metrics(b), s) for b, s in zip(bests, seeds, strict=True)]
      found = {"step": self.end, "metrics": replicas.mean(each)}
      if distributed.is_first():
        replicas.finish(self.experiment, self.folder, self.end, bests)
    files.write_json(self.folder / "best.json", found)
    files.write_json(self.folder / "DONE", {"step": self.end, **self._why_early()})
    return Result(self.folder, self.end, found)

  def _why_early(self) -> dict[str, str]:
    """For DONE: why the run is shorter than its config says; nothing if it is not."""
    if self.end >= self.total:
      return {}
    patience, metric = self.config.train.patience, self.config.eval.metric
    reason = f"stopped early: {patience} validations without a better {metric}"
    log.info("%s, at step %d of %d", reason, self.end, self.total)
    return {"reason": reason}


def describe(experiment: Experiment, inference: str) -> dict[str, Any]:
  """What a checkpoint says of itself besides its config: enough to evaluate it from its path alone."""
  dataset = experiment.dataset
  model = {k: list(v) if isinstance(v, tuple) else v for k, v in experiment.model_options.items()}
  return {
    "model": model,
    "inference": inference,
    "image_shape": list(dataset.image_shape),
    "num_classes": model["num_classes"],
    "class_names": list(dataset.class_names),
    "mean": list(dataset.mean),
    "std": list(dataset.std),
    "data_digest": dataset.digest,
    "teachers": {n: t.digest for n, t in experiment.teachers.items()},
    **({"replicas": list(experiment.replicas)} if experiment.replicas else {}),
  }
