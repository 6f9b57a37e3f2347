"""Stopping on request: SIGTERM and Ctrl-C end a run at the next step, saved.

Of several processes that run together one may be told and the others not, and none can stop alone. Whoever was told
says so in the common store; then every process says after how many dispatches it was found there, goes on to the one
after the farthest of them, and all stop at the same step. Nobody asks anybody in a run that nobody stops.
"""

from __future__ import annotations

import itertools
import signal
import threading

from jaxkd import distributed

POLL = 1.0  # seconds between two looks at the common store
_runs = itertools.count()


class Signals:
  """Notes SIGTERM and the first SIGINT; a second SIGINT acts at once. Restores the old handlers.

  Use it as a context manager, and call `due` after every dispatch of steps.
  """

  def __init__(self) -> None:
    self.received: int | None = None
    self._vote = _Vote() if distributed.processes() > 1 else None

  def __enter__(self) -> Signals:
    self.old = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
    if self._vote:
      self._vote.start()
    return self

  def _note(self, number: int, _frame: object) -> None:
    self.received = number
    signal.signal(signal.SIGINT, signal.default_int_handler)

  def due(self) -> int | None:
    """The signal because of which the run stops here, after the same dispatch in every process; or None."""
    return self._vote.due(self.received) if self._vote else self.received

  def __exit__(self, *_: object) -> None:
    if self._vote:
      self._vote.close()
    for number, handler in self.old.items():
      signal.signal(number, handler)


class _Vote:
  """The processes' agreement on where to stop. A thread does the talking: the main one may wait for a device."""

  def __init__(self) -> None:
    self.place = f"jaxkd/stop/{next(_runs)}"
    self.lock = threading.Lock()
    self.calls = 0  # of `due`: the same sequence in all processes
    self.told = self.said = self.closed = False
    self.number = self.last = 0
    self.known = threading.Event()
    self.ended = threading.Event()
    self.thread = threading.Thread(target=self._talk, name="jaxkd-signals", daemon=True)

  def start(self) -> None:
    self.thread.start()

  def due(self, received: int | None) -> int | None:
    with self.lock:
      self.calls += 1
      if not self.said:
        if received and not self.told:
          self.told = True
          distributed.put(f"{self.place}/signal", str(received))
        return None
    self.known.wait()
    return self.number if self.calls >= self.last else None

  def _talk(self) -> None:
    while not self.ended.wait(POLL):
      number = distributed.try_get(f"{self.place}/signal")
      if number is None:
        continue
      with self.lock:
        self._say()
      others = [distributed.get(f"{self.place}/at/{i}") for i in range(distributed.processes())]
      self.number, self.last = int(number), max(map(int, others)) + 1
      self.known.set()
      return

  def _say(self) -> None:
    if not self.said:
      self.said = True
      distributed.put(f"{self.place}/at/{distributed.process()}", str(self.calls))

  def close(self) -> None:
    """Nobody must wait for a process whose steps are done."""
    self.ended.set()
    with self.lock:
      self._say()
