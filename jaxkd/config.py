"""Configs: load a file, fill in the defaults of the schema, apply `--config.key=value`, refuse what cannot be right.

Everything here happens before jax is imported, so that a typo costs a second and not a compilation.
"""

from __future__ import annotations

import importlib.util
import json
import math
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from ml_collections import ConfigDict

from jaxkd import schema
from jaxkd.errors import UserError, did_you_mean
from jaxkd.schema import Each, Field, Free


def load(spec: str, overrides: dict[str, str] | None = None) -> ConfigDict:
  """Reads `FILE.py[:ARG]`, completes it, applies `overrides` ({"optim.lr": "3e-4"}) and validates.

  Raises:
    UserError: the file is absent, has no `get_config`, does not parse, raises, or holds a wrong key or value.
  """
  path, _, arg = spec.partition(":")
  config = complete(_call_get_config(Path(path), arg or None))
  for key, text in (overrides or {}).items():
    override(config, key, text)
  validate(config)
  return config


def _call_get_config(path: Path, arg: str | None) -> dict:
  if not path.is_file():
    raise UserError(f"config file {path} does not exist", _files_beside(path))
  spec = importlib.util.spec_from_file_location(f"jaxkd_config_{path.stem}", path)
  if spec is None or spec.loader is None:
    raise UserError(f"config file {path} is not a Python file", "name a .py file with a get_config")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except SyntaxError as e:
    raise UserError(f"config file {path} line {e.lineno}: {e.msg}", "fix the syntax of that line") from e
  except Exception as e:
    raise UserError(
      f"config file {path} line {_line_in(e, path)}: {e!r}", "the file must import cleanly"
    ) from e
  if not hasattr(module, "get_config"):
    raise UserError(
      f"config file {path} has no get_config", "define `def get_config(arg=None)` returning a dict"
    )
  try:
    return module.get_config(arg)
  except UserError:
    raise
  except Exception as e:
    raise UserError(f"config file {path} line {_line_in(e, path)}: {e!r}", "get_config must return") from e


def _files_beside(path: Path) -> str:
  return did_you_mean(path.name, [p.name for p in path.parent.glob("*.py")]) + f" (in {path.parent}/)"


def _line_in(error: Exception, path: Path) -> int:
  lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == path.name]
  return lines[-1] if lines and lines[-1] else 0


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
      raise UserError(f"unknown config argument '{name}'", did_you_mean(name, defaults))
    else:
      out[name] = _coerce(f"argument {name}", Field(defaults[name], ""), text if equals else "true")
  return ConfigDict(out)


def complete(raw: Any) -> ConfigDict:
  """`raw` (a dict or ConfigDict) with every missing key at its default; unknown keys are refused."""
  raw = raw.to_dict() if isinstance(raw, ConfigDict) else dict(raw)
  tree = _complete(raw, schema.STUDY if "study" in raw else schema.RUN, "")
  return _ordered(tree)


def _ordered(tree: dict) -> ConfigDict:
  """A ConfigDict whose arms and terms keep the order in which they were written (by default it sorts them)."""
  items = {k: _ordered(v) if isinstance(v, dict) else v for k, v in tree.items()}
  return ConfigDict(items, sort_keys=False)


def _complete(raw: dict, section: dict, path: str) -> dict:
  for key in raw:
    if key not in section:
      raise UserError(f"unknown config key '{path}{key}'", did_you_mean(key, section))
  return {key: _complete_entry(raw.get(key), entry, f"{path}{key}") for key, entry in section.items()}


def _complete_entry(value: Any, entry: Any, path: str) -> Any:
  if isinstance(entry, Field):
    return entry.default if value is None else _typed(path, entry, value)
  value = dict(value or {})
  if isinstance(entry, Free):
    known = {k: _complete_entry(value.get(k), f, f"{path}.{k}") for k, f in entry.fields.items()}
    return {**known, **{k: v for k, v in value.items() if k not in known}}
  if isinstance(entry, Each):
    return {
      k: _complete(dict(v), _named_schema(entry, v, f"{path}.{k}"), f"{path}.{k}.") for k, v in value.items()
    }
  return _complete(value, entry, f"{path}.")


