"""Random configs either validate and build, or are refused with one line and one hint: never another exception."""

import copy
import functools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxkd import config as configs
from jaxkd import schema, teachers
from jaxkd.errors import UserError
from jaxkd.experiment import build
from jaxkd.schema import Field, Free
from tests import tiny

pytestmark = pytest.mark.usefixtures("optax_promotion")
PRESETS = sorted(p for p in (Path(__file__).parents[1] / "configs").glob("*.py") if p.stem != "from_file")
QUIET = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
CNN = {"name": "adaptive_cnn", "widths": (4, 8), "depths": (1, 1), "stem_pool": False}
TEACHERS = {
  "cnn": {"weights": "random", "model": CNN},
  "vit": {"weights": "random", "model": {**tiny.MODEL, "name": "vit"}, "view": "same"},
  "ema": {"weights": "ema", "view": "same"},
}
TAPS = (
  "block00/tokens",
  "block01/tokens",
  "stage0",
  "stage1",
  "features",
  "logits",
  "logits/cls",
  "block00/attn",
  "x",
)
JUNK = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(),
  st.just(10**400),
  st.floats(),
  st.text(max_size=6),
  st.lists(st.one_of(st.integers(), st.text(max_size=3), st.floats()), max_size=3),
  st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
  st.just(object()),
  st.just(b"bytes"),
)


@functools.cache
def preset(path, arg):
  return configs.load(f"{path}{arg}")


def fields(tree, path=()):
  """(path, Field) of every key; names of teachers, terms and arms are those that `names` finds."""
  for key, entry in tree.items():
    if isinstance(entry, Field):
      yield (*path, key), entry
    elif isinstance(entry, Free):
      yield from fields(entry.fields, (*path, key))
    elif isinstance(entry, dict):
      yield from fields(entry, (*path, key))


RUN_FIELDS = [
  f for f in fields(schema.RUN) if f[0] not in (("data", "root"), ("data", "name"), ("init", "weights"))
]
# Values for which building takes long.
SLOW = {"examples", "image_size", "classes", "prototypes", "hidden", "bottleneck"}


@st.composite
def fitting(draw, field):
  """A value of the field's type, mostly inside its range and at its ends."""
  if field.choices:
    return draw(st.sampled_from(field.choices))
  kind = field.item_type if field.type is tuple else field.type
  if kind is bool:
    one = st.booleans()
  elif kind is str:
    one = st.sampled_from(("", *TAPS, "cnn", "ema", "block0.*", "(", "4", "none"))
  else:
    low = field.low if field.low is not None else field.above if field.above is not None else -3
    high = low + 40 if field.high is None else min(field.high, low + 40)
    one = st.integers(int(low), int(high)) if kind is int else st.floats(low, high)
    one = st.one_of(
      one, st.sampled_from([kind(low), kind(high), field.default if field.type is kind else kind(1)])
    )
  return draw(st.lists(one, max_size=3).map(tuple) if field.type is tuple else one)


@st.composite
def term(draw):
  """A term of a random kind with a few of its options."""
  kind = draw(st.sampled_from((*schema.KINDS, "ckka")))
  known = {**schema.TERM, **schema.KINDS.get(kind, {})}
  keys = draw(st.lists(st.sampled_from(sorted(set(known) - {"kind"} - SLOW)), max_size=2))
  found = {"kind": kind, **{key: draw(fitting(known[key])) for key in keys}}
  if kind not in schema.LABEL_KINDS:
    found["teacher"] = draw(st.sampled_from(("ema" if kind == "dino" else "cnn", "vit", "ema")))
  if kind in schema.TOKEN_KINDS:
    found["student_taps"] = tuple(draw(st.lists(st.sampled_from(TAPS[:2]), min_size=1, max_size=2)))
  if kind == "locality":
    found |= {"student_taps": ("block00/attn",), "targets": (0.5,)}
  return found


