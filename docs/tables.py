"""Markdown tables of config sections, from the schema. Used by everything in `docs/` that lists config keys."""

from __future__ import annotations

from typing import Any

from jaxkd.schema import Field

HEADER = "| key | type | default | allowed | meaning |\n|---|---|---|---|---|\n"
TYPES = {str: "text", int: "whole number", float: "number", bool: "true / false"}
LISTS = {str: "list of texts", int: "list of whole numbers", float: "list of numbers"}


def section_table(section: dict[str, Any], prefix: str = "") -> str:
  """A table of the fields of `section`, each key after `prefix`; sections inside it are left to their own tables."""
  rows = [_row(prefix + key, field) for key, field in section.items() if isinstance(field, Field)]
  return HEADER + "".join(rows)


def _row(key: str, field: Field) -> str:
  allowed = _choices(field) if field.choices else _limits(field)
  cells = (_code(key), _type(field), _code(text(field.default)), allowed, _escape(field.help))
  return f"| {' | '.join(cells)} |\n"


def _type(field: Field) -> str:
  return LISTS[field.item_type] if field.type is tuple else TYPES[field.type]


def text(value: Any) -> str:
  """A value as it is written after `--config.key=`."""
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, tuple):
    return ",".join(map(text, value)) or "()"
  if value == "":
    return '""'
  return str(value)


def _choices(field: Field) -> str:
  return ", ".join(_code(text(c)) for c in field.choices or ())


def _limits(field: Field) -> str:
  low = (
    f"> {field.above:g}" if field.above is not None else f">= {field.low:g}" if field.low is not None else ""
  )
  high = f"<= {field.high:g}" if field.high is not None else ""
  return ", ".join(filter(None, (low, high)))


def _code(word: str) -> str:
  return f"`{_escape(word)}`"


def _escape(words: str) -> str:
  return words.replace("|", "\\|").replace("\n", " ")
