"""What a run reports: metrics.jsonl (no step missing or doubled), the same rows elsewhere, progress with ETA."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TextColumn,
  TimeElapsedColumn,
  TimeRemainingColumn,
)

from jaxkd import distributed, files
from jaxkd.errors import CannotWrite, one_line
from jaxkd.writers import Writer

log = logging.getLogger("jaxkd")


class MetricLog:
  """The metric files of one run folder.

  `metrics.jsonl` is what a run is judged by, so a row that cannot be written stops the run. The other writers are
  views of it: one that fails is said once and left out.

  Args:
    folder: the run folder. resume_step: rows of later steps, left by a killed run, are dropped.
    writers: where rows go besides: name -> writer with `write(row)` and `close()`.

  Of several processes that run together only the first writes.
  """

  def __init__(self, folder: Path, *, resume_step: int, writers: Mapping[str, Writer] | None = None):
    self.path = folder / "metrics.jsonl" if distributed.is_first() else Path(os.devnull)
    self._keep_until(resume_step)
    try:
      self.file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as e:
      raise self._cannot_write(e) from e
    self.writers = dict(writers or {})

  def _keep_until(self, step: int) -> None:
    rows = [r for r in read(self.path) if r["step"] <= step]
    files.write_text(self.path, "".join(json.dumps(r) + "\n" for r in rows))

  def write(self, row: dict[str, float]) -> None:
    """Appends one row; `row["step"]` grows from row to row.

    Raises:
      CannotWrite: the disk took no whole row; the file ends in the one before.
    """
    size, line = os.fstat(self.file).st_size, (json.dumps(row) + "\n").encode()
    try:
      while line:
        line = line[os.write(self.file, line) :]
    except OSError as e:
      os.ftruncate(self.file, size)
      raise self._cannot_write(e) from e
    for name in list(self.writers):
      self._tell(name, lambda writer: writer.write(row))

  def sync(self) -> None:
    """Forces the rows to the disk: a checkpoint must never be newer than its metrics."""
    if distributed.is_first():
      os.fsync(self.file)

  def close(self) -> None:
    os.close(self.file)
    for name in list(self.writers):
      self._tell(name, lambda writer: writer.close())

  def _tell(self, name: str, act: Callable[[Writer], None]) -> None:
    try:
      act(self.writers[name])
    except Exception as e:  # whatever a service or a library raises: training does not depend on it
      log.warning("%s stopped (%s: %s); metrics.jsonl goes on", name, type(e).__name__, e)
      with contextlib.suppress(Exception):
        self.writers.pop(name).close()

  def _cannot_write(self, error: OSError) -> CannotWrite:
    return CannotWrite(
      f"cannot write {self.path}: {error.strerror}", "free space, then run the same command to continue"
    )


def read(path: Path) -> list[dict[str, float]]:
  """The rows of a metrics.jsonl; a last line that a kill cut short is left out."""
  if not path.exists():
    return []
  lines = path.read_text().split("\n")
  return [json.loads(line) for line in lines[:-1]]


class ProgressLine:
  """A bar with ETA and images/s on a terminal; elsewhere, and on a dumb one, a plain line every ten seconds."""

  def __init__(self, label: str, *, done: int, total: int, unit_size: int = 1):
    self.label, self.total, self.first, self.unit_size = one_line(label), total, done, unit_size
    self.start = self.last = time.monotonic()
    terminal = sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    self.bar = _bar() if terminal and distributed.is_first() else None
    if self.bar:
      self.bar.start()
      self.task = self.bar.add_task(self.label, total=total, completed=done, note="")

  def update(self, done: int, note: str = "") -> None:
    """Says that `done` of `total` are done. A clock that stood still or went back gives no rate, so no ETA."""
    now, note = time.monotonic(), one_line(note)
    rate = (done - self.first) / (now - self.start) if now > self.start and done > self.first else None
    speed = f"{rate * self.unit_size:,.0f} images/s" if rate and self.unit_size > 1 else ""
    if not distributed.is_first():
      return
    if self.bar:
      self.bar.update(self.task, completed=done, note=f"{speed} {note}")
    elif now - self.last >= 10 or done >= self.total:
      self.last = now
      left = f"{max(self.total - done, 0) / rate:.0f} s left" if rate else "time left unknown"
      print(
        f"{self.label}: {done}/{self.total}, {left} {speed} {note}".rstrip(),
        file=sys.stderr,
        flush=True,
      )

  def close(self) -> None:
    if self.bar:
      self.bar.stop()


def _bar() -> Progress:
  from rich.console import Console

  columns = (
    TextColumn("{task.description}", markup=False),
    BarColumn(bar_width=24),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TextColumn("ETA"),
    TimeRemainingColumn(),
    TextColumn("{task.fields[note]}", markup=False),
  )
  return Progress(*columns, console=Console(stderr=True), transient=True)
