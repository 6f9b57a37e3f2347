"""Live torch.optim beside ours: optimisers over 20 steps, and every schedule torch has. Needs `make parity`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch.optim import lr_scheduler

from jaxkd.plateau import observe, plateau_scale, scale_by_plateau

from . import optim_cases as cases
from .make_optim_goldens import train

pytestmark = pytest.mark.usefixtures("optax_promotion")
TOLERANCE = 1e-6
STEPS, PER_EPOCH, LR = 60, 6, 0.1


@pytest.mark.parametrize("case", cases.CASES)
def test_twenty_steps(case, monkeypatch):
  monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)  # Muon's iterations in float32, as ours
  optim = cases.config(**cases.CASES[case])
  ours = cases.train(optim)
  assert cases.distance(ours, train(optim)) < TOLERANCE
  assert cases.distance(ours, train(optim, decayed=tuple(cases.SHAPES))) > 100 * TOLERANCE


def test_muon_rounds_to_bfloat16_in_torch():
  optim = cases.config(**cases.CASES["muon"])
  assert TOLERANCE < cases.distance(cases.train(optim), train(optim)) < 0.01


def theirs(make, lr=LR):
  """The learning rate before each of the steps."""
  optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
  scheduler, found = make(optimizer), []
  for _ in range(STEPS):
    found.append(optimizer.param_groups[0]["lr"])
    optimizer.step()
    scheduler.step()
  return np.array(found)


def ours(steps=STEPS, **options):
  optim = cases.config(**{"lr": LR, "warmup_epochs": 0.0, **options})
  schedule = cases.schedule_of(optim, steps=steps, steps_per_epoch=PER_EPOCH)
  return np.asarray(jax.vmap(schedule)(jnp.arange(STEPS)))


TORCH = {
  "cosine": (
    {"schedule": "cosine", "final_lr": 0.1},
    lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, eta_min=LR / 10),
  ),
  "constant": ({"schedule": "constant"}, lambda o: lr_scheduler.ConstantLR(o, 1.0, STEPS)),
  "linear": ({"schedule": "linear", "final_lr": 0.2}, lambda o: lr_scheduler.LinearLR(o, 1.0, 0.2, STEPS)),
  "step": (
    {"schedule": "step", "milestones": (2, 4.5), "milestone_gamma": 0.3},
    lambda o: lr_scheduler.MultiStepLR(o, [12, 27], 0.3),
  ),
  "exponential": (
    {"schedule": "exponential", "epoch_gamma": 0.8},
    lambda o: lr_scheduler.ExponentialLR(o, 0.8 ** (1 / PER_EPOCH)),
  ),
  "one_cycle": (
    {"schedule": "one_cycle", "rise": 0.35, "initial_lr": 0.05, "final_lr": 0.001},
    lambda o: lr_scheduler.OneCycleLR(o, LR, STEPS, pct_start=0.35, div_factor=20, final_div_factor=50),
  ),
  "cyclic": (
    {"schedule": "cyclic", "cycle_epochs": 2.5, "initial_lr": 0.2},
    lambda o: lr_scheduler.CyclicLR(o, 0.02, LR, step_size_up=7.5, cycle_momentum=False),
  ),
}
WRONG = {
  "cosine": {"final_lr": 0.0},
  "constant": {"lr": 0.101},
  "linear": {"final_lr": 0.1},
  "step": {"milestones": (2, 4.4)},
  "exponential": {"epoch_gamma": 0.81},
  "one_cycle": {"rise": 0.3},
  "cyclic": {"cycle_epochs": 2.0},
}


@pytest.mark.parametrize("name", TORCH)
def test_schedule(name):
  options, make = TORCH[name]
  np.testing.assert_allclose(ours(**options), theirs(make), rtol=0, atol=1e-6 * LR)
  assert np.abs(ours(**{**options, **WRONG[name]}) - theirs(make)).max() > 1e-3 * LR


@pytest.mark.parametrize("name", ["cosine", "linear", "exponential"])
def test_schedule_after_a_warm_up(name):
  """The same schedules behind torch's LinearLR, where its SequentialLR starts them."""
  options, make = TORCH[name]
  total, warmup = (STEPS, 2 * PER_EPOCH)

  def sequence(optimizer):
    rise = lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=warmup - 1)
    return lr_scheduler.SequentialLR(optimizer, [rise, make(optimizer)], milestones=[warmup])

  found = ours(**options, warmup_epochs=2.0, steps=total + warmup)[:STEPS]
  np.testing.assert_allclose(found, theirs(sequence), rtol=0, atol=1e-6 * LR)


@pytest.mark.parametrize("cooldown", [0, 3])
def test_plateau(cooldown):
  validations = np.minimum(np.arange(STEPS) / 40, 1) + np.random.default_rng(0).normal(size=STEPS) / 10 + 1
  options = {"factor": 0.3, "patience": 2, "cooldown": cooldown}
  optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
  scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", min_lr=LR / 100, **options)
  state = scale_by_plateau().init({})
  for value in validations:
    scheduler.step(value)
    state = observe(state, value, **options, min_scale=0.01)
    assert LR * float(plateau_scale(state)) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
  assert float(plateau_scale(state)) < 0.1
