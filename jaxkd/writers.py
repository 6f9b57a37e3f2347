"""Where metric rows go besides metrics.jsonl: TensorBoard's event files, and Weights & Biases when asked for."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from jaxkd import distributed, files
from jaxkd.errors import UserError

log = logging.getLogger("jaxkd")


class Writer(Protocol):
  """Something that shows rows elsewhere."""

  def write(self, row: dict[str, float]) -> None: ...

  def close(self) -> None: ...


class TensorBoard:
  """Event files in `folder`, written at once: tensorboardX's own thread hangs its caller once it has died."""

  def __init__(self, folder: Path, *, resume_step: int):
    folder.mkdir(parents=True, exist_ok=True)
    self.events = EventsWriter(str(folder / "events"))
    start = SessionLog(status=SessionLog.START)
    self.events.write_event(Event(wall_time=time.time(), step=resume_step + 1, session_log=start))

  def write(self, row: dict[str, float]) -> None:
    for name, value in row.items():
      if name != "step":
        event = Event(wall_time=time.time(), step=int(row["step"]), summary=scalar(name, value))
        self.events.write_event(event)
    self.events.flush()

  def close(self) -> None:
    self.events.close()


class WandB:
  """A Weights & Biases run, continued under the same id when the run folder is.

  Raises:
    UserError: the package is not installed.
  """

  def __init__(self, folder: Path, *, project: str, config: dict[str, Any], label: str):
    try:
      import wandb
    except ImportError as e:
      raise UserError("log.wandb needs the package wandb", "pip install 'jaxkd[wandb]'") from e
    self.run = wandb.init(
      project=project, name=label, id=_run_id(folder), resume="allow", dir=str(folder), config=config
    )

  def write(self, row: dict[str, float]) -> None:
    self.run.log({k: v for k, v in row.items() if k != "step"}, step=int(row["step"]))

  def close(self) -> None:
    self.run.finish()


def _run_id(folder: Path) -> str:
  """A name for this run that stays the same when it is resumed."""
  path = folder / "wandb_id"
  if not path.exists():
    files.write_text(path, secrets.token_hex(8))
  return path.read_text()


def open_writers(folder: Path, *, resume_step: int, wandb: dict[str, Any] | None = None) -> dict[str, Writer]:
  """TensorBoard, and Weights & Biases when its arguments are given; one that cannot start is said and left out.

  Of several processes that run together only the first has any.

  Raises:
    UserError: Weights & Biases is asked for and not installed.
  """
  if not distributed.is_first():
    return {}
  makers: dict[str, Callable[[], Writer]] = {}
  if wandb:  # first: it may be a mistake of the user's
    makers["Weights & Biases"] = lambda: WandB(folder, **wandb)
  makers["TensorBoard"] = lambda: TensorBoard(folder / "tb", resume_step=resume_step)
  writers = {}
  for name, make in makers.items():
    try:
      writers[name] = make()
    except UserError:
      raise
    except Exception as e:
      log.warning("%s did not start (%s: %s); metrics.jsonl goes on", name, type(e).__name__, e)
  return writers