@st.composite
def tiny_configs(draw):
  """The tiny run with other values, terms and teachers, mostly of the right type."""
  raw = tiny.config(train={"ema": 0.9, "batch_size": 16}).to_dict()
  raw["teachers"] = {k: copy.deepcopy(TEACHERS[k]) for k in draw(st.sets(st.sampled_from(sorted(TEACHERS))))}
  raw["terms"] |= draw(st.dictionaries(st.sampled_from(("a", "b")), term(), min_size=1, max_size=2))
  for teacher in {t.get("teacher") for t in raw["terms"].values()} & set(TEACHERS):
    if draw(st.integers(0, 9)):
      raw["teachers"][teacher] = copy.deepcopy(TEACHERS[teacher])
  for path, field in draw(st.lists(st.sampled_from(RUN_FIELDS), min_size=1, max_size=4)):
    if path[-1] not in SLOW:
      put(raw, path, draw(fitting(field)))
  if raw["train"]["batch_size"] > 40:
    raw["train"]["batch_size"] = 16
  options = {
    "patch_size": (2, 3, 4),
    "heads": (1, 2, 3),
    "num_classes": (0, 4, 5),
    "drop_path": (0.1, 1.0, "x"),
  }
  for key in draw(st.sets(st.sampled_from(sorted(options)), max_size=1)):
    raw["model"][key] = draw(st.sampled_from(options[key]))
  return raw


@st.composite
def any_configs(draw):
  """A preset or the tiny run with random keys and values of every kind put anywhere."""
  if draw(st.booleans()):
    raw = draw(tiny_configs())
  else:
    raw = preset(draw(st.sampled_from(PRESETS)), draw(st.sampled_from(("", ":smoke")))).to_dict()
  for _ in range(draw(st.integers(0, 3))):
    node = raw
    while True:
      key = draw(st.one_of(st.sampled_from(sorted(node, key=str) or ["x"]), st.text(max_size=5)))
      if isinstance(node.get(key), dict) and draw(st.integers(0, 3)):
        node = node[key]
        continue
      if draw(st.integers(0, 5)) == 0:
        node.pop(key, None)
      else:
        node[key] = draw(JUNK)
      break
  return raw


def put(raw, path, value):
  for key in path[:-1]:
    raw = raw.setdefault(key, {})
  raw[path[-1]] = value


def accepted(raw):
  """The validated config, or None for one that is refused as it should be."""
  try:
    config = configs.complete(raw)
    configs.validate(config)
  except UserError as e:
    check(e)
    return None
  for line in configs.notes(config):
    assert len(line.splitlines()) == 1
  assert configs.from_json(configs.to_json(config)) == config
  return config


def check(error):
  for text in (error.message, error.hint):
    assert text
    assert len(text.splitlines()) == 1
    assert text.isprintable()


OVERRIDES = st.dictionaries(
  st.one_of(
    st.sampled_from([".".join(path) for path, _ in RUN_FIELDS]),
    st.sampled_from(
      ("terms.ce.kind", "terms.ce.weight", "model.depth", "model.items", "terms", "optim.lr.x", "")
    ),
    st.text(max_size=8),
  ),
  st.one_of(
    st.text(max_size=8),
    st.sampled_from((*schema.KINDS, "nan", "1e-3", "(1,", "[2]", "[[", "1,2", "true", "1e999")),
  ),
  min_size=1,
  max_size=2,
)


@settings(max_examples=500, **QUIET)
@given(raw=any_configs())
def test_any_config_validates_or_is_refused(raw):
  accepted(raw)


@settings(max_examples=300, **QUIET)
@given(overrides=OVERRIDES)
def test_any_override_validates_or_is_refused(overrides, tmp_path_factory):
  try:
    configs.load(str(Path(__file__).parents[1] / "configs" / "quickstart.py"), overrides)
  except UserError as e:
    check(e)


def test_many_accepted_configs_build(monkeypatch):
  """Of 60 random configs near the tiny run many are accepted; these build or are refused by their parts."""
  made = {}
  original = teachers._random

  def remembered(name, options, dataset):
    key = repr((options.model, options.size, dataset.image_shape))
    if key not in made:
      made[key] = original(name, options, dataset)
    return made[key]

  monkeypatch.setattr(teachers, "_random", remembered)
  seen = {"accepted": 0, "built": 0}

  @settings(max_examples=60, **QUIET)
  @given(raw=tiny_configs())
  def run(raw):
    config = accepted(raw)
    if config is None:
      return
    seen["accepted"] += 1
    try:
      build(config)
      seen["built"] += 1
    except UserError as e:
      check(e)

  run()
  assert seen["accepted"] >= 20, seen
  assert seen["built"] >= 8, seen
