"""Configs: load a file, fill in the defaults of the schema, apply `--config.key=value`, refuse what cannot be right.

Everything here happens before jax is imported, so that a typo costs a second and not a compilation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml
from ml_collections import ConfigDict

from jaxkd import schema
from jaxkd.config_files import locate, parse_json, parse_yaml, read, read_values
from jaxkd.config_notes import notes
from jaxkd.config_rules import parse_claim, parse_smallest, validate, validate_augment
from jaxkd.config_values import as_text, check_free, coerce, free_value, shown, typed
from jaxkd.errors import UserError, did_you_mean
from jaxkd.schema import Each, Field, Free

__all__ = [
  "as_text",
  "complete",
  "difference",
  "flat",
  "free_value",
  "from_json",
  "from_yaml",
  "load",
  "notes",
  "override",
  "parse_arg",
  "parse_claim",
  "parse_smallest",
  "read_values",
  "to_json",
  "to_yaml",
  "validate",
  "validate_augment",
]

# The user's own names: teachers, terms, arms, and the options of models.
NAME = re.compile(r"[\w-]{1,100}")


def load(spec: str, overrides: dict[str, str] | None = None) -> ConfigDict:
  """Reads `FILE.py[:ARG]`, a .json or a .yaml file, completes it, applies `overrides` ({"optim.lr": "3e-4"}) and
  validates.

  Raises:
    UserError: the file is absent, has no `get_config`, does not parse, raises, or holds a wrong key or value.
  """
  path, colon, arg = spec.partition(":")
  config = complete(read(locate(path), arg if colon else None))
  given = overrides or {}
  # The kind of a term decides which keys it has, so that goes first.
  for key in sorted(given, key=lambda k: not k.endswith(".kind")):
    override(config, key, given[key])
  validate(config)
  return config


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
  """Parses a config's string argument `smoke,teacher=dinov2_vitb14,seed=3` into typed values.

  A bare name sets a flag; the type of a value is that of its default. A first bare word that names no
  flag is the value of `defaults`' first key when that is a string (`study.py:digits`).

  Raises:
    UserError: an unknown name or a value of the wrong type.
  """
  out = dict(defaults)
  for i, part in enumerate(p for p in (arg or "").split(",") if p):
    name, equals, text = part.partition("=")
    first = next(iter(defaults), "")
    if not equals and i == 0 and name not in defaults and isinstance(defaults.get(first), str):
      out[first] = name
    elif name not in defaults:
      raise UserError(f"unknown config argument {shown(name)}", did_you_mean(name, defaults))
    else:
      out[name] = coerce(f"argument {name}", Field(defaults[name], ""), text if equals else "true")
  return ConfigDict(out)


def complete(raw: Any) -> ConfigDict:
  """`raw` (a dict or ConfigDict) with every missing key at its default; unknown keys are refused.

  Raises:
    UserError: a key that does not exist, or a value of another type or out of range.
  """
  raw = _section(raw.to_dict() if isinstance(raw, ConfigDict) else raw, "")
  tree = _complete(raw, schema.STUDY if "study" in raw else schema.RUN, "")
  return _ordered(tree)


def _ordered(tree: dict) -> ConfigDict:
  """A ConfigDict whose arms and terms keep the order in which they were written (by default it sorts them)."""
  items = {k: _ordered(v) if isinstance(v, dict) else v for k, v in tree.items()}
  return ConfigDict(items, sort_keys=False)


def _section(value: Any, path: str) -> dict:
  """`value` as a dict; None, as an empty YAML section gives, is an empty one."""
  if isinstance(value, ConfigDict):
    value = value.to_dict()
  if value is None and path:
    return {}
  if not isinstance(value, dict):
    where = f"config key '{path}'" if path else "the config"
    raise UserError(
      f"{where}: {shown(value)} is not a section", "write keys and values, e.g. {'optim': {...}}"
    )
  return value


def _complete(raw: dict, section: dict, path: str) -> dict:
  for key in raw:
    if key not in section:
      raise _unknown(f"{path}{key}", key, section)
  return {key: _complete_entry(raw.get(key), entry, f"{path}{key}") for key, entry in section.items()}


def _complete_entry(value: Any, entry: Any, path: str) -> Any:
  if isinstance(entry, Field):
    return entry.default if value is None else typed(path, entry, value)
  value = _section(value, path)
  if isinstance(entry, Free):
    return _complete_free(value, entry, path)
  if isinstance(entry, Each):
    return {_name(k, path): _complete_named(v, entry, f"{path}.{k}") for k, v in value.items()}
  return _complete(value, entry, f"{path}.")


def _complete_free(value: dict, entry: Free, path: str) -> dict:
  known = {k: _complete_entry(value.get(k), f, f"{path}.{k}") for k, f in entry.fields.items()}
  others = {_name(k, path): check_free(f"{path}.{k}", v) for k, v in value.items() if k not in known}
  return {**known, **others}


def _complete_named(value: Any, entry: Each, path: str) -> dict:
  value = _section(value, path)
  return _complete(value, _named_schema(entry, value, path), f"{path}.")


def _name(name: Any, path: str) -> str:
  """A name that can be written in an override, and that ConfigDict takes."""
  if isinstance(name, str) and NAME.fullmatch(name) and not hasattr(ConfigDict, name):
    return name
  raise UserError(
    f"config key '{path}': {shown(name)} cannot be a name in it",
    "use letters, digits, _ and -, and no method of a dict",
  )


def _named_schema(entry: Each, value: Any, path: str) -> dict:
  """The schema of one named entry; a term's options depend on its kind."""
  if entry.schema is not schema.TERM:
    return entry.schema
  kind = schema.TERM["kind"].default if value.get("kind") is None else value["kind"]
  if not isinstance(kind, str) or kind not in schema.KINDS:
    raise UserError(f"{path}.kind: unknown loss {shown(kind)}", did_you_mean(str(kind), schema.KINDS))
  return {**schema.TERM, **schema.KINDS[kind]}