def _named_schema(entry: Each, value: Any, path: str) -> dict:
  """The schema of one named entry; a term's options depend on its kind."""
  if entry.schema is not schema.TERM:
    return entry.schema
  kind = value.get("kind", schema.TERM["kind"].default)
  if kind not in schema.KINDS:
    raise UserError(f"{path}.kind: unknown loss '{kind}'", did_you_mean(kind, schema.KINDS))
  return {**schema.TERM, **schema.KINDS[kind]}


def override(config: ConfigDict, key: str, text: str) -> None:
  """Sets the dotted `key` to `text`, parsed by the type its schema gives it.

  Raises:
    UserError: no such key, or a value of another type.
  """
  node: Any = schema.STUDY if "study" in config else schema.RUN
  section: Any = config
  parts = key.split(".")
  for i, part in enumerate(parts):
    path = ".".join(parts[:i])
    if isinstance(node, Each):
      if part not in section:
        raise UserError(f"unknown config key '{key}': no '{part}' in {path}", did_you_mean(part, section))
      node = _named_schema(node, section[part], f"{path}.{part}")
    elif isinstance(node, Free):
      node = node.fields.get(part, Field(section.get(part, ""), ""))
    elif isinstance(node, dict) and part in node:
      node = node[part]
    else:
      known = node if isinstance(node, dict) else ()
      raise UserError(f"unknown config key '{key}'", did_you_mean(part, known))
    if i < len(parts) - 1:
      if isinstance(node, Field):
        raise UserError(
          f"unknown config key '{key}'", f"{'.'.join(parts[: i + 1])} is a value, not a section"
        )
      section = section[part]
  if not isinstance(node, Field):
    raise UserError(f"config key '{key}' is a section", did_you_mean("", list(section.get(parts[-1], {}))))
  value = free_value(text) if node.help == "" and node.default == "" else _coerce(key, node, text)
  with section.unlocked(), section.ignore_type():
    section[parts[-1]] = value


def free_value(text: str) -> Any:
  """A value whose key has no schema (a model's option): a number, true or false, a list `8,16`, or the text itself."""
  if "," in text:
    return tuple(free_value(part) for part in text.strip("()[] ").split(",") if part.strip())
  try:
    value = yaml.safe_load(text)
    return float(value) if isinstance(value, str) else value  # YAML 1.1 reads 3e-4 as a string
  except (ValueError, yaml.YAMLError):
    return text


def _coerce(key: str, field: Field, text: str) -> Any:
  if field.type is str:
    return _typed(key, field, text)
  try:  # YAML 1.1 reads 3e-4 as a string
    value = float(text) if field.type is float else yaml.safe_load(text)
  except (ValueError, yaml.YAMLError):
    value = text
  if field.type is tuple and isinstance(value, str):
    value = [yaml.safe_load(part) for part in value.strip("()").split(",") if part.strip()]
  return _typed(key, field, value)


def _typed(key: str, field: Field, value: Any) -> Any:
  """`value` as the field's type, or an error that names key, value, wanted type and range."""
  kind = field.type
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  if kind is tuple and isinstance(value, list):
    value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    wanted = {"str": "text", "tuple": "list"}.get(kind.__name__, kind.__name__)
    raise UserError(f"config key '{key}': {value!r} is not a {wanted}", f"its default is {field.default!r}")
  if field.choices and value not in field.choices:
    raise UserError(
      f"config key '{key}': unknown value {value!r}", did_you_mean(str(value), map(str, field.choices))
    )
  if isinstance(value, int | float) and not _in_range(field, value):
    raise UserError(f"config key '{key}': {value!r} is out of range", f"allowed: {_range(field)}")
  return value


def _in_range(field: Field, value: float) -> bool:
  return (
    math.isfinite(value)
    and (field.low is None or value >= field.low)
    and (field.high is None or value <= field.high)
    and (field.above is None or value > field.above)
  )


def _range(field: Field) -> str:
  low = f"> {field.above}" if field.above is not None else f">= {field.low}" if field.low is not None else ""
  high = f"<= {field.high}" if field.high is not None else ""
  return " and ".join(filter(None, (low, high))) or "finite numbers"


def validate(config: ConfigDict) -> None:
  """Cross-field rules; each failure names the field to set.

  Raises:
    UserError: the first rule that does not hold.
  """
  if "study" in config:
    _validate_study(config)
  else:
    _validate_run(config, "")


