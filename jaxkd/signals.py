"""Stopping on request: SIGTERM and Ctrl-C end a run at the next step, saved."""

from __future__ import annotations

import signal


class Signals:
  """Notes SIGTERM and the first SIGINT; a second SIGINT acts at once. Restores the old handlers."""

  def __init__(self) -> None:
    self.received: int | None = None

  def __enter__(self) -> Signals:
    self.old = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
    return self

  def _note(self, number: int, _frame: object) -> None:
    self.received = number
    signal.signal(signal.SIGINT, signal.default_int_handler)

  def __exit__(self, *_: object) -> None:
    for number, handler in self.old.items():
      signal.signal(number, handler)
