"""jaxkd's command line as one process of several, watched and disturbed as TEST_* variables say.

TEST_WRITES: file that gets the paths which the process opens for writing, renames or makes, one a line.
TEST_SIGNAL: "NUMBER@STEP", a signal it sends itself before that step. TEST_SLOW: seconds each step takes longer.
TEST_VERSION: "PACKAGE VERSION" that it believes to have. TEST_EXTRA: further arguments.
"""

import os
import sys
import time
from importlib import metadata


def watch(path):
  out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

  def hook(event, arguments):
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
      os.write(out, f"{arguments[0]}\n".encode())

  sys.addaudithook(hook)


def disturb():
  from jaxkd import signals, train

  signals.POLL = 0.1
  number, _, at = os.environ.get("TEST_SIGNAL", "0@-1").partition("@")
  slow, advance = float(os.environ.get("TEST_SLOW", "0")), train._Loop._advance

  def disturbed(loop, count):
    if loop.end == int(at):
      os.kill(os.getpid(), int(number))
    time.sleep(slow)
    return advance(loop, count)

  train._Loop._advance = disturbed


if __name__ == "__main__":
  sys.argv += os.environ.get("TEST_EXTRA", "").split()
  if path := os.environ.get("TEST_WRITES"):
    watch(path)
  if fake := os.environ.get("TEST_VERSION"):
    package, number = fake.split()
    true = metadata.version
    metadata.version = lambda name: number if name == package else true(name)

  from jaxkd import distributed, main

  join = distributed.join

  def join_then_disturb(flags):
    join(flags)  # imports jax
    disturb()

  distributed.join = join_then_disturb
  main.entry()
