"""`python -m jaxkd.main [COMMAND] --config=FILE[:ARG] [--config.key=value ...] [--workdir=DIR]`."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable

from jaxkd import allocator, distributed
from jaxkd.errors import JaxkdError, UserError, did_you_mean, is_out_of_memory

COMMANDS = {
  "train": "train what the config says; the same command again resumes",
  "evaluate": "a checkpoint on the sealed test split",
  "predict": "class probabilities of image files",
  "analyze": "one checkpoint: curvature, attention, similarity, locality, saliency",
  "forensics": "compare checkpoints: curvature, attention, similarity; writes report.html",
  "study": "the whole experiment: teachers, matched students, seeds, statistics, report",
  "report": "curves and tables from the metrics of one or several runs",
  "bank": "build, check or list feature banks of frozen teachers",
  "replay": "run the step again at which a run failed",
  "plan": "parameters, FLOPs, memory, collectives and step time of a run on a chip; nothing is trained",
  "preview": "a picture grid of what student and teachers see",
  "inspect": "what a checkpoint or weights file holds, without building its model",
  "export": "a checkpoint to torch names, jax.export or ONNX, with a model card",
}
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # wherever they arise
SEVERAL = """several processes (every command; each process with the same other arguments; docs/distributed.md):
  --coordinator=HOST:PORT --processes=N --process=I   or JAXKD_COORDINATOR, JAXKD_PROCESSES, JAXKD_PROCESS
  --distributed=auto      ask the scheduler (SLURM's srun, Open MPI, Kubernetes); off: stay alone; or JAXKD_DISTRIBUTED
  --start-timeout=60      seconds to wait for each other; or JAXKD_START_TIMEOUT"""
EXIT_CODES = """exit codes: 0 done, 1 bug, 2 user error, 3 numeric failure, 4 integrity failure, 5 out of device memory,
  74 cannot write, 75 preempted and saved, 130 interrupted and saved, 134 another process was lost"""


class Parser(argparse.ArgumentParser):
  """Argument errors become a UserError like every other user mistake."""

  def error(self, message: str):
    raise UserError(message, f"see {self.prog} --help")


def usage() -> str:
  lines = "\n".join(f"  {name:10} {text}" for name, text in COMMANDS.items())
  commands = f"commands (default: train; COMMAND --help tells more):\n{lines}"
  return "\n\n".join((f"usage: {__doc__}", commands, SEVERAL, EXIT_CODES)) + "\n"


def run(argv: list[str]) -> int:
  """Runs one command and returns its exit code. Errors a user can act on are raised as JaxkdError."""
  argv, flags = distributed.split_flags(argv)
  if not argv or argv[0] in ("-h", "--help"):
    print(usage())
    return 0 if argv else 2
  command = argv[0] if not argv[0].startswith("-") else "train"
  rest = argv[1:] if command == argv[0] else argv
  if command not in COMMANDS:
    raise UserError(f"unknown command '{command}'", did_you_mean(command, COMMANDS))
  # Compiled programs are kept between runs; JAXKD_CACHE names another folder.
  cache = os.environ.get("JAXKD_CACHE", os.path.join(os.path.expanduser("~"), ".cache", "jaxkd"))
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
  module = importlib.import_module(f"jaxkd.commands.{command}")
  parser = Parser(prog=f"jaxkd {command}", description=module.__doc__)
  module.add_arguments(parser)
  if "-h" not in rest and "--help" not in rest:
    distributed.join(flags)  # before anything counts devices
  if not getattr(module, "TOGETHER", False):
    return distributed.alone(lambda: module.run(parser, rest))
  return module.run(parser, rest)


def main(argv: list[str] | None = None) -> int:
  """Runs one command; errors become `error:` and `hint:` lines and an exit code."""
  return guarded(run, sys.argv[1:] if argv is None else argv)


def guarded(command: Callable[[list[str]], int], argv: list[str]) -> int:
  """`command(argv)`, with every error a user can act on as two lines and an exit code."""
  try:
    return command(argv)
  except JaxkdError as e:
    distributed.tell(e)
    if os.environ.get("JAXKD_DEBUG") == "1":
      traceback.print_exc()
    print(f"error: {e.message}", file=sys.stderr)
    if e.hint:
      print(f"hint: {e.hint}", file=sys.stderr)
    return e.code
  except RuntimeError as e:
    if distributed.is_lost_peer(e):
      print(f"error: the connection to another process broke: {reason(e)}", file=sys.stderr)
      print("hint: see what that process printed; the same command again continues", file=sys.stderr)
      return distributed.LOST
    if not is_out_of_memory(e):
      raise
    print(f"error: out of device memory: {reason(e)}", file=sys.stderr)
    print("hint: lower train.batch_size, eval.batch_size or --images, or use more devices", file=sys.stderr)
    return 5
  except OSError as e:
    if e.errno not in CANNOT_WRITE:
      raise
    print(f"error: cannot write {e.filename or 'a file'}: {e.strerror}", file=sys.stderr)
    print("hint: free space or choose another folder, then run the same command", file=sys.stderr)
    return 74
  except KeyboardInterrupt:
    print("error: interrupted\nhint: the same command again continues", file=sys.stderr)
    distributed.leave(130, at_once=True)
    return 130


def reason(error: RuntimeError) -> str:
  """The first 200 characters of jax's message, which repeats a prefix for each layer the error went through."""
  return re.sub(r"([^:]+: )\1+", r"\1", str(error).splitlines()[0])[:200]


def entry() -> None:
  """The `jaxkd` console script."""
  allocator.keep_freed_memory()  # before JAX is imported
  try:
    code = main()
  except Exception:
    if distributed.processes() == 1:
      raise
    traceback.print_exc()
    code = 1
  distributed.leave(code)
  if code == 130:  # after a second Ctrl-C a save may still run in the background; nobody waits for it
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  sys.exit(code)


if __name__ == "__main__":
  entry()
