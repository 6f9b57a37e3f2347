"""Launchers with programs in place of jaxkd, ssh, srun and mpirun: what each process got, and how often it was run."""

import dataclasses
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BASH = shutil.which("bash")
needs_bash = pytest.mark.skipif(BASH is None, reason="needs bash")

# In place of python: notes its arguments and environment, then does what its line of the plan says for this start.
JAXKD = """#!/usr/bin/env bash
me=${JAXKD_PROCESS:-${SLURM_PROCID:-0}}
starts="$JAXKD_STUB/starts$me"
printf '%s\\n' "$*" >>"$starts"
n=$(wc -l <"$starts")
env >"$JAXKD_STUB/env$me.$n"
plan=$(sed -n "${n}p" "$JAXKD_STUB/plan$me")
case $plan in
  kill) kill -9 $$ ;;
  serve)
    trap 'echo TERM >>"$JAXKD_STUB/signals$me"; exit 75' TERM
    trap 'echo INT >>"$JAXKD_STUB/signals$me"; exit 130' INT
    echo $$ >"$JAXKD_STUB/ready$me"
    while :; do sleep 0.05; done ;;
  deaf)
    trap '' TERM INT
    echo $$ >"$JAXKD_STUB/ready$me"
    while :; do sleep 0.05; done ;;
  log*) echo "${plan#log* }" >&2; plan=${plan#log}; exit "${plan%% *}" ;;
  *) exit "${plan:-0}" ;;
esac
"""


@dataclasses.dataclass
class Stage:
  """A folder with stubs. `plans`: for each process what each of its starts does: an exit code, kill, serve, deaf, or
  `logN TEXT`."""

  folder: Path

  def plan(self, *plans: str) -> None:
    for i, lines in enumerate(plans):
      (self.folder / f"plan{i}").write_text("\n".join(lines.split(",")) + "\n")

  def program(self, name: str, text: str) -> Path:
    path = self.folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path

  def environment(self, **changes: str) -> dict[str, str]:
    foreign = ("JAXKD_", "SLURM_", "OMPI_", "JAX_LOCAL", "XLA_FLAGS", "CUDA_VISIBLE")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    return {
      **kept,
      "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
      "JAXKD_STUB": str(self.folder),
      "JAXKD_PYTHON": str(self.program("jaxkd-python", JAXKD)),
      "JAXKD_RESTART_DELAY": "0",
      "JAX_PLATFORMS": "cpu",
      "TMPDIR": str(self.folder),
      **changes,
    }

  def start(self, *command: str, **changes: str) -> subprocess.Popen:
    return subprocess.Popen(
      [BASH, *map(str, command)],
      cwd=ROOT,
      env=self.environment(**changes),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      stdin=subprocess.DEVNULL,
      text=True,
    )

  def run(self, *command: str, **changes: str) -> tuple[int, str]:
    """Exit code and standard error."""
    process = self.start(*command, **changes)
    _, err = process.communicate(timeout=60)
    return process.returncode, err

  def starts(self, process: int = 0) -> list[str]:
    """The arguments of each start of a process."""
    path = self.folder / f"starts{process}"
    return path.read_text().splitlines() if path.exists() else []

  def got(self, process: int = 0, start: int = 1) -> dict[str, str]:
    """The environment of one start."""
    lines = (self.folder / f"env{process}.{start}").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)

  def wait_for(self, *names: str) -> None:
    for _ in range(400):
      if all((self.folder / n).exists() for n in names):
        return
      time.sleep(0.05)
    raise AssertionError(f"{names} did not appear")

  def pid(self, process: int) -> int:
    """Of the stub itself, once it serves."""
    path = self.folder / f"ready{process}"
    self.wait_for(path.name)
    while not (text := path.read_text()):
      time.sleep(0.01)
    return int(text)

  def signals(self, process: int) -> list[str]:
    path = self.folder / f"signals{process}"
    return path.read_text().split() if path.exists() else []


def is_alive(pid: int) -> bool:
  try:
    state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
  except OSError:
    return False
  return state != "Z"


def gone(*pids: int) -> bool:
  """Whether all of them end within 10 s."""
  for _ in range(200):
    if not any(map(is_alive, pids)):
      return True
    time.sleep(0.05)
  return False


def end(process: subprocess.Popen, number: int = signal.SIGTERM) -> tuple[int, str]:
  process.send_signal(number)
  _, err = process.communicate(timeout=30)
  return process.returncode, err
