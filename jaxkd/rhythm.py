"""When something is due in a run: all of it follows from the number of steps done, so that a resumed run agrees."""

from __future__ import annotations

from jaxkd import averaging
from jaxkd.experiment import Experiment


class Rhythm:
  """Steps after which a run logs, validates, saves, measures gradient shares and averages its parameters."""

  def __init__(self, experiment: Experiment):
    self.experiment, self.config, self.total = experiment, experiment.config, experiment.steps

  def saves(self, done: int) -> bool:
    return self._due(done, self.config.checkpoint.every_epochs)

  def evaluates(self, done: int) -> bool:
    return self.config.eval.metric != "none" and self._due(done, self.config.eval.every_epochs)

  def logs(self, done: int) -> bool:
    return done == self.total or done % self._row_steps() == 0 or self.evaluates(done)

  def measures_shares(self, done: int) -> bool:
    every = self._row_steps() * self.config.log.shares_every
    return bool(every) and self.logs(done) and (done % every == 0 or done == self.total)

  def averages(self, done: int) -> bool:
    return averaging.is_point(self.experiment, done)

  def steps_in_call(self, step: int) -> int:
    """Steps of the next dispatch from `step` on: `train.steps_per_call`, or 1 where something is due within them.

    Only these two, so that two programs are compiled. A measurement of the gradient shares needs the state before
    its step, so that the step before it is the end of a dispatch too.
    """
    size = self.config.train.steps_per_call
    inside = any(self._is_boundary(step + i) for i in range(1, size))
    return 1 if inside or step + size > self.total or self.measures_shares(step + size) else size

  def _is_boundary(self, done: int) -> bool:
    return self.logs(done) or self.saves(done) or self.averages(done)

  def _due(self, done: int, epochs: float) -> bool:
    return done == self.total or done % self.experiment.every(epochs) == 0

  def _row_steps(self) -> int:
    return self.config.log.every_steps or self.experiment.steps_per_epoch