def _validate_study(config: ConfigDict) -> None:
  study = config.study
  if study.baseline not in study.arms:
    raise UserError(
      f"study.baseline '{study.baseline}' is not an arm", did_you_mean(study.baseline, study.arms)
    )
  if not study.seeds or len(set(study.seeds)) != len(study.seeds):
    raise UserError(
      f"study.seeds {study.seeds} must be distinct and not empty", "e.g. --config.study.seeds=0,1,2"
    )
  for name, teacher in study.teachers.items():
    _validate_run(teacher.run, f"study.teachers.{name}.run.")
  for name, arm in study.arms.items():
    _validate_objective(arm, f"study.arms.{name}.", known_weights=set(study.teachers))
  for claim in study.claims:
    parse_claim(claim, set(study.arms))
  _validate_augment(config, "")


def parse_claim(claim: str, arms: set[str]) -> tuple[str, tuple[str, ...]]:
  """`"mean_distance: cnn_kd < none"` -> `("mean_distance", ("cnn_kd", "none"))`."""
  metric, colon, order = claim.partition(":")
  names = tuple(part.strip() for part in order.split("<"))
  unknown = [n for n in names if n not in arms]
  if not colon or len(names) < 2 or unknown:
    raise UserError(
      f"study.claims: cannot read {claim!r}",
      f"write 'metric: armA < armB' with the arms {', '.join(sorted(arms))}",
    )
  return metric.strip(), names


def _validate_run(config: ConfigDict, path: str) -> None:
  _validate_objective(config, path)
  uses_ema = any(t.weights == "ema" for t in config.teachers.values())
  if uses_ema and config.train.ema == 0:
    raise UserError(
      f"{path}teachers: weights=ema needs a moving average", f"set --config.{path}train.ema=0.996"
    )
  views = config.data.views
  for key in ("global_scale", "local_scale"):
    low, high = views[key] if len(views[key]) == 2 else (1, 0)
    if not 0 < low <= high <= 1:
      raise UserError(
        f"config key '{path}data.views.{key}': {views[key]} is not a range", "0 < low <= high <= 1"
      )
  name = config.data.name
  if name in schema.NOT_MIRRORED and config.data.augment.flip:
    raise UserError(
      f"{path}data.augment.flip mirrors the images of '{name}', which changes what they show",
      "set it to false",
    )
  _validate_augment(config, path)


def _validate_augment(config: ConfigDict, path: str) -> None:
  """Geometry that changes what a class looks like, mixing and banks that contradict the terms (spec 5)."""
  augment, key = config.data.augment, f"{path}data.augment"
  if len(augment.scale) != 2 or not 0 < augment.scale[0] <= augment.scale[1]:
    raise UserError(f"config key '{key}.scale': {augment.scale} is not a range", "0 < low <= high")
  bends = [f"policy={augment.policy}"] * (augment.policy in schema.POLICIES)
  bends += [k for k in ("rotation", "shear") if augment[k]] + ["scale"] * (tuple(augment.scale) != (1.0, 1.0))
  name = config.data.name
  if name == "synthetic_shapes" and bends:
    raise UserError(
      f"{key}.{bends[0]} turns the textures of '{name}' into another class's",
      "leave it out; translate and `_color` policies keep the class",
    )
  if name in schema.NOT_MIRRORED and augment.rotation > 45:
    raise UserError(
      f"{key}.rotation of {augment.rotation:g} degrees changes what the images of '{name}' show",
      "45 at the most",
    )
  study = config.get("study")
  arms = {f"{path}study.arms.{k}.": v for k, v in study.arms.items()} if study else {path: config}
  for where, arm in arms.items():
    _validate_mixing(augment, arm, key, where, alike=bool(study))
    _validate_bank(augment, arm, key, where, bends + ["translate"] * bool(augment.translate))


def _validate_mixing(augment: ConfigDict, arm: ConfigDict, key: str, where: str, *, alike: bool) -> None:
  """Token terms compare pixels of one image; with `alike` all arms must see the same, so none may mix."""
  mixes = [k for k in ("mixup", "cutmix") if augment[k]]
  for name, term in arm.terms.items():
    if not mixes or term.kind not in schema.TOKEN_KINDS or term.teacher not in arm.teachers:
      continue
    if alike:
      raise UserError(
        f"{key}.{mixes[0]}: a study with a token term ({where}terms.{name}) mixes images in no arm",
        f"set --config.{key}.{mixes[0]}=0",
      )
    if arm.teachers[term.teacher].view != "same":
      raise UserError(
        f"{key}.{mixes[0]}: the token term {where}terms.{name} needs a teacher that sees the mixed image",
        f"set {where}teachers.{term.teacher}.view to 'same', or --config.{key}.{mixes[0]}=0",
      )


