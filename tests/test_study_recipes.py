"""Arms and teachers of `configs/study.py` by name."""

import pytest

from jaxkd import config as configs
from jaxkd import study_recipes
from jaxkd.errors import UserError
from jaxkd.study import teacher_config

SMALL_SETS = ("digits", "fashion_mnist", "synthetic_shapes")
NO_CLS = tuple(f"{t}_cls" for t in ("cnn", "resnet", "convnext"))  # a CNN has no cls token


def load(spec):
  return configs.load(f"configs/study.py:{spec}")


@pytest.mark.parametrize("name", SMALL_SETS)
def test_every_arm_is_a_valid_config_on_every_small_set(name):
  arms = [a for a in study_recipes.arms() if a not in NO_CLS]
  study = load(f"{name},arms={'+'.join(arms)}").study
  assert list(study.arms) == arms
  trained = list(study.teachers)
  assert trained.index("ssl") < trained.index("ssl_probe")  # the probe needs its features
  for arm in study.arms.values():
    assert {t.weights for t in arm.teachers.values()} <= set(trained)
  assert len({arm.label for arm in study.arms.values()}) == len(arms)


def test_arms_of_one_teacher_differ_in_the_signal_only():
  arms = load("digits,arms=none+ssl_tokens+ssl_gram+ssl_biased+ssl_clean").study.arms
  assert arms.ssl_tokens.terms.cka.debiased
  assert not arms.ssl_biased.terms.cka.debiased
  assert arms.ssl_tokens.teachers.ssl.view == "aligned"
  assert arms.ssl_clean.teachers.ssl.view == "clean"
  assert "cka" not in arms.ssl_gram.terms
  assert arms.ssl_gram.terms.tokens == arms.ssl_tokens.terms.tokens


def test_the_knob_holds_every_layer_at_its_target():
  knob = load("fashion_mnist,arms=none+local_35").study.arms.local_35.terms.knob
  assert knob.targets == (0.35,) * 6
  assert knob.student_taps == tuple(f"block0{i}/attn" for i in range(6))


def test_a_probe_starts_from_the_features_of_the_study(tmp_path):
  config = load("digits,arms=none+ssl_kd")
  run = teacher_config(config, "ssl_probe", tmp_path)
  assert run.init.weights == str(tmp_path / "teachers" / "ssl.safetensors")
  assert config.study.teachers.ssl_probe.run.init.weights == "ssl"  # the study's own config stays


def test_only_claims_about_chosen_arms_are_made():
  assert load("digits,arms=none+cnn_kd").study.claims == ("accuracy_cls: cnn_kd < none",)
  assert load("digits,arms=none+local_50").study.claims == ()


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("digits,arms=none+cnnkd", "unknown arm 'cnnkd'"),
    ("svhn", "no recipe for data set 'svhn'"),
    ("cifar10,arms=none+ssl_kd", "no linear probe of DINOv2"),
    ("cifar10,arms=none+cnn_kd", "'runs/adaptive_cnn' is no teacher of the study"),
  ],
)
def test_what_the_study_cannot_do_is_refused(spec, message):
  with pytest.raises(UserError) as e:
    load(spec)
  assert message in e.value.message
