"""One process per run folder, or one group of processes that run together: `lock.json` says which, by the first one.

On the same machine the owner's process is looked up (number and start time, since numbers are reused). A process on
another machine cannot be; its lock counts as long as its time stamp, renewed every `BEAT` seconds, is younger than
`STALE` seconds by the clock of the file system that holds the folder.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

from jaxkd import distributed
from jaxkd.errors import CannotWrite, UserError, one_line

NAME = "lock.json"
BEAT, STALE = 15.0, 120.0  # seconds


class Lock:
  """Holds a run folder (made if need be) while the `with` block runs.

  Raises:
    UserError: a live process holds it; the message names host and process. CannotWrite: the folder takes no files.
  """

  def __init__(self, folder: Path):
    self.path = folder / NAME
    self.text = json.dumps(_owner(os.getpid()))
    self.note = ""  # whose stale lock was taken over
    self.released = threading.Event()

  def __enter__(self) -> Lock:
    if not distributed.is_first():
      return self
    try:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      while not self._create():
        self._take_over()
    except OSError as e:
      raise CannotWrite(
        f"cannot write {self.path}: {e.strerror}", "make the folder writable, or choose another --workdir"
      ) from e
    threading.Thread(target=self._beat, daemon=True).start()
    return self

  def __exit__(self, *_: object) -> None:
    self.released.set()
    if distributed.is_first() and self._is_ours():
      self.path.unlink(missing_ok=True)

  def _create(self) -> bool:
    """Whether the file could be made; only one of several processes can."""
    try:
      handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
      return False
    try:
      os.write(handle, self.text.encode())
    except OSError:  # an empty lock would keep everybody out for a while
      self.path.unlink(missing_ok=True)
      raise
    finally:
      os.close(handle)
    return True

  def _take_over(self) -> None:
    """Removes a lock nobody holds any more, and notes whose it was."""
    try:
      text = self.path.read_text()
    except FileNotFoundError:
      return  # released meanwhile
    owner, age = _parse(text), self._age()
    who = f"process {owner.get('pid', '?')} on {one_line(str(owner.get('host', '?')))}"
    if _alive(owner, age):
      raise UserError(
        f"{self.path.parent} is in use by {who} since {one_line(str(owner.get('start', '?')))}",
        f"wait for it or stop it; a lock of another host counts until {STALE:.0f} s after its last sign of life",
      )
    self.note = f"{who} is gone without releasing {self.path}; continuing its run"
    grave = self.path.with_name(f".{NAME}.{os.getpid()}")
    try:
      self.path.rename(grave)  # of several processes one succeeds
    except FileNotFoundError:
      return
    grave.unlink()

  def _age(self) -> float:
    """Seconds since the lock's last sign of life, by the clock of the file system."""
    probe = self.path.with_name(f".{NAME}.{os.getpid()}")
    probe.write_text("")
    try:
      return probe.stat().st_mtime - self.path.stat().st_mtime
    except FileNotFoundError:
      return 0.0
    finally:
      probe.unlink()

  def _beat(self) -> None:
    while not self.released.wait(BEAT):
      if not self._is_ours():
        return
      with contextlib.suppress(OSError):  # released this very moment, or a file system that hiccups
        os.utime(self.path)

  def _is_ours(self) -> bool:
    try:
      return self.path.read_text() == self.text
    except OSError:
      return False


def _owner(pid: int) -> dict[str, Any]:
  start = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  return {"host": socket.gethostname(), "pid": pid, "start": start, "process_start": _process_start(pid)}


def _parse(text: str) -> dict[str, Any]:
  try:
    owner = json.loads(text)
  except ValueError:  # its writer was killed in the middle
    return {}
  return owner if isinstance(owner, dict) else {}


def _alive(owner: dict[str, Any], age: float) -> bool:
  if owner.get("host") != socket.gethostname() or not isinstance(owner.get("pid"), int):
    return age < STALE
  start = _process_start(owner["pid"])
  return start is not None and start == owner.get("process_start", start)


def _process_start(pid: int) -> int | str | None:
  """When the process started, in clock ticks since boot ("unknown" where the system has no /proc); None if it is not
  running."""
  try:
    os.kill(pid, 0)
  except (ProcessLookupError, OverflowError):
    return None
  except PermissionError:
    pass  # somebody else's
  try:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
  except OSError:
    return "unknown"
