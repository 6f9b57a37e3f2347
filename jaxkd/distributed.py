"""Several processes as one run: joining them, agreeing on things, and leaving together.

Imports jax only where processes are joined: the command line uses this module before it knows what to do. What is
not on devices travels through the key-value store of jax's coordination service, which process 0 runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Mapping
from importlib import metadata as packages
from pathlib import Path
from typing import Any

from jaxkd import cluster, errors, rendezvous
from jaxkd.cluster import Start, split_flags
from jaxkd.errors import JaxkdError, UserError, one_line

__all__ = ["agree", "alone", "from_first", "is_first", "join", "leave", "process", "processes", "split_flags"]

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
LOST = 134  # exit code of a process whose peers are gone: that of jax's own abort
# Exit codes that all processes have together, so that they can wait for each other.
TOGETHER = (0, 2, 3, 75, 130)
HOUR = 3_600_000  # ms; who waits for a dead process is ended by jax's heartbeat long before
SIGNS_OF_LOSS = (
  "Gloo",
  "NCCL",
  "closed by peer",
  "Connection reset",
  "UNAVAILABLE",
  "heartbeat",
  "coordination service",
)
_start: Start | None = None
_alone = False  # while the first process runs a command that is for one
_rounds = itertools.count()  # of `from_first`
_agreements = itertools.count()


def join(flags: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> None:
  """Joins the processes that `cluster.wanted` finds; does nothing for one process alone. Once per process.

  Raises:
    UserError: a wrong flag, or a process is missing; all that could be reached raise it.
  """
  global _start
  start = cluster.wanted(flags, environ)
  if start is None:
    return
  assert start.coordinator
  rendezvous.meet(
    start.coordinator,
    processes=start.processes,
    process=start.process,
    timeout=start.start_timeout,
    facts=software(),
  )
  import jax

  try:
    jax.distributed.initialize(
      start.coordinator,
      start.processes,
      start.process,
      local_device_ids=start.local_devices,
      cluster_detection_method="deactivate",
      initialization_timeout=max(round(start.start_timeout), 1),
      heartbeat_timeout_seconds=start.heartbeat_timeout,
      shutdown_timeout_seconds=start.heartbeat_timeout,
    )
  except RuntimeError as e:
    raise UserError(
      f"process {start.process} of {start.processes} met the others, then jax did not start: {_first_line(e)}",
      "unset http_proxy and the like, and see whether the port is free",
    ) from e
  _start = start
  if start.process:  # tables and results are said once
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def processes() -> int:
  """How many processes run together."""
  return _start.processes if _start and not _alone else 1


def process() -> int:
  """Which of them this is."""
  return _start.process if _start and not _alone else 0


def is_first() -> bool:
  """Whether this process writes: run folders, results and reports are the first one's."""
  return process() == 0


def software() -> dict[str, str]:
  """Versions of packages, and a digest of jaxkd's own code."""
  digest = hashlib.sha256()
  root = Path(__file__).parent
  for path in sorted(root.rglob("*.py")):
    digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
  return {"jaxkd code": digest.hexdigest(), **{name: packages.version(name) for name in PACKAGES}}


def from_first(function: Callable[[], Any]) -> Any:
  """What `function` returns in process 0, a value of JSON, in every process; its JaxkdError likewise."""
  if processes() == 1:
    return function()
  key = f"jaxkd/first/{next(_rounds)}"
  if is_first():
    try:
      value = json.dumps({"value": function()})
    except JaxkdError as e:
      put(key, json.dumps(_packed(e)))
      raise
    put(key, value)
  else:
    value = get(key)
  return _unpacked(json.loads(value))


def alone(command: Callable[[], int]) -> int:
  """A command that uses one process: runs in the first, on its own devices, while the others wait for its exit code."""

  def run() -> int:
    global _alone
    _alone = True
    try:
      return command()
    finally:
      _alone = False

  return command() if processes() == 1 else int(from_first(run))


def agree(facts: Mapping[str, Any]) -> None:
  """Returns when `facts` (values of JSON) are the same in all processes.

  Raises:
    UserError: in all processes; which facts differ between which, or what another one failed with meanwhile.
  """
  if processes() == 1:
    return
  place = f"jaxkd/agreement/{next(_agreements)}"
  put(f"{place}/{process()}", json.dumps({"value": dict(facts)}))
  from_first(lambda: _compare(place))


def _compare(place: str) -> None:
  found = {}
  for i in range(processes()):
    answer = json.loads(get(f"{place}/{i}"))
    if "error" in answer:
      raise UserError(f"process {i}: {answer['error']}", answer["hint"])
    found[i] = answer["value"]
  if different := rendezvous.differences(found):
    raise UserError(f"the processes differ: {'; '.join(different[:4])}", rendezvous.SAME)


def tell(error: JaxkdError) -> None:
  """Lets the others know why this process leaves, where they wait for it in `agree` or `from_first`."""
  if processes() == 1:
    return
  answer = json.dumps(_packed(error))
  with contextlib.suppress(RuntimeError):  # the store went with process 0, and with it everybody
    put(f"jaxkd/agreement/{next(_agreements)}/{process()}", answer)
    if is_first():
      put(f"jaxkd/first/{next(_rounds)}", answer)


def _packed(error: JaxkdError) -> dict[str, str]:
  return {"error": error.message, "hint": error.hint, "kind": type(error).__name__}


def _unpacked(answer: dict[str, Any]) -> Any:
  if "error" not in answer:
    return answer["value"]
  kind = getattr(errors, answer["kind"], UserError)
  raise kind(answer["error"], answer["hint"])


def try_get(key: str) -> str | None:
  """What somebody put under `key` of the common store, if anybody did."""
  try:
    return _client().key_value_try_get(key)
  except RuntimeError:  # jax's NOT_FOUND; a store that is gone ends the process by itself
    return None


def get(key: str) -> str:
  """What somebody puts under `key`, once it is there."""
  return _client().blocking_key_value_get(key, HOUR)


def put(key: str, value: str) -> None:
  """Puts `value` under `key`; the last one counts."""
  _client().key_value_set(key, value, allow_overwrite=True)


def _client() -> Any:
  from jax._src import distributed  # the store has no public door

  return distributed.global_state.client


def _first_line(error: BaseException) -> str:
  return one_line(str(error).splitlines()[0][:200]) if str(error) else type(error).__name__


# --- the end ---


def is_lost_peer(error: BaseException) -> bool:
  """Whether jax says that another process does not answer any more."""
  return processes() > 1 and isinstance(error, RuntimeError) and any(s in str(error) for s in SIGNS_OF_LOSS)


def leave(code: int, *, at_once: bool = False) -> None:
  """Before this process exits with `code`: waits for the others where they end alike, or ends at once.

  A process that ends alone must not wait: the others may hang in a collective for it, and only its death frees them.
  """
  if processes() == 1:
    return
  sys.stdout.flush()
  sys.stderr.flush()
  if at_once or code not in TOGETHER:
    os._exit(code)
  import jax

  try:
    jax.distributed.shutdown()
  except RuntimeError as e:
    print(f"warning: the others did not end with process {process()}: {_first_line(e)}", file=sys.stderr)
    os._exit(code)
