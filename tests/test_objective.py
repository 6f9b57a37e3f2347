"""Terms: schedules, taps, the zero-loss test of spec 5 and its negative control."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import schema, step
from jaxkd.errors import UserError
from jaxkd.experiment import build
from jaxkd.objective import Objective
from jaxkd.step import frozen_inputs, init_state, make_gradient_shares, make_train_step
from jaxkd.targets import Owner, Target, at_same_depth, spatial
from jaxkd.teachers import Teacher
from jaxkd.terms import Inputs, Term
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
  student = experiment.objective.student
  objective = Objective(
    {"tokens": _term()},
    student=student,
    teachers={"twin": dataclasses.replace(student, name="teacher 'twin'")},
    steps=experiment.steps,
    steps_per_epoch=experiment.steps_per_epoch,
    views={"global": 1, "local": 0},
  )
  return dataclasses.replace(experiment, teachers={"twin": twin}, objective=objective)


def _term():
  config = tiny.config(teachers={"twin": {"weights": "unused"}}, terms={"tokens": {**TOKENS, **TAPS}})
  return config.terms.tokens


def token_loss(view, augment, **views):
  experiment = with_twin(tiny.config(data={"augment": augment, "views": views}), view)
  state, frozen = init_state(experiment), frozen_inputs(experiment)
  batch = {"index": np.arange(16, dtype=np.int32)}
  logged = jax.jit(lambda s, i, f: step.loss_function(experiment, s, i, f)(s.params)[1]["logged"])
  return float(logged(state, batch, frozen)["loss/tokens"])


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


BENT = {"rotation": 30.0, "translate": 0.2, "scale": (0.8, 1.25), "shear": 15.0}


@pytest.mark.parametrize("bent", [*[{k: v} for k, v in BENT.items()], GEOMETRY | BENT], ids="+".join)
def test_no_geometric_operation_separates_student_and_teacher(bent):
  assert abs(token_loss("aligned", bent, global_scale=(0.4, 1.0))) <= 1e-6


def test_bent_images_beside_clean_ones_do_have_a_token_loss():
  assert token_loss("clean", BENT) > 0.1


def test_clean_views_with_flips_misalign_the_tokens():
  assert token_loss("clean", GEOMETRY) > 0.1


def test_photometry_reaches_the_student_only_under_aligned():
  assert token_loss("aligned", GEOMETRY | PHOTOMETRY) > 1e-3


def weights_of(term, steps):
  experiment = build(tiny.config(terms={"ce": tiny.CE | term}, train={"steps": 40}))
  assert experiment.steps_per_epoch == 4
  return [float(experiment.objective.terms[0].weight(s)) for s in steps]


def test_weight_schedules():
  assert weights_of({"weight": 0.5}, [0, 99]) == [0.5, 0.5]
  assert weights_of({"weight": 0.5, "start_epoch": 2.0}, [7, 8]) == [0.0, 0.5]
  ramp = weights_of({"weight": 0.5, "start_epoch": 1.0, "warmup_epochs": 1.0}, [3, 4, 6, 8, 50])
  assert ramp == pytest.approx([0.0, 0.0, 0.25, 0.5, 0.5])
  labels = {"initial_weight": 1.0, "start_epoch": 2.0, "weight": 1.0, "schedule": "cosine", "end_weight": 0.4}
  assert weights_of(labels, [0, 8, 24, 40]) == pytest.approx([1.0, 1.0, 0.7, 0.4])


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
  logits = {"teacher": "ema"}
  kinds = {
    "ce": tiny.CE,
    "soft": {"kind": "soft_kd", **logits},
    "hard": {"kind": "hard_kd", **logits},
    "dkd": {"kind": "dkd", **logits},
    "dist": {"kind": "dist", **logits},
    "ofa": {"kind": "ofa", "student_taps": ("block00/tokens", "logits/cls"), **logits},
    "linear": {"kind": "token_cosine", "head": "linear", "whiten": False, **taps},
    "mlp": {"kind": "token_cosine", "head": "mlp", "metric": "mse", **taps},
    "relation": {"kind": "correlation", **taps},
    "relation_samples": {"kind": "correlation", "over": "samples", **taps},
    "cka": {"kind": "cka", **taps},
    "cka_samples": {"kind": "cka", "over": "samples", "kernel": "rbf", **taps},
    "cls": {"kind": "cka", "over": "samples", "teacher": "ema", "student_taps": ("block01/cls",)},
    "gram": {"kind": "gram", "teacher": "ema", "student_taps": ("block01/normed",)},
    "rkd": {"kind": "rkd", "teacher": "ema", "student_taps": ("features",)},
    "at": {"kind": "attention_transfer", **taps},
    "sp": {"kind": "similarity_preserving", **taps},
    "local": {"kind": "locality", "student_taps": ("block00/attn", "block01/attn"), "targets": (0.5, 0.9)},
  }
  return tiny.config(
    data={"image_size": 16, "augment": PHOTOMETRY},
    teachers={"ema": {"weights": "ema"}},
    train={"ema": 0.9},
    terms=kinds,
  )


def test_every_kind_of_term_is_here():
  assert {t["kind"] for t in every_term().terms.to_dict().values()} == set(schema.KINDS) - {"dino"}


def test_every_kind_of_term_trains_together_and_logs_value_and_weight():
  config = every_term()
  experiment = build(config)
  state, frozen = init_state(experiment), frozen_inputs(experiment)
  batch = {"index": np.arange(16, dtype=np.int32)}
  before = jax.tree.map(np.array, state.params)
  state, metrics = make_train_step(experiment)(state, batch, frozen)
  assert int(metrics["skipped"]) == 0
  for name in config.terms:
    assert np.isfinite(metrics[f"loss/{name}"])
    assert float(metrics[f"weight/{name}"]) == 1.0
  total = sum(float(metrics[f"loss/{n}"]) for n in config.terms)
  assert float(metrics["loss"]) == pytest.approx(total, rel=1e-5)
  changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, state.params)
  assert any(jax.tree.leaves(changed["heads"]["linear"]))


def test_leaving_out_any_one_term_changes_the_update():
  experiment = build(every_term())
  state, frozen = init_state(experiment), frozen_inputs(experiment)
  batch = {"index": np.arange(16, dtype=np.int32)}
  names = [term.name for term in experiment.objective.terms]

  def updates(state, frozen, weights):
    loss_fn = step.loss_function(experiment, state, batch, frozen)
    _, pull = jax.vjp(lambda p: jnp.stack([loss_fn(p)[0][n] for n in names]), state.params)
    return jax.vmap(lambda w: experiment.tx.update(pull(w)[0], state.opt, state.params)[0]["model"])(weights)

  rows = np.concatenate([np.ones((2, len(names))), 1 - np.eye(len(names))]).astype(np.float32)
  found = jax.jit(updates)(state, frozen, rows)
  flat = np.concatenate([np.asarray(x).reshape(len(rows), -1) for x in jax.tree.leaves(found)], axis=1)
  change = np.linalg.norm(flat - flat[0], axis=1) / np.linalg.norm(flat[0])
  assert change[1] == 0  # negative control: the same terms, the same update
  assert {n: c for n, c in zip(names, change[2:], strict=True) if c < 1e-5} == {}


def test_gradient_shares_are_the_norms_of_each_terms_own_gradient():
  config = tiny.config(
    teachers={"ema": {"weights": "ema"}},
    train={"ema": 0.9},
    terms={"ce": tiny.CE, "soft": {"kind": "soft_kd", "teacher": "ema", "weight": 0.0}},
  )
  experiment = build(config)
  state, frozen = init_state(experiment), frozen_inputs(experiment)
  batch = {"index": np.arange(16, dtype=np.int32)}
  shares = make_gradient_shares(experiment)(state, batch, frozen)
  _, metrics = make_train_step(experiment)(state, batch, frozen)
  assert float(shares["soft"]) == 0.0
  assert float(shares["ce"]) == pytest.approx(float(metrics["gradient_norm"]), rel=1e-5)


def test_initial_weights_do_not_depend_on_terms_or_teachers():
  plain, rich = init_state(build(tiny.config(data={"image_size": 16}))), init_state(build(every_term()))
  jax.tree.map(np.testing.assert_array_equal, plain.params["model"], rich.params["model"])


def test_dino_uses_every_view_and_moves_its_centre():
  experiment = build(tiny.dino_config())
  state, frozen = init_state(experiment), frozen_inputs(experiment)
  state, metrics = make_train_step(experiment)(state, {"index": np.arange(16, dtype=np.int32)}, frozen)
  assert np.isfinite(metrics["loss/dino"])
  assert 0 < float(metrics["dino/marginal_entropy"]) <= np.log(16) + 1e-5
  assert np.abs(state.terms["dino"]["sum"]).max() > 0
  assert "accuracy" not in metrics


def test_layers_are_paired_by_relative_depth():
  def owner(layers, taps):
    return Owner("a teacher", dict.fromkeys(taps), 1, layers)

  vit = owner(12, [f"block{i:02d}/tokens" for i in range(12)])
  cnn = owner(4, ["stage0", "stage1", "stage2", "stage3"])
  assert at_same_depth("block03/tokens", 4, vit) == "block11/tokens"
  assert at_same_depth("block00/normed", 4, vit) == "block02/normed"
  assert [at_same_depth(f"block{i:02d}/tokens", 12, cnn) for i in (0, 2, 5, 8, 11)] == [
    "stage0",
    "stage0",
    "stage1",
    "stage2",
    "stage3",
  ]
  assert at_same_depth("stage3", 4, vit) == "block11/tokens"
  assert at_same_depth("features", 4, vit) == "features"


def test_an_ensemble_is_averaged_in_probability_space():
  z = {n: np.random.default_rng(i).normal(size=(3, 4)).astype(np.float32) for i, n in enumerate("ab")}
  term = Term(
    "kd",
    ConfigDict({"kind": "soft_kd", "temperature": 2.0}),
    lambda s: 1.0,
    Owner("the student", {}, 2, 2),
    ("logits/dist",),
    (Target("a", "logits", "raw"), Target("b", "logits", "raw")),
  )
  student = np.random.default_rng(5).normal(size=(3, 4)).astype(np.float32)
  inputs = Inputs(
    {"logits/dist": student}, {n: {"logits": v} for n, v in z.items()}, None, None, {}, {}, {}, None, {}
  )
  p = sum(jax.nn.softmax(v / 2) for v in z.values()) / 2
  q = jax.nn.log_softmax(student / 2)
  expected = 4 * np.mean(np.sum(p * (np.log(p) - q), axis=-1))
  assert float(term(inputs, None)[0]) == pytest.approx(float(expected), rel=1e-5)
  averaged = (z["a"] + z["b"]) / 2  # negative control: averaged logits are something else
  other = dataclasses.replace(term, targets=term.targets[:1])
  wrong = dataclasses.replace(inputs, targets={"a": {"logits": averaged}})
  assert float(other(wrong, None)[0]) != pytest.approx(float(expected), rel=1e-2)


def test_a_teacher_that_saw_unmixed_images_has_its_probabilities_mixed():
  teacher = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
  partner, weight = np.array([3, 2, 1, 0]), np.array([0.9, 0.6, 0.6, 0.9], np.float32)
  options = ConfigDict({"kind": "soft_kd", "temperature": 1.0})
  target = (Target("t", "logits", "raw"),)
  term = Term(
    "kd", options, lambda s: 1.0, Owner("the student", {}, 2, 2), ("logits/dist",), target, frozenset("t")
  )
  p = np.asarray(jax.nn.softmax(teacher))
  mixed = weight[:, None] * p + (1 - weight[:, None]) * p[partner]
  inputs = Inputs(
    {"logits/dist": np.log(mixed)}, {"t": {"logits": teacher}}, None, (partner, weight), {}, {}, {}, None, {}
  )
  assert abs(float(term(inputs, None)[0])) < 1e-6  # a student that says the mixture has no loss
  same = dataclasses.replace(term, unmixed=frozenset())  # a teacher that saw the mixed images is believed
  assert float(same(inputs, None)[0]) > 1e-2


def test_a_teachers_space_can_be_whitened():
  config = tiny.config(
    teachers={"ema": {"weights": "ema"}},
    train={"ema": 0.9},
    terms={"tokens": {"kind": "token_cosine", "teacher": "ema", "head": "linear", "whiten": True, **TAPS}},
  )
  with pytest.raises(UserError, match=r"whiten.*the student's own average"):
    build(config)
