"""Values of config keys: text to the type its schema gives it and back, types, ranges. No jax here."""

from __future__ import annotations

import json
import re
from typing import Any

from jaxkd.errors import UserError, did_you_mean, one_line
from jaxkd.schema import Field

# Every number ends up as an int32 or a float32 somewhere.
GREATEST_INT, GREATEST_FLOAT = 2**31 - 1, 1e30
NUMBER = re.compile(r"[+-]?(\d[\d_]*\.?\d*|\.\d+)([eE][+-]?\d+)?")
OPENING, CLOSING = "([{", ")]}"
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
NAMES = {str: "text", tuple: "list", int: "whole number", float: "number", bool: "true or false"}


def coerce(key: str, field: Field, text: str) -> Any:
  """`text` (of `--config.key=text`) as the type of `field`.

  A list is `1,2`, `(1,2)`, `[1,2]`, `1` or `()`. Commas inside brackets or quotes do not separate, so that a list
  of regular expressions may hold `block0(0|1)/.*` and `block0{1,2}`.

  Raises:
    UserError: a value of another type, or out of range; it names both.
  """
  if field.type is tuple:
    return typed(key, field, tuple(_item(part, field.item_type) for part in parts_of(text, field.item_type)))
  return typed(key, field, _item(text, field.type))


def _item(text: str, kind: type) -> Any:
  """`text` as `kind` where it reads as one, else as it is: `typed` then names it."""
  if kind is str:
    return text
  if kind is bool:
    return {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}.get(
      text.strip().lower(), text
    )
  try:
    return kind(text)
  except ValueError:
    return text


def parts_of(text: str, kind: type = str) -> list[str]:
  """The items of a list that is written as text."""
  text = text.strip()
  found = _json_list(text)
  if found is not None and all(isinstance(v, str) for v in found):
    return found
  inner = text[1:-1] if _enclosed(text) else None
  # Round brackets may belong to a regular expression: (a|b) is one, (a,b) is a list.
  if inner is not None and (text[0] == "[" or kind is not str or len(_split(inner)) != 1 or _quoted(inner)):
    text = inner
  return [_unquote(part) for part in _split(text) if part]


def _json_list(text: str) -> list | None:
  try:
    found = json.loads(text) if text.startswith("[") else None
  except (ValueError, RecursionError):
    return None
  return found if isinstance(found, list) else None


def _enclosed(text: str) -> bool:
  """Whether one pair of round or square brackets goes around all of `text`."""
  if len(text) < 2 or text[0] + text[-1] not in ("()", "[]"):
    return False
  depth = 0
  for i, c in enumerate(text):
    depth += (c in OPENING) - (c in CLOSING)
    if depth <= 0:
      return i == len(text) - 1
  return False


def _split(text: str) -> list[str]:
  """`text` at the commas that are in no brackets and no quotes; a last empty part, as in `1,`, stays."""
  parts, depth, quote = [""], 0, ""
  for c in text:
    if quote:
      quote = "" if c == quote else quote
    elif c in "\"'" and not parts[-1].strip():
      quote = c
    else:
      depth = max(depth + (c in OPENING) - (c in CLOSING), 0)
    if c == "," and not depth and not quote:
      parts.append("")
    else:
      parts[-1] += c
  return [part.strip() for part in parts] if text.strip() else []


def _quoted(part: str) -> bool:
  return len(part) > 1 and part[0] == part[-1] and part[0] in "\"'"


def _unquote(part: str) -> str:
  return part[1:-1] if _quoted(part) else part


def free_value(text: str) -> Any:
  """A value whose key has no schema (a model's option): a number, true or false, null, a list `8,16` or `[8]`, or
  the text itself."""
  text = text.strip()
  parts = _split(text[1:-1]) if _enclosed(text) else _split(text)
  if _enclosed(text) or len(parts) > 1:
    return tuple(free_value(part) for part in parts if part)
  words = {"true": True, "false": False, "null": None}
  if text.lower() in words:
    return words[text.lower()]
  if not NUMBER.fullmatch(text):
    return _unquote(text)
  try:
    return int(text)
  except ValueError:
    return float(text)


