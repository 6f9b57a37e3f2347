"""Rules between keys, and the notes about values that do nothing."""

from pathlib import Path

import pytest

from jaxkd import config as configs
from jaxkd.errors import UserError
from tests import tiny

EMA = {"teachers": {"t": {"weights": "ema", "view": "same"}}, "train": {"ema": 0.9}}


def with_term(**term):
  return {**EMA, "terms": {"ce": tiny.CE, "x": {"teacher": "t", **term}}}


@pytest.mark.parametrize(
  ("more", "message", "hint"),
  [
    (
      {"optim": {"schedule": "step"}},
      r"optim.milestones \(\) are not increasing",
      "schedule=step needs some",
    ),
    ({"optim": {"schedule": "step", "milestones": (3, 2)}}, "not increasing", "optim.milestones=15,25"),
    ({"optim": {"schedule": "step", "milestones": (0.5,)}}, "0.5 lies in the warm-up of 1 epochs", "warm up"),
    ({"optim": {"freeze": ("(",)}}, r"optim.freeze: '\(' is not a regular expression", "block00"),
    ({"train": {"ema_end": 0.99}}, "train.ema_end=0.99 without a moving average", "train.ema=0.996"),
    ({"model": {"name": "vit", "num_classes": 0}}, "'cross_entropy' needs classes", "num_classes"),
    (
      {
        "model": {"name": "vit", "num_classes": 0},
        **with_term(kind="dino"),
        "terms": {"d": {"kind": "dino", "teacher": "t"}},
        "data": {"views": {"global_count": 2}},
      },
      "eval.metric=accuracy_cls of a model without classes",
      "eval.metric=none",
    ),
    ({"terms": {"ce": {**tiny.CE, "weight": 0.0}}}, "every weight is 0", "terms.ce.weight=1"),
    (with_term(kind="cross_entropy"), "'cross_entropy' has no teacher, 't' was given", "soft_kd"),
    (
      with_term(kind="soft_kd", student_taps=("logits", "logits/cls")),
      "2 taps, and 'soft_kd' takes 1",
      "list one",
    ),
    (with_term(kind="soft_kd", teacher_taps=("a", "b")), "2 taps, and 'soft_kd' takes 1", "list one"),
    (with_term(kind="soft_kd", layer_weights=(0.5, 0.5)), "2 layer_weights for 1 layers", "one for each"),
    (
      {"teachers": {"t": {"weights": "runs/x"}}, "terms": {"d": {"kind": "dino", "teacher": "t"}}},
      "terms.d.teacher: 'dino' learns from the student's own average",
      "teachers.t.weights=ema",
    ),
    (with_term(kind="dino"), "terms.x: 'dino' compares views of an image, and there is 1", "global_count=2"),
    ({"teachers": {"t": {"weights": "random"}}}, "weights=random without a model", "teachers.t.model.name"),
  ],
)
def test_contradictions_are_refused(more, message, hint):
  with pytest.raises(UserError, match=message) as e:
    tiny.config(**more)
  assert hint in e.value.hint


@pytest.mark.parametrize(
  ("more", "note"),
  [
    ({"optim": {"momentum": 0.5}}, "optim.momentum=0.5 does nothing with name=adamw (it is for sgd)"),
    ({"optim": {"name": "sgd", "beta1": 0.8}}, "optim.beta1=0.8 does nothing with name=sgd"),
    ({"optim": {"rise": 0.2}}, "optim.rise=0.2 does nothing with schedule=cosine (it is for one_cycle)"),
    ({"optim": {"milestones": (3,)}}, "optim.milestones=(3.0,) does nothing with schedule=cosine"),
    (
      {"optim": {"schedule": "step", "milestones": (2, 9)}},
      "optim.milestones: 9 is never reached in 4 epochs",
    ),
    ({"optim": {"warmup_epochs": 5.0}}, "optim.warmup_epochs=5 takes all of the 4 epochs"),
    ({"optim": {"decay_all": True, "weight_decay": 0.0}}, "optim.decay_all=True does nothing"),
    ({"optim": {"lr_base_batch": 64}}, "optim.lr_base_batch=64 does nothing with lr_scaling=none"),
    ({"data": {"augment": {"mix_per_sample": True}}}, "data.augment.mix_per_sample=True does nothing"),
    ({"data": {"augment": {"jitter": 0.8}}}, "data.augment.jitter=0.8 does nothing without brightness"),
    ({"data": {"augment": {"policy_count": 3}}}, "data.augment.policy_count=3 does nothing with policy=none"),
    ({"data": {"name": "digits"}}, "data.examples=120 does nothing with data set 'digits'"),
    ({"data": {"views": {"local_size": 4}}}, "data.views.local_size=4 does nothing with local_count=0"),
    (EMA, "teachers.t: no term uses this teacher"),
    (with_term(kind="soft_kd", head="mlp"), "terms.x.head=mlp does nothing with kind=soft_kd"),
    (with_term(kind="soft_kd", end_weight=0.5), "terms.x.end_weight=0.5 does nothing with schedule=constant"),
    (with_term(kind="soft_kd", initial_weight=0.5), "terms.x.initial_weight=0.5 does nothing"),
    (with_term(kind="soft_kd", start_epoch=4.0), "terms.x.start_epoch=4 is never reached in 4 epochs"),
    (
      {**EMA, "terms": {"x": {"kind": "rkd", "teacher": "t", "student_taps": ("features",)}}},
      "terms: none trains the classifier",
    ),
  ],
)
def test_values_that_do_nothing_are_said(more, note):
  found = configs.notes(tiny.config(**more))
  assert [line for line in found if line.startswith(note)], found


def test_a_config_without_such_values_has_no_notes():
  assert configs.notes(tiny.config()) == []
  assert configs.notes(tiny.config(optim={"name": "sgd", "momentum": 0.5})) == []
  assert configs.notes(tiny.config(train={"steps": 3})) == []


def test_a_term_of_another_kind_keeps_what_both_have():
  path = str(Path(__file__).parents[1] / "configs" / "quickstart.py")
  config = configs.complete(
    {
      "teachers": {"t": {"weights": "x"}},
      "terms": {"kd": {"kind": "soft_kd", "teacher": "t", "temperature": 2.0}},
    }
  )
  configs.override(config, "terms.kd.kind", "dkd")
  assert (config.terms.kd.temperature, config.terms.kd.beta, config.terms.kd.teacher) == (2.0, 8.0, "t")
  configs.override(config, "terms.kd.kind", "token_cosine")
  assert "temperature" not in config.terms.kd
  configs.override(config, "terms.kd.metric", "mse")
  configs.override(config, "terms.kd.kind", "correlation")  # whose `metric` is another
  assert config.terms.kd.metric == "kl"
  assert configs.from_json(configs.to_json(config)) == config
  given = {"terms.ce.targets": "0.5", "terms.ce.student_taps": "block00/attn", "terms.ce.kind": "locality"}
  changed = configs.load(path, given)  # the kind goes first, wherever it stands
  assert changed.terms.ce.targets == (0.5,)
