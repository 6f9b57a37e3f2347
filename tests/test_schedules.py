"""Weight schedules against a slow loop, at their joints, and under jit with integer steps."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.schedules import weight_schedule


def moved(shape, start, end, begin, steps, step):
  if shape == "constant" or step <= begin or steps <= begin:
    return start
  if step >= steps:
    return end
  done = (step - begin) / (steps - begin)
  return start + (end - start) * (done if shape == "linear" else (1 - math.cos(math.pi * done)) / 2)


def slow(shape, step, *, start, end, begin_step, warmup_steps, steps, before=0.0):
  if step < begin_step:
    return before
  if step < begin_step + warmup_steps:
    return before + (start - before) * (step - begin_step) / warmup_steps
  return moved(shape, start, end, begin_step + warmup_steps, steps, step)


STAGES = [(0, 0, 20), (5, 0, 20), (0, 4, 20), (3, 6, 20), (5, 15, 20), (30, 0, 20), (0, 0, 1), (4, 4, 0)]


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
def test_every_step_against_a_loop(shape):
  steps = np.arange(40, dtype=np.int32)
  for i, (begin, warmup, total) in enumerate(STAGES):
    options = {"start": 0.7, "end": 0.2, "begin_step": begin, "warmup_steps": warmup, "steps": total}
    options["before"] = float(i % 2)
    values = jax.vmap(weight_schedule(shape, **options))(steps)
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, [slow(shape, s, **options) for s in range(40)], rtol=5e-7, atol=3e-8)


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
def test_joints_are_exact_under_jit(shape):
  options = {"start": 0.3, "end": 0.7, "begin_step": 1_000, "warmup_steps": 333, "steps": 60_000}
  schedule = jax.jit(weight_schedule(shape, **options))
  end = 0.3 if shape == "constant" else 0.7
  joints = {0: 0.0, 999: 0.0, 1_000: 0.0, 1_333: 0.3, 60_000: end, 60_001: end, 2**31 - 1: end}
  for step, expected in joints.items():
    assert schedule(jnp.int32(step)) == np.float32(expected), step
  assert 0 < schedule(jnp.int32(1_001)) < 2e-3
  if shape != "constant":
    assert 0.3 < schedule(jnp.int32(20_000)) < schedule(jnp.int32(40_000)) < 0.7


def test_shapes_differ_where_they_should():
  options = {"start": 1.0, "end": 0.0, "begin_step": 0, "warmup_steps": 0, "steps": 100}
  linear, cosine = (weight_schedule(shape, **options) for shape in ("linear", "cosine"))
  np.testing.assert_allclose([linear(25), cosine(25)], [0.75, 0.5 + math.sqrt(0.125)], rtol=1e-6)
  np.testing.assert_allclose([linear(50), cosine(50)], 0.5, rtol=1e-6)


def test_labels_beside_a_teacher_that_warms_up():
  """The published recipe: label weight 1 while the teacher is silent for 5 of 100 epochs, then 1.0 to 0.4."""
  options = {"begin_step": 5, "warmup_steps": 0, "steps": 100}
  labels = jax.jit(weight_schedule("cosine", start=1.0, end=0.4, before=1.0, **options))
  teacher = jax.jit(weight_schedule("cosine", start=0.0, end=0.6, **options))
  for step, expected in ((0, 1.0), (4, 1.0), (5, 1.0), (100, 0.4), (500, 0.4)):
    assert labels(jnp.int32(step)) == np.float32(expected), step
  both = [float(labels(s) + teacher(s)) for s in range(0, 120, 7)]
  np.testing.assert_allclose(both, 1.0, rtol=1e-6)
  assert float(teacher(4)) == 0.0 < float(teacher(6))


@pytest.mark.parametrize(
  ("shape", "options", "message"),
  [
    ("step", {}, "unknown schedule 'step'; known: constant, linear, cosine"),
    ("linear", {"start": math.nan}, "must be finite, got start nan"),
    ("linear", {"end": math.inf}, "end inf"),
    ("linear", {"warmup_steps": -1}, "warmup_steps is -1"),
    ("linear", {"steps": -5}, "steps is -5"),
  ],
)
def test_refusals(shape, options, message):
  known = {"start": 1.0, "end": 0.5, "warmup_steps": 2, "steps": 10}
  with pytest.raises(ValueError, match=message):
    weight_schedule(shape, begin_step=0, **(known | options))


def test_refuses_a_start_in_the_past():
  with pytest.raises(ValueError, match="begin_step is -1"):
    weight_schedule("linear", start=1.0, end=0.1, begin_step=-1, warmup_steps=0, steps=10)
