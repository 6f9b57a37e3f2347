"""Errors a user can act on: one `error:` line, one `hint:` line and an exit code each (see docs/architecture.md)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class JaxkdError(Exception):
  """A failure with an exit code of its own. `message` says what is wrong, `hint` what to do; one line each."""

  code = 1

  def __init__(self, message: str, hint: str = ""):
    self.message, self.hint = one_line(message), one_line(hint)
    super().__init__(self.message)


class UserError(JaxkdError):
  """A wrong config, file or argument: found before anything is compiled or written."""

  code = 2


class NumericFailure(JaxkdError):
  """Training diverged or collapsed."""

  code = 3


class IntegrityFailure(JaxkdError):
  """Stored bytes are not the bytes that were written."""

  code = 4


class OutOfDeviceMemory(JaxkdError):
  """A program asked the device for more memory than it has."""

  code = 5


class CannotWrite(JaxkdError):
  """The run folder does not take our files (full, read-only)."""

  code = 74


class Preempted(JaxkdError):
  """SIGTERM arrived; the state was saved and the same command resumes."""

  code = 75


class Interrupted(JaxkdError):
  """The user pressed Ctrl-C; the state was saved and the same command resumes."""

  code = 130


def did_you_mean(word: str, known: Iterable[str]) -> str:
  """`did you mean 'temperature'?`, or the list of what is known when nothing is close."""
  known = sorted(known)
  return nearest(word, known) or f"known: {', '.join(known) or 'nothing'}"


def nearest(word: str, known: Iterable[str]) -> str:
  """`did you mean 'temperature'?`, or nothing: for a message that lists what is known anyway."""
  close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
  return f"did you mean '{close[0]}'?" if close else ""


def one_line(text: str) -> str:
  """`text` without control characters, so that a name from a file cannot forge a log line."""
  return "".join(c if c.isprintable() else " " for c in text).strip()


def is_out_of_memory(error: BaseException) -> bool:
  """Whether jax says that the device's memory did not suffice: XLA's status for it is the same on every platform."""
  return isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
