"""Starts several processes of jaxkd on this machine."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIG = Path(__file__).parent / "run_config.py"
# What a scheduler or an outer run might have set.
FOREIGN = ("SLURM_", "OMPI_", "PMIX_", "JAXKD_", "JOB_COMPLETION", "KUBERNETES_", "TEST_")


def free_port():
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def scheduler_port():
  """A free port of those that jax takes under a scheduler."""
  for port in range(61440, 65536):
    with socket.socket() as s:
      if s.connect_ex(("127.0.0.1", port)):
        return port
  raise RuntimeError("no free port")


def environment(**more):
  """Of a process: one fake device, nothing of an outer run, compiled programs kept."""
  clean = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
  cache = (
    {"JAXKD_CACHE": os.environ.get("JAXKD_CACHE", "/nonexistent")} if "JAXKD_CACHE" in os.environ else {}
  )
  flags = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
  return {
    **clean,
    **cache,
    "XLA_FLAGS": flags,
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(ROOT),
    **{k: str(v) for k, v in more.items()},
  }


class Group:
  """`count` processes of one command; `own[i]` is what only process i has in its environment.

  With `flags=False` they learn of each other from their environment alone.
  """

  def __init__(self, count, *command, own=None, flags=True, **env):
    port, self.began = free_port(), time.monotonic()
    self.processes = []
    for i in range(count):
      where = (f"--coordinator=127.0.0.1:{port}", f"--processes={count}", f"--process={i}")
      words = [
        sys.executable,
        "-m",
        "tests.distributed.worker",
        *command,
        *(where if flags and count > 1 else ()),
      ]
      more = {**env, **(own or {}).get(i, {})}
      self.processes.append(
        subprocess.Popen(
          words,
          env=environment(**more),
          cwd=ROOT,
          stdout=subprocess.PIPE,
          stderr=subprocess.PIPE,
          text=True,
        )
      )

  def wait(self, timeout=150):
    """(exit codes, what they printed, what they said on stderr, seconds until the last one ended)."""
    found = [p.communicate(timeout=timeout) for p in self.processes]
    codes = [p.returncode for p in self.processes]
    return codes, [o for o, _ in found], [e for _, e in found], time.monotonic() - self.began

  def kill(self):
    for p in self.processes:
      p.kill()
      p.wait()


def run(count, *command, own=None, flags=True, timeout=150, **env):
  """Starts them and waits; nobody is left behind."""
  group = Group(count, *command, own=own, flags=flags, **env)
  try:
    return group.wait(timeout)
  finally:
    group.kill()


def train(count, folder, arg="plain", *more, **options):
  return run(count, "train", f"--config={CONFIG}:{arg}", f"--workdir={folder}", *more, **options)
