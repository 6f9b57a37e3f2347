"""What a run folder says of a run: curves, config, environment, and what is wrong with its terms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxkd import config as configs
from jaxkd import diagnosis, files, metrics
from jaxkd.errors import UserError


def read(folder: Path, name: str = "") -> dict[str, Any]:
  """The run in `folder` under `name` (its folder's by default), in the schema `jaxkd.training/1`.

  Raises:
    UserError: no run there, or one that has logged nothing yet.
  """
  rows = metrics.read(folder / "metrics.jsonl")
  if not rows or not (folder / "config.json").exists():
    state = "has no row in its metrics.jsonl" if rows == [] and folder.is_dir() else "is no run folder"
    replicas = sorted(path.parent for path in folder.glob("seed*/metrics.jsonl"))
    hint = "name a folder that train made, such as runs/quickstart"
    if replicas:
      hint = f"name one of its replicas, such as {replicas[0]}"
    raise UserError(f"{folder} {state}", hint)
  environment = files.read_json(folder / "env.json")
  return {
    "schema": "jaxkd.training/1",
    "name": name or folder.absolute().name,
    "date": environment["date"],
    "command": (folder / "command.txt").read_text().strip(),
    "hardware": environment["hardware"],
    "versions": {k: environment[k] for k in ("jaxkd", "python", "jax", "flax", "optax")},
    "config": configs.flat(configs.from_json((folder / "config.json").read_text())),
    "rows": rows,
    "warnings": diagnosis.last_warnings(rows),
  }
