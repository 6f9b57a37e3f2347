"""Terms: schedules, taps, the zero-loss test of spec 5 and its negative control."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import step
from jaxkd.errors import UserError
from jaxkd.experiment import build
from jaxkd.objective import Objective, spatial
from jaxkd.step import frozen_inputs, init_state, make_gradient_shares, make_train_step
from jaxkd.teachers import Teacher
from tests import tiny

pytestmark = pytest.mark.usefixtures("optax_promotion")

TOKENS = {"kind": "token_cosine", "teacher": "twin", "head": "none"}
TAPS = {
  "student_taps": ("block00/tokens", "block01/tokens"),
  "teacher_taps": ("block00/tokens", "block01/tokens"),
}
GEOMETRY = {"crop": 2, "flip": True}
PHOTOMETRY = {"brightness": 0.4, "contrast": 0.4, "cutout": 3}


def with_twin(config, view):
  """An experiment whose teacher is the student itself, as it is at step 0."""
  experiment = build(config)
  state = init_state(experiment)
  twin = Teacher(
    "twin",
    experiment.model,
    {"params": state.params["model"]},
    view,
    experiment.dataset.mean,
    experiment.dataset.std,
    "",
  )
  objective = Objective(
    {"tokens": _term()},
    steps_per_epoch=experiment.steps_per_epoch,
    special={"student": 2, "twin": 2},
    views={"global": 1, "local": 0},
  )
  return dataclasses.replace(experiment, teachers={"twin": twin}, objective=objective)


def _term():
  config = tiny.config(teachers={"twin": {"weights": "unused"}}, terms={"tokens": {**TOKENS, **TAPS}})
  return config.terms.tokens


def token_loss(view, augment):
  experiment = with_twin(tiny.config(data={"augment": augment}), view)
  state, frozen = init_state(experiment), frozen_inputs(experiment)
  index = np.arange(16, dtype=np.int32)
  logged = jax.jit(lambda s, i, f: step.loss_function(experiment, s, i, f)(s.params)[1]["logged"])
  return float(logged(state, index, frozen)["loss/tokens"])


@pytest.mark.parametrize(
  ("view", "augment"),
  [
    ("aligned", GEOMETRY),
    ("aligned", {"crop": 2}),
    ("aligned", {"flip": True}),
    ("same", GEOMETRY | PHOTOMETRY),
    ("clean", {}),
  ],
)
def test_a_student_that_equals_its_teacher_has_no_token_loss(view, augment):
  assert abs(token_loss(view, augment)) <= 1e-6


def test_clean_views_with_flips_misalign_the_tokens():
  assert token_loss("clean", GEOMETRY) > 0.1


def test_photometry_reaches_the_student_only_under_aligned():
  assert token_loss("aligned", GEOMETRY | PHOTOMETRY) > 1e-3


def weights_of(term, steps):
  config = tiny.config(terms={"ce": tiny.CE | term})
  objective = Objective(config.terms, steps_per_epoch=10, special={}, views={"global": 1, "local": 0})
  return [float(objective.terms[0].weight(s)) for s in steps]


def test_weight_schedules():
  assert weights_of({"weight": 0.5}, [0, 99]) == [0.5, 0.5]
  assert weights_of({"weight": 0.5, "start_epoch": 2.0}, [19, 20]) == [0.0, 0.5]
  ramp = weights_of({"weight": 0.5, "start_epoch": 1.0, "warmup_epochs": 1.0}, [9, 10, 15, 20, 50])
  assert ramp == pytest.approx([0.0, 0.0, 0.25, 0.5, 0.5])


def test_spatial_drops_special_tokens_and_keeps_rows():
  tokens = jnp.arange(2 * 6 * 1.0).reshape(2, 6, 1)
  assert spatial(tokens, 2)[0, :, :, 0].tolist() == [[2, 3], [4, 5]]
  with pytest.raises(UserError, match="5 patch tokens"):
    spatial(tokens, 1)


@pytest.mark.parametrize(
  ("term", "message"),
  [
    (
      {"student_taps": ("block09/tokens",), "teacher_taps": ("block00/tokens",)},
      r"the student has no 'block09/tokens'",
    ),
    ({"student_taps": ("block00/tokens",), "teacher_taps": ("stage0",)}, r"teacher 'ema' has no 'stage0'"),
    ({"student_taps": ("features",), "teacher_taps": ("features",)}, "has no tokens"),
  ],
)
def test_wrong_taps_are_found_before_anything_compiles(term, message):
  config = tiny.config(
    teachers={"ema": {"weights": "ema"}},
    train={"ema": 0.9},
    terms={"cka": {"kind": "cka", "teacher": "ema", **term}},
  )
  with pytest.raises(UserError, match=message):
    build(config)


def every_term():
  taps = {"teacher": "ema", **TAPS}
  kinds = {
    "ce": tiny.CE,
    "soft": {"kind": "soft_kd", "teacher": "ema"},
    "hard": {"kind": "hard_kd", "teacher": "ema"},
    "linear": {"kind": "token_cosine", "head": "linear", **taps},
    "mlp": {"kind": "token_cosine", "head": "mlp", "metric": "mse", **taps},
    "relation": {"kind": "correlation", **taps},
    "relation_samples": {"kind": "correlation", "over": "samples", **taps},
    "cka": {"kind": "cka", **taps},
    "cka_samples": {"kind": "cka", "over": "samples", "kernel": "rbf", **taps},
    "gram": {"kind": "gram", **taps},
  }
  return tiny.config(
    data={"image_size": 16, "augment": PHOTOMETRY},
    teachers={"ema": {"weights": "ema"}},
    train={"ema": 0.9},
    terms=kinds,
  )


def test_every_kind_of_term_trains_together_and_logs_value_weight_and_share():
  config = every_term()
  experiment = build(config)
  state, frozen = init_state(experiment), frozen_inputs(experiment)
  index = np.arange(16, dtype=np.int32)
  shares = make_gradient_shares(experiment)(state, index, frozen)
  before = jax.tree.map(np.array, state.params)
  state, metrics = make_train_step(experiment)(state, index, frozen)
  assert int(metrics["skipped"]) == 0
  assert set(shares) == set(config.terms)
  for name in config.terms:
    assert np.isfinite(metrics[f"loss/{name}"])
    assert float(metrics[f"weight/{name}"]) == 1.0
    assert float(shares[name]) > 0
  total = sum(float(metrics[f"loss/{n}"]) for n in config.terms)
  assert float(metrics["loss"]) == pytest.approx(total, rel=1e-5)
  changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, state.params)
  assert any(jax.tree.leaves(changed["heads"]["linear"]))


def test_gradient_shares_are_the_norms_of_each_terms_own_gradient():
  config = tiny.config(
    teachers={"ema": {"weights": "ema"}},
    train={"ema": 0.9},
    terms={"ce": tiny.CE, "soft": {"kind": "soft_kd", "teacher": "ema", "weight": 0.0}},
  )
  experiment = build(config)
  state, frozen = init_state(experiment), frozen_inputs(experiment)
  index = np.arange(16, dtype=np.int32)
  shares = make_gradient_shares(experiment)(state, index, frozen)
  _, metrics = make_train_step(experiment)(state, index, frozen)
  assert float(shares["soft"]) == 0.0
  assert float(shares["ce"]) == pytest.approx(float(metrics["gradient_norm"]), rel=1e-5)


def test_initial_weights_do_not_depend_on_terms_or_teachers():
  plain, rich = init_state(build(tiny.config(data={"image_size": 16}))), init_state(build(every_term()))
  jax.tree.map(np.testing.assert_array_equal, plain.params["model"], rich.params["model"])


def test_dino_uses_every_view_and_moves_its_centre():
  experiment = build(tiny.dino_config())
  state, frozen = init_state(experiment), frozen_inputs(experiment)
  state, metrics = make_train_step(experiment)(state, np.arange(16, dtype=np.int32), frozen)
  assert np.isfinite(metrics["loss/dino"])
  assert 0 < float(metrics["dino/marginal_entropy"]) <= np.log(16) + 1e-5
  assert np.abs(state.terms["dino"]["sum"]).max() > 0
  assert "accuracy" not in metrics
