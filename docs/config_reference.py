"""Writes docs/configs.md: every config key, from the schema.

python -m docs.config_reference
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docs.tables import section_table
from jaxkd import schema
from jaxkd.schema import Each, Free

FILE = Path(__file__).parent / "configs.md"

INTRODUCTION = """# Configs

This file is made by `python -m docs.config_reference` from `jaxkd/schema.py`; a test says when it is out of date.

A config says everything about a run or a study. What it leaves out has the defaults below.

```
python -m jaxkd.main [COMMAND] --config=FILE[:ARG] [--config.key=value ...] [--workdir=DIR]
```

## Files

| `--config=` | what is read |
|---|---|
| `configs/quickstart.py` | the dict that `get_config(arg)` of a Python file returns |
| `configs/study.py:digits,smoke,seeds=5` | the same with a string argument: flags and `name=value` |
| `runs/quickstart/config.json` | the values themselves; every run keeps its own config in this file |
| `experiment.yaml`, `experiment.yml` | the same as YAML; a key that is missing has its default |
| `configs/from_file.py:runs/quickstart` | a run's own config again: its folder, or a .json or .yaml file |

The first word of a string argument may be the value of its first option: `study.py:digits` is `study.py:data=digits`.

All of these are completed and checked alike. A wrong key, type, range or combination ends with exit code 2, one
`error:` line and one `hint:` line, before anything is compiled or written. A value that was set and does nothing beside
the others (`optim.momentum` with `optim.name=adamw`) is a `warning:` line.

## Values on the command line

`--config.optim.lr=3e-4` sets one key after the file was read; its type is that of the key.

| type | is written | |
|---|---|---|
| text | `--config.data.root=data/cifar10` | as it is |
| number | `3e-4`, `0.05` | finite |
| whole number | `128` | no `1e3`, no `2.5` |
| true / false | `true`, `false` | also `yes`, `no`, `on`, `off` |
| list | `15,25`, `(15,25)`, `[15,25]`, `15`, `()` | also `"a,b",c` |

Commas inside brackets and quotes do not separate: `--config.optim.freeze=block0(0|1)/.*,norm/.*` has two expressions.

Options of models are not in this schema; `jaxkd.models.options(name)` lists them. They are numbers, `true`, `false`,
`null`, lists (`8,16`; of one number `8,` or `[8]`) or text. A new `kind` for a term keeps the options both kinds have.
"""

TITLES = {
  "": "The run",
  "data": "`data`: the images",
  "model": "`model`: the student",
  "teachers": "`teachers.NAME`: frozen networks, or the student's own average",
  "terms": "`terms.NAME`: what is minimised",
  "optim": "`optim`: optimiser and learning rate",
  "study": "`study`: the matched experiment",
}


def text() -> str:
  """All of docs/configs.md."""
  run = _sections(schema.RUN, "")
  study = {"study": schema.STUDY["study"]}
  return "\n".join([INTRODUCTION, *run, *_sections(study, "", own=False)]).rstrip() + "\n"


def _sections(fields: dict[str, Any], path: str, *, own: bool = True) -> list[str]:
  """A table for the keys of `fields`, and one for each section in it."""
  found = [_titled(path, section_table(fields, f"{path}." * bool(path)))] if own else []
  for key, entry in fields.items():
    inner = f"{path}.{key}".removeprefix(".")
    if isinstance(entry, Free):
      table = section_table(entry.fields, f"{inner}.")
      found.append(_titled(inner, f"{table}\nAll other keys are options of the model that `name` names.\n"))
    elif isinstance(entry, Each):
      found += _named(entry, inner)
    elif isinstance(entry, dict):
      found += _sections(entry, inner)
  return found


def _named(entry: Each, path: str) -> list[str]:
  """The sections under the user's own names; a whole run inside another is not repeated."""
  fields = {k: v for k, v in entry.schema.items() if v is not schema.RUN}
  if path.startswith("study."):
    fields = {k: v for k, v in fields.items() if not isinstance(v, Each)}
    inside = [f"`{k}`" for k in entry.schema if k not in fields]
    more = f"\nAnd {', '.join(inside)} as above.\n"
    return [_titled(f"{path}.NAME", section_table(fields, f"{path}.NAME.") + more)]
  return _sections(fields, f"{path}.NAME") + [_kinds()] * (path == "terms")


def _kinds() -> str:
  """One table for each kind of term that has options of its own."""
  plain = [f"`{kind}`" for kind, fields in schema.KINDS.items() if not fields]
  tables = [
    f"#### `kind: {kind}`\n\n{section_table(fields)}" for kind, fields in schema.KINDS.items() if fields
  ]
  head = f"### Kinds of terms\n\nOptions besides the common ones of `terms.NAME`. Without any: {', '.join(plain)}.\n"
  return "\n".join([head, *tables])


def _titled(path: str, body: str) -> str:
  known = TITLES.get(path.removesuffix(".NAME"))
  return f"{'##' if known or '.' not in path else '###'} {known or f'`{path}`'}\n\n{body}"


if __name__ == "__main__":
  FILE.write_text(text())
