"""Configs: defaults, overrides and every way to get one wrong."""

from pathlib import Path

import pytest

from jaxkd import config as configs
from jaxkd.errors import UserError

ROOT = Path(__file__).parent.parent
QUICKSTART = str(ROOT / "configs" / "quickstart.py")


def minimal(**more):
  return {"terms": {"ce": {"kind": "cross_entropy"}}, **more}


def kd_config(**term):
  return minimal(
    teachers={"cnn": {"weights": "runs/cnn"}},
    terms={"kd": {"kind": "soft_kd", "teacher": "cnn", **term}},
  )


def validated(raw):
  config = configs.complete(raw)
  configs.validate(config)
  return config


PRESETS = sorted(p for p in (ROOT / "configs").glob("*.py") if p.stem != "from_file")


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
@pytest.mark.parametrize("arg", ["", ":smoke=true"])
def test_every_config_builds_and_validates(path, arg):
  config = configs.load(f"{path}{arg}")
  assert configs.from_json(configs.to_json(config)) == config
  assert configs.from_yaml(configs.to_yaml(config)) == config


def test_defaults_are_filled_in_and_typed():
  config = validated(minimal(optim={"lr": 1}))
  assert config.optim.lr == 1.0
  assert isinstance(config.optim.lr, float)
  assert config.train.batch_size == 128


def test_overrides_follow_the_schema():
  config = configs.load(
    QUICKSTART, {"optim.lr": "3e-4", "model.depth": "2", "data.views.global_scale": "0.5,1.0"}
  )
  assert config.optim.lr == 3e-4
  assert config.model.depth == 2
  assert config.data.views.global_scale == (0.5, 1.0)


def test_an_override_may_set_a_default_key_the_file_left_out():
  assert configs.load(QUICKSTART, {"train.max_skips": "3"}).train.max_skips == 3


@pytest.mark.parametrize(  # fault 1
  ("key", "hint"),
  [
    ("optim.lrr", "'lr'"),
    ("trian.epochs", "'train'"),
    ("terms.cee.weight", "'ce'"),
    ("terms.ce.smothing", "'smoothing'"),
  ],
)
def test_a_misspelt_key_is_named_with_a_suggestion(key, hint):
  with pytest.raises(UserError) as e:
    configs.load(QUICKSTART, {key: "1"})
  assert key in e.value.message
  assert f"did you mean {hint}?" in e.value.hint


def test_a_misspelt_key_in_the_file_is_named():
  with pytest.raises(UserError, match=r"unknown config key 'terms.kd.temprature'") as e:
    configs.complete(kd_config(temprature=2.0))
  assert "temperature" in e.value.hint


@pytest.mark.parametrize("value", ["2.5", "abc", "true"])  # fault 2
def test_a_value_of_another_type_names_key_value_and_type(value):
  with pytest.raises(UserError, match=r"train.batch_size.*is not a whole number"):
    configs.load(QUICKSTART, {"train.batch_size": value})


@pytest.mark.parametrize(  # fault 3
  ("key", "value"),
  [
    ("optim.lr", "nan"),
    ("optim.lr", "inf"),
    ("optim.lr", "-1"),
    ("terms.ce.smoothing", "1.5"),
    ("optim.lr", "0"),
  ],
)
def test_numbers_out_of_range_state_the_range(key, value):
  with pytest.raises(UserError, match="out of range") as e:
    configs.load(QUICKSTART, {key: value})
  assert "allowed:" in e.value.hint


@pytest.mark.parametrize(  # fault 4
  ("text", "message"),
  [
    (None, "does not exist"),
    ("x = 1\n", "has no get_config"),
    ("def get_config(arg=None)\n  return {}\n", "line 1"),
    ("def get_config(arg=None):\n  return 1 / 0\n", r"line 2: ZeroDivisionError"),
  ],
)
def test_config_file_faults_have_distinct_messages(tmp_path, text, message):
  path = tmp_path / "c.py"
  if text is not None:
    path.write_text(text)
  with pytest.raises(UserError, match=message):
    configs.load(str(path))


