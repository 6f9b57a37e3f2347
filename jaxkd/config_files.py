"""Config files: Python with a `get_config`, or the values themselves as JSON or YAML. No jax here."""

from __future__ import annotations

import importlib.util
import json
import re
import traceback
from pathlib import Path
from typing import Any

import yaml

from jaxkd.errors import UserError, did_you_mean, one_line

VALUES = (".json", ".yaml", ".yml")
# The presets: inside an installed package, or beside the package in a checkout.
SHIPPED = next(
  p for p in (Path(__file__).parent / "configs", Path(__file__).parents[1] / "configs") if p.is_dir()
)


def locate(name: str) -> Path:
  """The file that `--config=name` means: `name` itself, or, where it does not exist, the shipped preset.

  `quickstart`, `quickstart.py` and `configs/quickstart.py` name the preset in any folder that has no such file.
  """
  path = Path(name)
  if path.exists() or str(path.parent) not in (".", "configs"):
    return path
  preset = SHIPPED / f"{path.name.removesuffix('.py')}.py"
  return preset if preset.is_file() else path


def read(path: Path, arg: str | None = None) -> Any:
  """What a config file holds, not completed yet: `get_config(arg)` of a .py file, or the values of the others.

  Raises:
    UserError: the file is absent, does not parse, raises or is of another kind; with file and line.
  """
  if path.suffix.lower() not in VALUES:
    return _call_get_config(path, arg)
  if arg is not None:
    raise UserError(
      f"config file {path} takes no argument, ':{one_line(arg)}' was given",
      "only .py files do; change single values by --config.key=value",
    )
  return read_values(path)


def read_values(path: Path) -> Any:
  """The values in a .json, .yaml or .yml file; a folder stands for the config.json in it (a run's own).

  Raises:
    UserError: see `read`.
  """
  path = path / "config.json" if path.is_dir() else path
  if path.suffix.lower() not in VALUES:
    raise UserError(f"config file {path} holds no plain values", f"name a {', '.join(VALUES)} file")
  text = _text(path)
  return parse_json(text, path) if path.suffix.lower() == ".json" else parse_yaml(text, path)


def parse_json(text: str, path: Path | str) -> Any:
  """JSON text of the file `path`. Raises UserError with the line of a syntax error, or for a key given twice."""
  try:
    return json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, path))
  except json.JSONDecodeError as e:
    raise UserError(f"config file {path} line {e.lineno}: {e.msg}", "fix the syntax of that line") from e
  except (ValueError, RecursionError) as e:  # digits without end, brackets without end
    raise UserError(f"config file {path}: {one_line(str(e))}", "no config looks like this") from e


def _unique(pairs: list[tuple[str, Any]], path: Path | str) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise UserError(f"config file {path}: key '{one_line(twice)}' is given twice in a section", "keep one")
  return found


class _Loader(yaml.SafeLoader):
  """YAML whose `3e-4` is a number (in YAML 1.1 it is text) and whose keys are given once."""

  def construct_mapping(self, node, deep=False):
    seen: set[str] = set()
    for key, _ in node.value:
      if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
        raise yaml.MarkedYAMLError(
          problem=f"key '{key.value}' is given twice in a section", problem_mark=key.start_mark
        )
      seen.add(key.value if isinstance(key.value, str) else repr(key.value))
    return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
  "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def parse_yaml(text: str, path: Path | str) -> Any:
  """YAML text of the file `path`. Raises UserError with the line of a syntax error, or for a key given twice."""
  try:
    return yaml.load(text, Loader=_Loader)
  except yaml.MarkedYAMLError as e:
    line = f" line {e.problem_mark.line + 1}" if e.problem_mark else ""
    raise UserError(
      f"config file {path}{line}: {one_line(e.problem or str(e))}", "fix the syntax of that line"
    ) from e
  except (yaml.YAMLError, ValueError, RecursionError) as e:
    raise UserError(f"config file {path}: {one_line(str(e))}", "write it as YAML text") from e


def _text(path: Path) -> str:
  if not path.is_file():
    raise _absent(path, VALUES)
  try:
    return path.read_text(encoding="utf-8")
  except UnicodeDecodeError as e:
    raise UserError(f"config file {path} is not UTF-8 text (byte {e.start})", "save it as UTF-8") from e
  except OSError as e:
    raise UserError(f"cannot read config file {path}: {e.strerror}", "check that it may be read") from e


def _absent(path: Path, suffixes: tuple[str, ...]) -> UserError:
  beside = [p.name for p in path.parent.glob("*") if p.suffix in suffixes] if path.parent.is_dir() else []
  where = f"in {path.parent}/" if beside else "shipped presets"
  known = beside or [p.stem for p in SHIPPED.glob("*.py")]
  return UserError(f"config file {path} does not exist", f"{did_you_mean(path.name, known)} ({where})")


def _call_get_config(path: Path, arg: str | None) -> Any:
  if not path.is_file():
    raise _absent(path, (".py", *VALUES))
  spec = importlib.util.spec_from_file_location(f"jaxkd_config_{path.stem}", path)
  if spec is None or spec.loader is None:
    raise UserError(
      f"config file {path} is not a Python file", f"name a .py file with a get_config, or {', '.join(VALUES)}"
    )
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except UserError:
    raise
  except SyntaxError as e:
    where = f"{e.filename or path} line {e.lineno}"
    raise UserError(f"config file {where}: {e.msg}", "fix the syntax of that line") from e
  except Exception as e:
    raise UserError(
      f"config file {path} line {_line_in(e, path)}: {one_line(repr(e))}", "the file must import cleanly"
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
    raise UserError(
      f"config file {path} line {_line_in(e, path)}: {one_line(repr(e))}", "get_config must return"
    ) from e


def _line_in(error: Exception, path: Path) -> int:
  lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == path.name]
  return lines[-1] if lines and lines[-1] else 0