def check_free(key: str, value: Any) -> Any:
  """`value` with its lists as tuples, if it is what JSON can hold and no section.

  Raises:
    UserError: anything else.
  """
  if isinstance(value, list | tuple):
    return tuple(check_free(key, v) for v in value)
  if value is None or isinstance(value, str | bool):
    return value
  if isinstance(value, int | float) and _finite(value):
    return value
  raise UserError(
    f"config key '{key}': {shown(value)} is not a value of a model's option",
    "write text, finite numbers, true or false, or lists of them",
  )


def typed(key: str, field: Field, value: Any) -> Any:
  """`value` as the field's type, or a UserError that names key, value, wanted type and range."""
  if field.type is not tuple:
    return _one(key, field, field.type, value)
  if not isinstance(value, list | tuple):
    raise _wrong_type(key, field, tuple, value)
  return tuple(_one(key, field, field.item_type, v) for v in value)


def _one(key: str, field: Field, kind: type, value: Any) -> Any:
  if kind is float and type(value) is int and _finite(value):
    value = float(value)
  if not _is(kind, value):
    raise _wrong_type(key, field, kind, value)
  if kind is str and CONTROL.search(value):
    raise UserError(f"config key '{key}': {shown(value)} has control characters", "remove them")
  if field.choices and value not in field.choices:
    raise UserError(
      f"config key '{key}': unknown value {shown(value)}", did_you_mean(str(value), map(str, field.choices))
    )
  if kind in (int, float) and not _in_range(field, kind, value):
    raise UserError(
      f"config key '{key}': {shown(value)} is out of range", f"allowed: {range_of(field, kind)}"
    )
  return value


def _is(kind: type, value: Any) -> bool:
  return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _wrong_type(key: str, field: Field, kind: type, value: Any) -> UserError:
  where = " in its list" if field.type is tuple and kind is not tuple else ""
  return UserError(
    f"config key '{key}': {shown(value)}{where} is not {wanted(kind)}",
    f"its default is {shown(field.default)}",
  )


def wanted(kind: type) -> str:
  """The type as a user reads it: `a whole number`."""
  return NAMES[kind] if kind in (str, bool) else f"a {NAMES[kind]}"


def _finite(value: float) -> bool:
  return -GREATEST_FLOAT <= value <= GREATEST_FLOAT  # false for nan; math.isfinite fails for a huge int


def _in_range(field: Field, kind: type, value: float) -> bool:
  low, high = limits(field, kind)
  return low <= value <= high and (field.above is None or value > field.above)


def limits(field: Field, kind: type) -> tuple[float, float]:
  """The lowest and the highest number that `field` takes (`field.above`, itself excluded, is one more limit)."""
  most = GREATEST_INT if kind is int else GREATEST_FLOAT
  return (-most if field.low is None else field.low), (most if field.high is None else field.high)


def range_of(field: Field, kind: type) -> str:
  """`> 0 and <= 1`, as a user reads it."""
  lowest = field.low if field.above is None else field.above
  low = "" if lowest is None else f"{'>=' if field.above is None else '>'} {_number(lowest)}"
  high = f"<= {_number(limits(field, kind)[1])}"
  return " and ".join(filter(None, (low, high)))


def _number(value: float) -> str:
  return str(value) if isinstance(value, int) else f"{value:g}"


def shown(value: Any) -> str:
  """`value` in one short line, for a message."""
  text = one_line(repr(value)) if not isinstance(value, int) or abs(value) < 10**60 else "a huge number"
  return text if len(text) <= 100 else f"{text[:97]}..."


def as_text(value: Any) -> str:
  """A value as it may be written after `--config.key=`; `coerce` reads it back."""
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, tuple | list):
    return f"[{', '.join(json.dumps(v) if isinstance(v, str) else as_text(v) for v in value)}]"
  return "null" if value is None else str(value)
