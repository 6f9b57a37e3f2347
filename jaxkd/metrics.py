"""What a run reports: metrics.jsonl (no step missing or doubled), TensorBoard, train.log, progress with ETA."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path

from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TextColumn,
  TimeElapsedColumn,
  TimeRemainingColumn,
)
from tensorboardX import SummaryWriter

from jaxkd.errors import CannotWrite

log = logging.getLogger("jaxkd")


class MetricLog:
  """The metric files of one run folder.

  Args:
    folder: the run folder. resume_step: rows of later steps, left by a killed run, are dropped.
  """

  def __init__(self, folder: Path, *, resume_step: int):
    self.path = folder / "metrics.jsonl"
    self._keep_until(resume_step)
    self.file = open(self.path, "a", buffering=1)  # noqa: SIM115 - closed by close()
    self.board = SummaryWriter(str(folder / "tb"), purge_step=resume_step + 1)

  def _keep_until(self, step: int) -> None:
    rows = [r for r in read(self.path) if r["step"] <= step]
    self.path.write_text("".join(json.dumps(r) + "\n" for r in rows))

  def write(self, row: dict[str, float]) -> None:
    """Appends one row; `row["step"]` grows from row to row."""
    try:
      self.file.write(json.dumps(row) + "\n")
    except OSError as e:
      raise CannotWrite(
        f"cannot write {self.path}: {e.strerror}", "free space, then run the same command"
      ) from e
    for name, value in row.items():
      if name != "step":
        self.board.add_scalar(name, value, row["step"])

  def close(self) -> None:
    self.file.close()
    self.board.close()


def read(path: Path) -> list[dict[str, float]]:
  """The rows of a metrics.jsonl; a last line that a kill cut short is left out."""
  if not path.exists():
    return []
  lines = path.read_text().split("\n")
  return [json.loads(line) for line in lines[:-1]]


class ProgressLine:
  """A bar with ETA and images/s on a terminal; elsewhere a plain line at most every ten seconds."""

  def __init__(self, label: str, *, done: int, total: int, unit_size: int = 1):
    self.label, self.total, self.first, self.unit_size = label, total, done, unit_size
    self.start = self.last = time.monotonic()
    self.bar = _bar() if sys.stderr.isatty() else None
    if self.bar:
      self.bar.start()
      self.task = self.bar.add_task(label, total=total, completed=done, note="")

  def update(self, done: int, note: str = "") -> None:
    now = time.monotonic()
    rate = (done - self.first) / max(now - self.start, 1e-9)
    speed = f"{rate * self.unit_size:,.0f} images/s" if self.unit_size > 1 else ""
    if self.bar:
      self.bar.update(self.task, completed=done, note=f"{speed} {note}")
    elif now - self.last >= 10 or done >= self.total:
      self.last = now
      left = max(self.total - done, 0) / max(rate, 1e-9)
      print(
        f"{self.label}: {done}/{self.total}, {left:.0f} s left {speed} {note}".rstrip(),
        file=sys.stderr,
        flush=True,
      )

  def close(self) -> None:
    if self.bar:
      self.bar.stop()


def _bar() -> Progress:
  from rich.console import Console

  columns = (
    TextColumn("{task.description}"),
    BarColumn(bar_width=24),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TextColumn("ETA"),
    TimeRemainingColumn(),
    TextColumn("{task.fields[note]}"),
  )
  return Progress(*columns, console=Console(stderr=True), transient=True)
