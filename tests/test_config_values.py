"""Values of config keys as text: every default and random lists survive the way to text and back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkd import config as configs
from jaxkd import schema
from jaxkd.config_values import as_text, coerce, free_value
from jaxkd.errors import UserError
from jaxkd.schema import Each, Field, Free

QUIET = {"deadline": None, "database": None, "derandomize": True, "max_examples": 200}
TEXTS, NUMBERS, WHOLE = Field((), "", items=str), Field((), "", items=float), Field((0,), "")
WORDS = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=12)
FLOATS = st.floats(-1e30, 1e30)


def fields(tree):
  for key, entry in tree.items():
    if isinstance(entry, Field):
      yield key, entry
    else:
      inner = entry.schema if isinstance(entry, Each) else entry.fields if isinstance(entry, Free) else entry
      yield from fields(inner)


ALL = [*fields(schema.STUDY), *fields(schema.KINDS)]


def test_every_default_survives_the_way_to_text_and_back():
  assert len(ALL) > 200
  for key, field in ALL:
    assert coerce(key, field, as_text(field.default)) == field.default, key
    for choice in field.choices or ():
      value = (choice,) if isinstance(field.default, tuple) else choice
      assert coerce(key, field, as_text(value)) == value


@settings(**QUIET)
@given(items=st.lists(WORDS, max_size=4).map(tuple))
def test_lists_of_texts_survive(items):
  assert coerce("k", TEXTS, as_text(items)) == items


@settings(**QUIET)
@given(
  items=st.lists(FLOATS, max_size=4).map(tuple),
  whole=st.lists(st.integers(-(2**31) + 1, 2**31 - 1)).map(tuple),
)
def test_lists_of_numbers_survive(items, whole):
  assert coerce("k", NUMBERS, as_text(items)) == items
  assert coerce("k", NUMBERS, ",".join(map(str, items))) == items
  assert coerce("k", WHOLE, as_text(whole)) == whole


@settings(**QUIET)
@given(value=FLOATS, text=WORDS)
def test_numbers_and_texts_survive(value, text):
  assert coerce("k", Field(1.0, ""), as_text(value)) == value
  assert free_value(as_text(value)) == value
  assert coerce("k", Field("", ""), as_text(text)) == text


@pytest.mark.parametrize(
  ("field", "text", "value"),
  [
    (NUMBERS, "15", (15.0,)),
    (NUMBERS, "15,", (15.0,)),
    (NUMBERS, "(15, 25)", (15.0, 25.0)),
    (NUMBERS, "[15,25]", (15.0, 25.0)),
    (NUMBERS, "3e-4,.5", (3e-4, 0.5)),
    (NUMBERS, "()", ()),
    (NUMBERS, "[]", ()),
    (NUMBERS, "", ()),
    (WHOLE, "0", (0,)),
    (TEXTS, "block0(0|1)/.*", ("block0(0|1)/.*",)),
    (TEXTS, "(block00|norm)/.*,(head|fc)", ("(block00|norm)/.*", "(head|fc)")),
    (TEXTS, "(block00|norm)", ("(block00|norm)",)),
    (TEXTS, "(?:a|b)", ("(?:a|b)",)),
    (TEXTS, "block0{1,2}/.*,norm", ("block0{1,2}/.*", "norm")),
    (TEXTS, "block0[0,1]/.*", ("block0[0,1]/.*",)),
    (TEXTS, "[block0[0-3]/.*]", ("block0[0-3]/.*",)),
    (TEXTS, "[ab]x,[cd]", ("[ab]x", "[cd]")),
    (TEXTS, '"a,b",c', ("a,b", "c")),
    (TEXTS, "('a', 'b')", ("a", "b")),
    (TEXTS, '["a,b", "c\\"d"]', ("a,b", 'c"d')),
    (TEXTS, "mean: a < b", ("mean: a < b",)),
    (Field(1.0, ""), "3e-4", 3e-4),
    (Field(1.0, ""), "1E3", 1000.0),
    (Field(1, ""), "010", 10),
    (Field(True, ""), "off", False),
    (Field("", ""), "3e-4", "3e-4"),
    (Field("", ""), "(a, b", "(a, b"),
  ],
)
def test_what_may_be_written(field, text, value):
  found = coerce("k", field, text)
  assert found == value
  assert type(found) is type(value)


@pytest.mark.parametrize(
  ("field", "text", "message"),
  [
    (NUMBERS, "15,abc", "'abc' in its list is not a number"),
    (NUMBERS, "1,nan", "nan is out of range"),
    (WHOLE, "1.5", "'1.5' in its list is not a whole number"),
    (Field(1, ""), "1e3", "'1e3' is not a whole number"),
    (Field(1, ""), "9" * 5000, "is not a whole number|out of range"),
    (Field(True, ""), "1", "'1' is not true or false"),
    (Field("a", "", choices=("a", "b")), "c", "unknown value 'c'"),
    (Field("", ""), "a\nb", "control characters"),
  ],
)
def test_what_may_not_is_named_in_one_line(field, text, message):
  with pytest.raises(UserError, match=message) as e:
    coerce("k", field, text)
  assert e.value.message.startswith("config key 'k'")
  assert len(e.value.message) < 300
  assert "\n" not in e.value.message + e.value.hint


@pytest.mark.parametrize(
  ("text", "value"),
  [
    ("8", 8),
    ("8,", (8,)),
    ("[8]", (8,)),
    ("(8, 16)", (8, 16)),
    ("1e-3", 1e-3),
    ("true", True),
    ("null", None),
    ("conv", "conv"),
    ("(1,", "(1,"),
    ("2020-01-01", "2020-01-01"),
    ("a: b", "a: b"),
    ("nan", "nan"),
    ("[[1,2],[3]]", ((1, 2), (3,))),
  ],
)
def test_values_without_a_schema(text, value):
  found = free_value(text)
  assert found == value
  assert type(found) is type(value)


def test_model_options_are_what_json_can_hold():
  terms = {"ce": {"kind": "cross_entropy"}}
  config = configs.complete({"terms": terms, "model": {"name": "resnet", "widths": [8, [16, 32]]}})
  assert config.model.widths == (8, (16, 32))
  for wrong in (object(), {"a": 1}, float("nan"), b"x"):
    with pytest.raises(UserError, match="is not a value of a model's option"):
      configs.complete({"terms": terms, "model": {"name": "resnet", "widths": wrong}})
