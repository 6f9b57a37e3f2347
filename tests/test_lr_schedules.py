"""Learning rates: hard numbers of the first release, closed forms in float64, warm-up, accumulation, scaling."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import schema
from jaxkd.errors import UserError
from jaxkd.optim import make_schedule, peak_lr

from .parity.optim_cases import config

pytestmark = pytest.mark.usefixtures("optax_promotion")
STEPS, PER_EPOCH, LR = 40, 5, 0.1
AT = (0, 1, 2, 3, 4, 7, 11, 12)
RISE = ["0x1.11111p-5", "0x1.11111p-4", "0x1.99999ap-4", "0x1.99999ap-4"]
# float32 values at AT of 12 steps, 3 per epoch, lr 0.1, as they were before the other schedules came.
FIRST = {
  "cosine": ({}, [*RISE, "0x1.8d3fc2p-4", "0x1.e0b9eep-5", "0x1.8b3ae6p-9", "0x0p+0"]),
  "constant": ({"schedule": "constant"}, RISE + 4 * ["0x1.99999ap-4"]),
  "no warm-up": (
    {"final_lr": 0.1, "warmup_epochs": 0.0},
    [
      *("0x1.99999ap-4", "0x1.9351c8p-4", "0x1.80e7e4p-4", "0x1.639d2cp-4"),
      *("0x1.3d70a4p-4", "0x1.63261ep-5", "0x1.79eca2p-7", "0x1.47ae16p-7"),
    ],
  ),
}


@pytest.mark.parametrize("name", FIRST)
def test_first_release(name):
  options, hexadecimal = FIRST[name]
  schedule = make_schedule(config(lr=LR, **options), steps=12, steps_per_epoch=3)
  found = [float(schedule(jnp.int32(t))) for t in AT]
  np.testing.assert_array_almost_equal_nulp(
    np.float32(found), np.float32([*map(float.fromhex, hexadecimal)]), 1
  )


def values(steps=STEPS, per_epoch=PER_EPOCH, **options):
  schedule = make_schedule(
    config(**{"lr": LR, "warmup_epochs": 0.0, **options}), steps=steps, steps_per_epoch=per_epoch
  )
  return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(steps)))


def one_cycle(t, total=STEPS, rise=0.3, first=0.04, last=0.0):
  top = rise * total - 1
  if t <= top:
    return LR * (first + (1 - first) * math.sin(math.pi / 2 * t / top) ** 2)
  return LR * (last + (1 - last) * math.cos(math.pi / 2 * (t - top) / (total - 1 - top)) ** 2)


CLOSED = {
  "cosine": ({"final_lr": 0.2}, lambda t: LR * (0.2 + 0.8 * math.cos(math.pi / 2 * t / STEPS) ** 2)),
  "linear": ({"final_lr": 0.2}, lambda t: LR * (1 - 0.8 * t / STEPS)),
  "step": ({"milestones": (2, 4)}, lambda t: LR if t < 10 else LR / 10 if t < 20 else LR / 100),
  "exponential": ({"epoch_gamma": 0.5}, lambda t: LR * 0.5 ** (t / PER_EPOCH)),
  "one_cycle": ({}, one_cycle),
  "cyclic": (
    {"cycle_epochs": 2.0, "initial_lr": 0.1},
    lambda t: LR * (0.1 + 0.9 * min(t % 10, 10 - t % 10) / 5),
  ),
}


@pytest.mark.parametrize("name", CLOSED)
def test_closed_form(name):
  options, formula = CLOSED[name]
  expected = np.array([formula(t) for t in range(STEPS)])
  np.testing.assert_allclose(values(schedule=name, **options), expected, rtol=0, atol=2e-7 * LR)
  late = np.array([formula(t + 1) for t in range(STEPS)])
  assert np.abs(values(schedule=name, **options) - late).max() > 1e-3 * LR, "one step late is seen"


@pytest.mark.parametrize("name", ["cosine", "constant", "linear", "exponential", "one_cycle", "cyclic"])
def test_a_warm_up_rises_to_the_schedule_s_first_value(name):
  found = values(schedule=name, steps=STEPS + 15, warmup_epochs=3.0)
  alone = values(schedule=name)
  np.testing.assert_allclose(found[:15], alone[0] * np.arange(1, 16) / 15, rtol=1e-6)
  np.testing.assert_allclose(found[15:], alone, rtol=1e-6, atol=1e-9)


def test_milestones_count_from_the_start_of_training():
  found = values(schedule="step", milestones=(2.0, 4.0), warmup_epochs=1.0)
  np.testing.assert_allclose(found[[4, 9, 10, 19, 20]], LR * np.array([1, 1, 0.1, 0.1, 0.01]), rtol=1e-6)


@pytest.mark.parametrize("name", CLOSED)
def test_steps_of_an_update_share_its_rate(name):
  """Accumulating 4 batches has the rates of a loader whose batches are 4 times as large."""
  options = {"schedule": name, "warmup_epochs": 1.5, **CLOSED[name][0]}
  found = values(steps=80, per_epoch=20, accumulate=4, **options).reshape(20, 4)
  np.testing.assert_array_equal(found, np.tile(values(steps=20, per_epoch=5, **options)[:, None], (1, 4)))
  assert np.abs(found[:, 0] - values(steps=80, per_epoch=20, **options)[::4]).max() > 1e-3 * LR


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("name", CLOSED)
def test_short_runs_are_finite_and_within_the_peak(name, steps):
  schedule = make_schedule(
    config(lr=LR, schedule=name, **CLOSED[name][0]), steps=steps, steps_per_epoch=PER_EPOCH
  )
  found = np.array([float(schedule(t)) for t in range(steps + 2)])
  assert np.isfinite(found).all()
  assert (found >= 0).all()
  assert found.max() <= LR * (1 + 1e-6)


def test_peak_follows_the_images_per_update():
  assert peak_lr(config(lr=0.3)) == 0.3
  assert peak_lr(config(lr=0.3), 64) == 0.3
  assert peak_lr(config(lr=0.3, lr_scaling="linear"), 64) == pytest.approx(0.075)
  assert peak_lr(config(lr=0.3, lr_scaling="linear", accumulate=8), 64) == pytest.approx(0.6)
  assert peak_lr(config(lr=0.3, lr_scaling="sqrt"), 64) == pytest.approx(0.15)
  assert peak_lr(config(lr=0.3, lr_scaling="sqrt", lr_base_batch=16), 64) == pytest.approx(0.6)
  scaled = config(lr=LR, lr_scaling="linear", schedule="constant", warmup_epochs=0.0)
  assert float(make_schedule(scaled, steps=4, steps_per_epoch=2, batch_size=512)(0)) == pytest.approx(2 * LR)


def test_scaling_without_a_batch_size():
  with pytest.raises(ValueError, match="needs the batch size"):
    make_schedule(config(lr_scaling="sqrt"), steps=4, steps_per_epoch=2)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"schedule": "step"}, r"milestones \(\) are not increasing"),
    ({"schedule": "step", "milestones": (3, 2)}, r"\(3.0, 2.0\) are not increasing"),
    ({"schedule": "step", "milestones": (0, 2)}, "out of range"),
    ({"schedule": "step", "milestones": ("3",)}, "is not a number"),
    ({"schedule": "step", "milestones": (3, 5), "warmup_epochs": 4.0}, "3 lies in the warm-up of 4 epochs"),
    ({"accumulate": 5}, "accumulate=5: 4 steps make no update"),
  ],
)
def test_refused(options, message):
  with pytest.raises(UserError, match=message):
    make_schedule(config(**options), steps=4, steps_per_epoch=2)


def test_docs_name_every_field_and_choice():
  text = (Path(__file__).parents[1] / "docs" / "schedules.md").read_text()
  known = {*schema.OPTIM, *schema.OPTIM["name"].choices, *schema.OPTIM["schedule"].choices} - {"lr"}
  assert {name for name in known if f"`{name}" not in text} == set()
