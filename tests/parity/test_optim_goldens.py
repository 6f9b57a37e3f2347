"""Our optimisers against what torch.optim left in goldens/optim.npz; no torch needed."""

from functools import cache

import jax
import numpy as np
import optax
import pytest

from jaxkd import muon, optim

from . import optim_cases as cases
from .test_goldens import FOLDER

pytestmark = pytest.mark.usefixtures("optax_promotion")
# torch divides by 1 - beta**t in float64, optax in float32; and torch clips to a norm of 1 / (1 + 1e-6).
TOLERANCE = 1e-6


@cache
def golden(case):
  with np.load(FOLDER / "optim.npz") as file:
    return {name.removeprefix(f"{case}/"): file[name] for name in file if name.startswith(f"{case}/")}


@pytest.mark.parametrize("case", cases.CASES)
def test_twenty_steps_equal_torch(case):
  assert cases.distance(cases.train(cases.config(**cases.CASES[case])), golden(case)) < TOLERANCE


@pytest.mark.parametrize(
  ("case", "changes"),
  [
    ("adam", {"name": "adamw"}),
    ("adam", {"decay_all": True}),
    ("adamw", {"beta2": 0.99}),
    ("adamw", {"decay_all": True}),
    ("adamw_eps", {"eps": 1e-8}),
    ("sgd_nesterov", {"nesterov": False}),
    ("sgd_momentum", {"nesterov": True}),
    ("sgd", {"clip": 0.0}),
    ("rmsprop_momentum", {"rmsprop_momentum": 0.0}),
    ("muon", {"name": "adamw"}),
  ],
)
def test_a_wrong_option_is_seen(case, changes):
  wrong = cases.train(cases.config(**{**cases.CASES[case], **changes}))
  assert cases.distance(wrong, golden(case)) > 100 * TOLERANCE


def test_eps_under_the_root_is_seen(monkeypatch):
  def inside(decay, eps, eps_in_sqrt):
    return _scale_by_rms(decay, eps, eps_in_sqrt=True)

  _scale_by_rms = optax.scale_by_rms
  monkeypatch.setattr(optax, "scale_by_rms", inside)
  wrong = cases.train(cases.config(**cases.CASES["rmsprop"]))
  assert cases.distance(wrong, golden("rmsprop")) > 100 * TOLERANCE


def test_momentum_after_the_learning_rate_is_seen(monkeypatch):
  """optax.rmsprop's order, which differs as soon as the learning rate changes."""

  def other_order(config, lr, **_):
    return optax.chain(
      optax.clip_by_global_norm(config.clip),
      optax.add_decayed_weights(config.weight_decay, optim.decay_mask),
      optax.rmsprop(
        lr, config.rmsprop_decay, config.eps, eps_in_sqrt=False, momentum=config.rmsprop_momentum
      ),
    )

  monkeypatch.setattr(cases, "make_optimizer", other_order)
  wrong = cases.train(cases.config(**cases.CASES["rmsprop_momentum"]))
  assert cases.distance(wrong, golden("rmsprop_momentum")) > 100 * TOLERANCE


def test_muon_of_optax_is_another(monkeypatch):
  def scale_by_muon(momentum):
    theirs = optax.contrib.scale_by_muon(
      beta=momentum,
      weight_dimension_numbers=lambda tree: jax.tree.map(
        lambda _: optax.contrib.MuonDimensionNumbers(), tree
      ),
    )
    factor = optax.stateless_with_tree_map(lambda g, _: 0.2 * max(g.shape) ** 0.5 * g)
    return optax.chain(theirs, factor)

  monkeypatch.setattr(muon, "scale_by_muon", scale_by_muon)
  wrong = cases.train(cases.config(**cases.CASES["muon"]))
  assert cases.distance(wrong, golden("muon")) > 100 * TOLERANCE
