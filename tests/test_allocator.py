"""Freed memory stays with a process that asked for it, and goes back when told; each in a process of its own."""

import os
import platform
import subprocess
import sys

import pytest

from jaxkd import allocator

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc only")

MB = 2**20
FAULTS = """
import resource, sys
import threading
from jaxkd import allocator
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def touch(n): bytearray(b"x") * n
found = []
def work():  # another thread, as XLA's are
  for _ in range(2):
    touch(64 << 20)
    before = faults()
    touch(64 << 20)
    found.append(faults() - before)
    {give_back}
if {keep}:
  assert allocator.keep_freed_memory()
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(found[0], "jax" in sys.modules)
resident = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
print(resident)
"""


def run(keep: bool, give_back: bool = False, **environment: str) -> tuple[int, int]:
  """Page faults of the second 64 MiB, and bytes resident at the end."""
  code = FAULTS.format(keep=keep, give_back="allocator.give_back()" if give_back else "")
  clean = {k: v for k, v in os.environ.items() if k not in allocator.CHOSEN}
  done = subprocess.run(
    [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, check=True
  )
  faults, imported, resident = done.stdout.split()
  assert imported == "False"  # JAX's threads must start after the setting
  return int(faults), int(resident)


def test_a_block_of_the_same_size_needs_no_new_pages():
  kept, _ = run(keep=True, JAX_PLATFORMS="cpu")
  fresh, _ = run(keep=False)
  assert kept < 16
  assert fresh >= 32  # one for each huge page; 16,384 small ones


def test_memory_goes_back_when_told():
  _, kept = run(keep=True, JAX_PLATFORMS="cpu")
  _, returned = run(keep=True, give_back=True, JAX_PLATFORMS="cpu")
  assert kept > 64 * MB > returned


@pytest.mark.parametrize("name", [*allocator.CHOSEN, "GPU"])
def test_what_the_environment_says_is_left_alone(monkeypatch, name):
  called = []
  for other in (*allocator.CHOSEN, "JAX_PLATFORMS"):
    monkeypatch.delenv(other, raising=False)
  monkeypatch.setattr(allocator, "NVIDIA", "/nowhere")
  monkeypatch.setattr(allocator, "_libc", lambda _: lambda *given: called.append(given) or 1)
  assert not allocator.keep_freed_memory()  # JAX is there already
  monkeypatch.delitem(sys.modules, "jax")
  assert allocator.keep_freed_memory()
  assert len(called) == 3
  if name == "GPU":
    monkeypatch.setattr(allocator, "NVIDIA", os.devnull)
  else:
    monkeypatch.setenv(name, "1")
  assert not allocator.keep_freed_memory()
  assert len(called) == 3
  if name == "GPU":
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert allocator.keep_freed_memory()
