"""All processes of a run meet before jax starts, so that in seconds somebody can say which one is missing.

Process 0 listens at the coordinator's port until jax's own service takes the port over. Every other process connects
there and says who it is; all get the same verdict. One line of JSON each way.
"""

from __future__ import annotations

import json
import socket
import time
from typing import Any

from jaxkd.errors import UserError, one_line

PAUSE = 0.2  # seconds between two attempts to connect
HELLO_TIMEOUT = 2.0  # seconds in which whoever connects must say who they are
GRACE = 1.0  # seconds in which the others still hear why it will not work
Facts = dict[str, Any]


def meet(address: str, *, processes: int, process: int, timeout: float, facts: Facts | None = None) -> None:
  """Returns once all `processes` are there and say the same `facts` (names of JSON values).

  Args:
    address: HOST:PORT, the same for all; HOST is where process 0 runs. timeout: seconds.

  Raises:
    UserError: the message says which processes are missing or differ, in every process that could be reached.
  """
  hello = {
    "process": process,
    "processes": processes,
    "host": socket.gethostname(),
    "facts": facts or {},
  }
  verdict = _preside(_listen(address), hello, timeout) if process == 0 else _ask(address, hello, timeout)
  if "error" in verdict:
    raise UserError(verdict["error"], verdict["hint"])


def split(address: str) -> tuple[str, int]:
  """(host, port) of HOST:PORT or [IPV6]:PORT. Raises UserError."""
  host, colon, port = address.rpartition(":")
  if not (colon and host and port.isdigit() and 0 < int(port) < 2**16):
    raise UserError(f"coordinator '{address}' is not HOST:PORT", "e.g. --coordinator=node01:29500")
  return host.strip("[]"), int(port)


def _listen(address: str) -> socket.socket:
  _, port = split(address)
  try:
    if socket.has_dualstack_ipv6():
      return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))
  except OSError as e:
    raise UserError(
      f"process 0 cannot listen at port {port}: {e.strerror}", "choose another free port for --coordinator"
    ) from e


def _ask(address: str, hello: dict[str, Any], timeout: float) -> dict[str, Any]:
  """The verdict on this process's hello."""
  deadline, reason, stranger = time.monotonic() + timeout, "no answer", ""
  who = f"process {hello['process']} of {hello['processes']}"
  while (left := deadline - time.monotonic()) > 0:
    try:
      with socket.create_connection(split(address), timeout=min(left, HELLO_TIMEOUT)) as peer:
        peer.sendall(json.dumps(hello).encode() + b"\n")
        peer.settimeout(timeout + HELLO_TIMEOUT)  # process 0 may have begun to wait later
        return json.loads(peer.makefile().readline())
    except OSError as e:
      reason = (e.strerror or str(e)).lower()
    except ValueError:
      stranger = "what listens there is not process 0 of a run"
    time.sleep(min(PAUSE, max(left, 0)))
  raise UserError(
    f"{who} cannot reach the coordinator {address} within {timeout:g} s: {stranger or one_line(reason)}",
    "start process 0 on that host; check --coordinator (JAXKD_COORDINATOR) and that the port is open",
  )


def _preside(server: socket.socket, own: dict[str, Any], timeout: float) -> dict[str, str]:
  """Process 0: collects the hellos of the others and answers all of them; the verdict, empty if all is well.

  The port is free before anybody hears the verdict, for jax takes it next.
  """
  deadline, processes = time.monotonic() + timeout, own["processes"]
  found: dict[int, dict[str, Any]] = {0: own}
  peers: list[socket.socket] = []
  verdict: dict[str, str] = {}
  with server:
    while len(found) < processes and (left := deadline - time.monotonic()) > 0:
      server.settimeout(left)
      try:
        peer, _ = server.accept()
      except OSError:
        continue
      hello = _read(peer)
      if hello is None:  # a stranger
        peer.close()
        continue
      peers.append(peer)
      if not verdict and (verdict := _conflict(hello, found, processes)):
        deadline = min(deadline, time.monotonic() + GRACE)
      found.setdefault(hello["process"], hello)
  verdict = verdict or _missing(found, processes, timeout) or _differing(found)
  for peer in peers:
    _answer(peer, verdict)
  return verdict


def _read(peer: socket.socket) -> dict[str, Any] | None:
  peer.settimeout(HELLO_TIMEOUT)
  try:
    hello = json.loads(peer.makefile().readline(2**20))
    return hello if isinstance(hello["process"], int) and isinstance(hello["processes"], int) else None
  except (OSError, ValueError, TypeError, KeyError):
    return None


def _answer(peer: socket.socket, verdict: dict[str, str]) -> None:
  """Lets the peer close first: the side that does keeps the port occupied for a while, and jax needs it now."""
  try:
    peer.sendall(json.dumps(verdict).encode() + b"\n")
    peer.recv(1)
  except OSError:
    pass  # gone meanwhile; jax's own start will miss it
  finally:
    peer.close()


def _conflict(hello: dict[str, Any], found: dict[int, dict[str, Any]], processes: int) -> dict[str, str]:
  """What is wrong with a hello beside those before it; empty when nothing is."""
  process, host = hello["process"], one_line(str(hello.get("host")))
  if hello["processes"] != processes:
    return {
      "error": f"process {process} on {host} was started as one of {hello['processes']}, "
      f"process 0 as one of {processes}",
      "hint": "give all of them the same --processes (JAXKD_PROCESSES)",
    }
  if process in found:
    return {
      "error": f"two processes say they are process {process} of {processes}: on {found[process]['host']} and {host}",
      "hint": "give each its own --process (JAXKD_PROCESS), from 0 on",
    }
  return {}


def _missing(found: dict[int, dict[str, Any]], processes: int, timeout: float) -> dict[str, str]:
  lost = [i for i in range(processes) if i not in found]
  if not lost:
    return {}
  names = ", ".join(map(str, lost[:8])) + (f" and {len(lost) - 8} more" if len(lost) > 8 else "")
  return {
    "error": f"{len(lost)} of {processes} processes did not arrive within {timeout:g} s: {names}",
    "hint": "see whether they were started and what they print; "
    "a slow start needs a longer --start-timeout (JAXKD_START_TIMEOUT)",
  }


def _differing(found: dict[int, dict[str, Any]]) -> dict[str, str]:
  different = differences({i: hello.get("facts", {}) for i, hello in found.items()})
  if not different:
    return {}
  return {"error": f"the processes differ: {'; '.join(different[:4])}", "hint": SAME}


SAME = "start all processes with the same command, code, packages and data"


def differences(facts: dict[int, Facts]) -> list[str]:
  """In which names the facts of the processes differ: `name (x in process 0, y in processes 1, 2)`."""
  found = []
  for name in sorted({name for of_one in facts.values() for name in of_one}):
    groups: dict[str, list[int]] = {}
    for process in sorted(facts):
      groups.setdefault(json.dumps(facts[process].get(name, "nothing"), sort_keys=True), []).append(process)
    if len(groups) > 1:
      found.append(f"{name} ({', '.join(_group(value, where) for value, where in groups.items())})")
  return found


def _group(value: str, where: list[int]) -> str:
  names = ", ".join(map(str, where[:4])) + (" ..." if len(where) > 4 else "")
  return f"{_short(value)} in process{'es' * (len(where) > 1)} {names}"


def _short(value: str) -> str:
  value = one_line(value.strip('"'))
  return value if len(value) <= 40 else value[:12] + "..."
