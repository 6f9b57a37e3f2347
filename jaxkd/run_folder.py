"""The folder of a run: whose it is, where it was made, whether it is done."""

from __future__ import annotations

import collections
import datetime
import logging
import platform
import shlex
import subprocess
import sys
from importlib import metadata as packages
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from ml_collections import ConfigDict

import jaxkd
from jaxkd import config as configs
from jaxkd import distributed, files
from jaxkd.data.stored import cores
from jaxkd.errors import UserError, one_line

if TYPE_CHECKING:
  from jaxkd.experiment import Experiment

log = logging.getLogger("jaxkd")
# Changing these does not change what is computed, so a run may be resumed with other values; a sharding changes the
# order of sums, as another number of devices does.
SAME_BATCHES = ("data.root", "data.download", "data.placement", "data.device_gib", "data.workers")
HARMLESS = ("log.", "checkpoint.", "eval.batch_size", "sharding.", *SAME_BATCHES)


def check_folder(config: ConfigDict, folder: Path) -> None:
  """Raises UserError when `folder` holds a run of another config, naming the keys that differ."""
  changed = {k: v for k, v in _changed_keys(config, folder).items() if not k.startswith(HARMLESS)}
  if changed:
    keys = ", ".join(f"{k} ({old!r} there, {new!r} now)" for k, (old, new) in list(changed.items())[:4])
    raise UserError(
      f"{folder} holds a run with another config: {keys}", "choose another --workdir, or that config"
    )


def _changed_keys(config: ConfigDict, folder: Path) -> dict[str, tuple[Any, Any]]:
  """Keys in which the run of `folder` differs from `config`, as {key: (there, now)}; none if there is no run."""
  path = folder / "config.json"
  if not path.exists():
    return {}
  return configs.difference(configs.from_json(path.read_text()), configs.from_json(configs.to_json(config)))


def steps(folder: Path) -> set[int]:
  """The checkpoints that were completed and are not known to be damaged."""
  return {int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit()}


def has_steps(folder: Path) -> bool:
  """Whether a checkpoint was ever completed here, good or damaged."""
  return any(
    p.name.partition(".")[0].isdigit() and "tmp" not in p.name for p in (folder / "checkpoints").glob("*")
  )


def state(folder: Path) -> str:
  """ "done", "begun" (it has steps to go on from) or "new"."""
  if (folder / "DONE").exists():
    return "done"
  return "begun" if has_steps(folder) else "new"


def facts(experiment: Experiment) -> dict[str, Any]:
  """What processes that run together must have in common: config, data and teachers."""
  config = {
    f"config {key}": value
    for key, value in configs.flat(experiment.config).items()
    if key not in SAME_BATCHES
  }
  teachers = {f"teacher {name}": t.digest for name, t in experiment.teachers.items()}
  devices = {
    "devices per process": jax.local_device_count(),
    "kind of device": jax.local_devices()[0].device_kind,
  }
  return {**config, "data digest": experiment.dataset.digest, **teachers, **devices}


def finished(folder: Path) -> tuple[int, dict[str, Any]]:
  best = files.read_json(folder / "best.json")
  return files.read_json(folder / "DONE")["step"], best


def write_head(config: ConfigDict, folder: Path) -> None:
  """Writes what the run is and where it runs; of a resumed run, logs in what it differs from before."""
  now = environment()
  if not distributed.is_first():
    return
  for key, (old, new) in _changed_keys(config, folder).items():
    log.info("config %s: %r before, %r from here", key, old, new)
  for key, (old, new) in _changed_environment(folder, now).items():
    log.warning(
      "the run was started with %s %s, now %s: results may not be bitwise those of one run", key, old, new
    )
  files.write_text(folder / "config.json", configs.to_json(config) + "\n")
  if not (folder / "command.txt").exists():
    files.write_text(folder / "command.txt", command_line() + "\n")
  files.write_json(folder / "env.json", now)
  for stale in ("PREEMPTED", "FAILED.json"):
    (folder / stale).unlink(missing_ok=True)


def _changed_environment(folder: Path, now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
  """Versions, devices and code version that are not those of `env.json`, as {name: (before, now)}."""
  path = folder / "env.json"
  if not path.exists():
    return {}
  before = files.read_json(path)
  return {k: (before.get(k), v) for k, v in now.items() if k != "date" and before.get(k, v) != v}


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
    "processes": distributed.processes(),
    "git_commit": commit.stdout.strip() or "unknown",
    "date": datetime.date.today().isoformat(),
  }


def hardware() -> str:
  """The accelerator, or the processor and the number of cores this process may use."""
  device = jax.devices()[0]
  if device.platform != "cpu":
    count = jax.device_count() if distributed.processes() > 1 else jax.local_device_count()
    return f"{count} x {device.device_kind}"
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
  except (OSError, StopIteration):
    name = platform.processor() or platform.machine()
  return f"{name}, {cores()} cores"


class FileLog:
  """Sends the `jaxkd` logger to a run's train.log, and its warnings to the terminal too, while the run lasts.

  Of several processes that run together only the first says anything.
  """

  def __init__(self, path: Path):
    if not distributed.is_first():  # what it would say, the first process says
      self.handlers: tuple[logging.Handler, ...] = (logging.NullHandler(),)
      return
    self.handlers = (_LogFile(path), logging.StreamHandler())
    self.handlers[0].setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s"))
    self.handlers[1].setFormatter(_OneLine("warning: %(message)s"))
    self.handlers[1].setLevel(logging.WARNING)

  def __enter__(self) -> None:
    self.before = log.propagate, log.level
    log.propagate = False  # absl gives the root logger a handler of its own
    log.setLevel(logging.INFO)
    for handler in self.handlers:
      log.addHandler(handler)

  def __exit__(self, *_: object) -> None:
    for handler in self.handlers:
      log.removeHandler(handler)
      handler.close()
    log.propagate = self.before[0]
    log.setLevel(self.before[1])


class _OneLine(logging.Formatter):
  """Records without control characters: a class or run name cannot forge a line."""

  def format(self, record: logging.LogRecord) -> str:
    return one_line(super().format(record))


class _LogFile(logging.FileHandler):
  def handleError(self, record: logging.LogRecord) -> None:
    """Drops the line: a full disk stops the run at its next metric or checkpoint, with a message of its own."""
