"""The folder of a run: whose it is, where it was made, whether it is done."""

from __future__ import annotations

import collections
import datetime
import logging
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import jaxkd
from jaxkd import config as configs
from jaxkd import files
from jaxkd.errors import UserError

log = logging.getLogger("jaxkd")
# Changing these does not change what is computed, so a run may be resumed with other values.
HARMLESS = ("log.", "checkpoint.", "eval.batch_size", "data.root", "data.download")


def check_folder(config: ConfigDict, folder: Path) -> None:
  """Raises UserError when `folder` holds a run of another config, naming the keys that differ."""
  path = folder / "config.json"
  if not path.exists():
    return
  changed = configs.difference(
    configs.from_json(path.read_text()), configs.from_json(configs.to_json(config))
  )
  changed = {k: v for k, v in changed.items() if not k.startswith(HARMLESS)}
  if changed:
    keys = ", ".join(f"{k} ({old!r} there, {new!r} now)" for k, (old, new) in list(changed.items())[:4])
    raise UserError(
      f"{folder} holds a run with another config: {keys}", "choose another --workdir, or that config"
    )


def finished(folder: Path) -> tuple[int, dict[str, Any]]:
  best = files.read_json(folder / "best.json")
  return files.read_json(folder / "DONE")["step"], best


def write_head(config: ConfigDict, folder: Path) -> None:
  files.write_text(folder / "config.json", configs.to_json(config) + "\n")
  if not (folder / "command.txt").exists():
    files.write_text(folder / "command.txt", command_line() + "\n")
  files.write_json(folder / "env.json", environment())
  for stale in ("PREEMPTED", "FAILED.json"):
    (folder / stale).unlink(missing_ok=True)


def command_line() -> str:
  """The command that runs now, ready for a shell."""
  words = ["python", "-m", "jaxkd.main", *sys.argv[1:]]
  return shlex.join(words)


def environment() -> dict[str, Any]:
  """Versions, devices and code version: what a number depends on besides its config."""
  names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
  commit = subprocess.run(
    ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
  )
  return {
    "jaxkd": jaxkd.__version__,
    "python": platform.python_version(),
    **{n: packages.version(n) for n in names},
    "devices": dict(collections.Counter(d.device_kind for d in jax.devices())),
    "hardware": hardware(),
    "git_commit": commit.stdout.strip() or "unknown",
    "date": datetime.date.today().isoformat(),
  }


def hardware() -> str:
  """The accelerator, or the processor and the number of cores this process may use."""
  device = jax.devices()[0]
  if device.platform != "cpu":
    return f"{jax.device_count()} x {device.device_kind}"
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
  except (OSError, StopIteration):
    name = platform.processor() or platform.machine()
  return (
    f"{name}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
  )


class FileLog:
  """Sends the `jaxkd` logger to a run's train.log while the run lasts."""

  def __init__(self, path: Path):
    self.handler = logging.FileHandler(path)
    self.handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

  def __enter__(self) -> None:
    log.propagate = False  # absl gives the root logger a handler of its own
    log.addHandler(self.handler)
    log.setLevel(logging.INFO)

  def __exit__(self, *_: object) -> None:
    log.removeHandler(self.handler)
    self.handler.close()