@pytest.mark.parametrize(  # fault 6
  ("raw", "message"),
  [
    (minimal(terms={"kd": {"kind": "soft_kd"}}), "needs a teacher"),
    (minimal(terms={"kd": {"kind": "soft_kd", "teacher": "cnn"}}), "no teacher 'cnn'"),
    (minimal(teachers={"cnn": {}}), "weights is empty"),
    (minimal(teachers={"t": {"weights": "ema"}}), "needs a moving average"),
    (minimal(terms={}), "nothing to train on"),
    (minimal(data={"augment": {"flip": True}}), "mirrors the images of .digits."),
    (minimal(data={"views": {"global_scale": (0.9, 0.5)}}), "not a range"),
  ],
)
def test_cross_field_rules(raw, message):
  with pytest.raises(UserError, match=message) as e:
    validated(raw)
  assert e.value.hint


def test_tap_lists_must_match():
  term = {
    "kind": "cka",
    "teacher": "cnn",
    "student_taps": ("block00/tokens",),
    "teacher_taps": ("stage0", "stage1"),
  }
  with pytest.raises(UserError, match="1 student_taps and 2 teacher_taps"):
    validated(kd_config() | {"terms": {"cka": term}})
  with pytest.raises(UserError, match="student_taps is empty"):
    validated(kd_config() | {"terms": {"cka": term | {"student_taps": ()}}})
  knob = {"kind": "locality", "student_taps": ("block00/attn",), "targets": (0.5, 0.7)}
  with pytest.raises(UserError, match="2 targets for 1 layers"):
    validated(kd_config() | {"terms": {"knob": knob}})
  with pytest.raises(UserError, match="'dog' is no teacher of a term on logits"):
    validated(kd_config() | {"terms": {"kd": {"kind": "soft_kd", "teacher": "cnn", "ensemble": ("dog",)}}})


def test_an_unknown_loss_is_named():
  with pytest.raises(UserError, match="unknown loss 'ckka'") as e:
    configs.complete(minimal(terms={"x": {"kind": "ckka"}}))
  assert "'cka'" in e.value.hint


def test_parse_arg_types_and_unknown_names():
  arg = configs.parse_arg("digits,seeds=5,smoke", data="x", smoke=False, seeds=3)
  assert (arg.data, arg.seeds, arg.smoke) == ("digits", 5, True)
  with pytest.raises(UserError, match="unknown config argument 'seed'"):
    configs.parse_arg("seed=5", smoke=False, seeds=3)


def test_study_arms_may_only_differ_in_teachers_and_terms():
  raw = configs.load(str(ROOT / "configs" / "study.py")).to_dict()
  raw["study"]["arms"]["none"]["optim"] = {"lr": 1.0}
  with pytest.raises(UserError, match=r"study.arms.none.optim"):
    configs.complete(raw)


def test_claims_must_name_arms():
  with pytest.raises(UserError, match="cannot read"):
    configs.parse_claim("accuracy_cls: a < c", {"a", "b"})


def test_claims_and_smallest_differences_must_name_metrics_of_a_study():
  from jaxkd.config_rules import JUDGED
  from jaxkd.study_statistics import METRICS

  assert set(JUDGED) == {m["key"] for m in METRICS}
  with pytest.raises(UserError, match=r"study.claims: unknown metric 'acuracy_cls'") as e:
    configs.parse_claim("acuracy_cls: a < b", {"a", "b"})
  assert e.value.hint == "did you mean 'accuracy_cls'?"
  assert configs.parse_smallest(("accuracy_cls: 0.01", "mean_distance:2")) == {
    "accuracy_cls": 0.01,
    "mean_distance": 2.0,
  }
  for bad in (("accuracy_cls",), ("accuracy_cls: -1",), ("accuracy_cls: nan",), ("accuracy_cls: 1",) * 2):
    with pytest.raises(UserError, match=r"study.smallest: cannot read"):
      configs.parse_smallest(bad)
  with pytest.raises(UserError, match=r"study.smallest: unknown metric 'speed'"):
    configs.parse_smallest(("speed: 1",))


def test_difference_names_keys_and_both_values():
  old, new = validated(minimal()), validated(minimal(optim={"lr": 0.5}))
  assert configs.difference(old, new) == {"optim.lr": (0.001, 0.5)}