def _validate_bank(augment: ConfigDict, arm: ConfigDict, key: str, where: str, moving: list[str]) -> None:
  """A bank knows crops and mirrors only, and its teacher would see another geometry than the student."""
  for name, teacher in arm.teachers.items():
    if teacher.get("bank", "") and teacher.view == "aligned" and moving:
      option = moving[0]
      instead = f"{option}_color" if option.startswith("policy=") else f"{option} at its default"
      raise UserError(
        f"{key}.{option} moves pixels, and the bank of {where}teachers.{name} holds crops and mirrors only",
        f"use {instead}, or no bank",
      )


def _validate_objective(config: ConfigDict, path: str, known_weights: set[str] | None = None) -> None:
  if not config.terms:
    raise UserError(
      f"{path}terms is empty: nothing to train on", "add e.g. terms=dict(ce=dict(kind='cross_entropy'))"
    )
  for name, teacher in config.teachers.items():
    if not teacher.weights:
      raise UserError(
        f"{path}teachers.{name}.weights is empty", "name a run folder, a weights file, hub:NAME or `ema`"
      )
    elsewhere = (
      teacher.weights == "ema" or teacher.weights.startswith("hub:") or Path(teacher.weights).exists()
    )
    if known_weights is not None and teacher.weights not in known_weights and not elsewhere:
      raise UserError(
        f"{path}teachers.{name}.weights: no study teacher '{teacher.weights}'",
        did_you_mean(teacher.weights, known_weights),
      )
  for name, term in config.terms.items():
    _validate_term(term, config.teachers, f"{path}terms.{name}")


def _validate_term(term: ConfigDict, teachers: ConfigDict, path: str) -> None:
  needs_teacher = term.kind not in schema.LABEL_KINDS
  if needs_teacher and not term.teacher:
    raise UserError(f"{path}: '{term.kind}' needs a teacher", f"set {path}.teacher to one of teachers.*")
  if term.teacher and term.teacher not in teachers:
    raise UserError(
      f"{path}.teacher: no teacher '{term.teacher}'",
      f"add teachers.{term.teacher}, or {did_you_mean(term.teacher, teachers)}",
    )
  for extra in term.ensemble:
    if extra not in teachers or term.kind not in schema.LOGIT_KINDS:
      raise UserError(
        f"{path}.ensemble: '{extra}' is no teacher of a term on logits",
        f"name teachers of soft_kd, hard_kd, dkd, dist or ofa; {did_you_mean(extra, teachers)}",
      )
  if term.kind in (*schema.TOKEN_KINDS, "locality") and not term.student_taps:
    raise UserError(f"{path}.student_taps is empty", "list some, e.g. student_taps=('block05/tokens',)")
  if (
    term.teacher_taps and len(term.student_taps) != len(term.teacher_taps) and term.kind in schema.TOKEN_KINDS
  ):
    raise UserError(
      f"{path}: {len(term.student_taps)} student_taps and {len(term.teacher_taps)} teacher_taps",
      "list as many of each, or no teacher_taps to pair layers by relative depth",
    )
  if term.layer_weights and len(term.layer_weights) != len(term.student_taps):
    raise UserError(
      f"{path}: {len(term.layer_weights)} layer_weights for {len(term.student_taps)} layers",
      "one for each pair",
    )
  if term.kind == "locality" and len(term.targets) != len(term.student_taps):
    raise UserError(
      f"{path}: {len(term.targets)} targets for {len(term.student_taps)} layers",
      "one distance for each layer",
    )


def to_json(config: ConfigDict) -> str:
  """JSON of a config: keys in the order of the schema, tuples as lists."""
  return json.dumps(config.to_dict(), indent=2)


def from_json(text: str) -> ConfigDict:
  """The config that `to_json` wrote, completed and typed again."""
  return complete(json.loads(text))


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