def override(config: ConfigDict, key: str, text: str) -> None:
  """Sets the dotted `key` to `text`, parsed by the type its schema gives it.

  A term whose `kind` is set keeps the options that the new kind has too.

  Raises:
    UserError: no such key, or a value of another type.
  """
  *parents, last = key.split(".")
  node: Any = schema.STUDY if "study" in config else schema.RUN
  section: Any = config
  for i, part in enumerate(parents):
    node = _step_into(node, section, part, key, ".".join(parents[:i]))
    if isinstance(node, Field):
      raise UserError(
        f"unknown config key '{key}'", f"{'.'.join(parents[: i + 1])} is a value, not a section"
      )
    section = section[part]
  if isinstance(node, Free) and last not in node.fields:
    _name(last, ".".join(parents))
    _set(section, {last: check_free(key, free_value(text))})
    return
  field = _step_into(node, section, last, key, ".".join(parents))
  if not isinstance(field, Field):
    raise UserError(f"config key '{key}' is a section", _inside(section[last], key))
  value = coerce(key, field, text)
  _set(
    section, _of_kind(section, value, ".".join(parents)) if field is schema.TERM["kind"] else {last: value}
  )


def _set(section: ConfigDict, values: dict[str, Any]) -> None:
  with section.unlocked(), section.ignore_type():
    section.update(values)


def _of_kind(term: ConfigDict, kind: str, path: str) -> dict[str, Any]:
  """The values of `term` as one of another kind; options that the new kind lacks are taken out of `term`."""
  known = _named_schema(Each(schema.TERM), {"kind": kind}, path)
  with term.unlocked():
    for name in set(term) - set(known):
      del term[name]
  kept = {k: v for k, v in term.items() if k in schema.TERM or _fits(known[k], v)}
  return {name: kept.get(name, field.default) for name, field in known.items()} | {"kind": kind}


def _fits(field: Field, value: Any) -> bool:
  """Whether `value` may stay: two kinds may mean other things by one word, as by `metric`."""
  try:
    return typed("", field, value) == value
  except UserError:
    return False


def _step_into(node: Any, section: Any, part: str, key: str, path: str) -> Any:
  """The schema of `part` inside `section`, whose own is `node`. Raises UserError when there is no such key."""
  if isinstance(node, Each):
    if part not in section:
      raise UserError(f"unknown config key {shown(key)}: no '{part}' in {path}", did_you_mean(part, section))
    return _named_schema(node, section[part], f"{path}.{part}")
  known = node.fields if isinstance(node, Free) else node
  if part not in known:
    raise _unknown(key, part, known)
  return known[part]


def _unknown(key: str, part: Any, known: Any) -> UserError:
  return UserError(f"unknown config key {shown(key)}", did_you_mean(str(part), known))


def _inside(section: ConfigDict, key: str) -> str:
  first = next(iter(section), "KEY")
  return f"set a key inside it, e.g. --config.{key}.{first}=VALUE"


def to_json(config: ConfigDict) -> str:
  """JSON of a config: keys in the order of the schema, tuples as lists."""
  return json.dumps(config.to_dict(), indent=2)


def from_json(text: str) -> ConfigDict:
  """The config that `to_json` wrote, completed and typed again. Raises UserError for what is no config."""
  return complete(parse_json(text, "(JSON)"))


def to_yaml(config: ConfigDict) -> str:
  """YAML of a config: keys in the order of the schema, tuples as lists."""
  return yaml.safe_dump(json.loads(to_json(config)), sort_keys=False, allow_unicode=True)


def from_yaml(text: str) -> ConfigDict:
  """The config that `to_yaml` wrote, completed and typed again. Raises UserError for what is no config."""
  return complete(parse_yaml(text, "(YAML)"))


def flat(config: ConfigDict) -> dict[str, Any]:
  """`{"optim.lr": 0.001, ...}`, in key order."""
  return dict(sorted(_flat(config.to_dict(), "")))


def _flat(tree: dict, path: str) -> Iterator[tuple[str, Any]]:
  for key, value in tree.items():
    if isinstance(value, dict) and value:
      yield from _flat(value, f"{path}{key}.")
    else:
      yield f"{path}{key}", value


def difference(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
  """Keys whose values differ, as `{key: (old, new)}`; a key that one side lacks has None there."""
  a, b = flat(old), flat(new)
  return {k: (a.get(k), b.get(k)) for k in sorted({*a, *b}) if a.get(k) != b.get(k)}
