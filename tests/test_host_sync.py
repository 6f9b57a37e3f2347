"""Between logging points the loop neither waits for the device nor moves anything without saying so.

Two witnesses. jax's transfer guard refuses implicit copies to the device, in the thread of the feed too. Reading from
the device is free of copies on CPU, so the guard does not see it; but who reads waits. Steps are therefore made slow,
and when one is dispatched the one before must still be running: on accelerators, for on CPU the loop keeps no queue.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import train
from tests import tiny

pytestmark = pytest.mark.usefixtures("optax_promotion")

PRODUCTS, SIDE = 60, 512  # what a slow step computes first: a tenth of a second or more on one core
POINTS = ("_validate", "_save", "_refresh")  # where the loop may read, wait and move


@jax.jit
def slowed(number: jax.Array) -> jax.Array:
  """`number`, after a while."""
  x = jnp.full((SIDE, SIDE), number.astype(jnp.float32) * 1e-9)
  for _ in range(PRODUCTS):
    x = x @ x
  return number + (x[0, 0] * 0).astype(number.dtype)


class Watch:
  """Runs of the real loop with slow steps under the guard."""

  def __init__(self, monkeypatch):
    self.patch, self.last, self.waited, self.steps = monkeypatch, None, [], 0
    self.patch.setattr(train, "UNQUEUED", ())  # as on an accelerator
    self.compiled: set[str] = set()
    for name in ("make_train_step", "make_train_steps"):
      self.patch.setattr(train, name, self._watched(getattr(train, name)))
    self.patch.setattr(train, "make_gradient_shares", self._compiling(train.make_gradient_shares))
    self.patch.setattr(train.averaging, "make_absorb", self._compiling(train.averaging.make_absorb))
    self.patch.setattr(train, "frozen_inputs", self._allowed(train.frozen_inputs))
    for name in POINTS:
      self.patch.setattr(train._Loop, name, self._point(getattr(train._Loop, name)))
    self.patch.setattr(train._Loop, "_flush", self._flushing(train._Loop._flush))
    self.patch.setattr(train._Loop, "_steps", self._guarded(train._Loop._steps))

  def run(self, config, folder):
    self.last, self.waited, self.steps = None, [], 0
    return train.train(config, folder)

  def _watched(self, make):
    def made(experiment):
      step = make(experiment)

      def run(state, batch, frozen):
        if self.last is not None and self.last.is_ready():
          self.waited.append(self.steps)
        state, metrics = step(state.replace(step=slowed(state.step)), batch, frozen)
        self.last, self.steps = metrics["loss"], self.steps + 1
        return state, metrics

      return run

    return made

  def _allowed(self, function):
    def allowed(*arguments):
      with jax.transfer_guard("allow"):
        return function(*arguments)

    return allowed

  def _compiling(self, make):
    """Whose first call is compiled, while the device may get done with its step."""

    def made(experiment):
      if make.__name__ not in self.compiled:
        self.compiled.add(make.__name__)
        self.last = None
      return make(experiment)

    return made

  def _point(self, method):
    def point(*arguments):
      self.last = None
      return self._allowed(method)(*arguments)

    return point

  def _flushing(self, method):
    """A row is read while the next step runs: no reason to have waited for that one."""

    def flush(loop):
      return self._allowed(method)(loop) if loop.pending else method(loop)

    return flush

  def _guarded(self, method):
    def guarded(*arguments):
      before = jax.config.jax_transfer_guard
      jax.config.update("jax_transfer_guard", "disallow")  # of every thread
      try:
        return method(*arguments)
      finally:
        jax.config.update("jax_transfer_guard", before)

    return guarded


@pytest.fixture
def watch(monkeypatch):
  jax.block_until_ready(slowed(jnp.zeros((), jnp.int32)))
  return Watch(monkeypatch)


LIVE_TEACHER = {
  "teachers": {"t": {"weights": "ema", "view": "same"}},
  "terms": {"ce": tiny.CE, "kd": {"kind": "soft_kd", "teacher": "t", "student_taps": ("logits/cls",)}},
  "train": {"ema": 0.9},
  "log": {"shares_every": 2},
}


@pytest.mark.parametrize(
  "more",
  [
    {"data": {"augment": {"crop": 1, "geometries": 2}}, **LIVE_TEACHER},
    {"data": {"placement": "streamed"}, "train": {"swa_start_epoch": 2.0}},
    {"train": {"steps_per_call": 2}},
  ],
  ids=["indices", "streamed_swa", "two_steps_per_call"],
)
def test_the_loop_runs_ahead_of_the_device(watch, tmp_path, more):
  """Sixteen steps; rows after 4, 8, 12 and 16, a validation in the middle."""
  assert watch.run(tiny.config(**more), tmp_path / "run").step == 16
  assert watch.steps >= 8
  assert watch.waited == []


def test_on_cpu_no_step_waits_in_a_queue(watch, tmp_path):
  """Its buffers would be a second set. The other witness of `waited`: here it must see the loop wait."""
  watch.patch.setattr(train, "UNQUEUED", ("cpu",))
  assert watch.run(tiny.config(), tmp_path / "run").step == 16
  assert len(watch.waited) > 8


@pytest.mark.parametrize("read", [float, np.asarray, jax.block_until_ready], ids=lambda f: f.__name__)
def test_reading_in_the_loop_is_seen(watch, tmp_path, read):
  """The negative control: each way to look at a loss makes the loop wait."""
  original = train._Loop._advance

  def reading(loop, count):
    metrics = original(loop, count)
    read(metrics["loss"])
    return metrics

  watch.patch.setattr(train._Loop, "_advance", reading)
  watch.run(tiny.config(), tmp_path / "run")
  assert len(watch.waited) > 8


def test_moving_in_the_loop_is_refused(watch, tmp_path):
  """The negative control: host arrays handed to a compiled step."""
  watch.patch.setattr("jaxkd.feed.place_batch", lambda experiment, batch: batch)
  with pytest.raises(Exception, match="Disallowed host-to-device"):
    watch.run(tiny.config(), tmp_path / "run")


def test_moving_in_the_thread_of_the_feed_is_refused(watch, tmp_path):
  watch.patch.setattr(
    "jaxkd.sharding.assemble", lambda shape, split, part: jax.make_array_from_callback(shape, split, part)
  )
  with pytest.raises(Exception, match="Disallowed host-to-device"):
    watch.run(tiny.config(data={"placement": "streamed"}), tmp_path / "run")
