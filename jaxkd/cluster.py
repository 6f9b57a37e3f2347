"""How this process was started: its flags, its environment, or the scheduler it runs under. No jax."""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Callable, Mapping

from jaxkd.errors import UserError
from jaxkd.rendezvous import split

# flag -> environment variable
FLAGS = {
  "coordinator": "JAXKD_COORDINATOR",
  "processes": "JAXKD_PROCESSES",
  "process": "JAXKD_PROCESS",
  "distributed": "JAXKD_DISTRIBUTED",
  "start-timeout": "JAXKD_START_TIMEOUT",
}
HEARTBEAT = "JAXKD_HEARTBEAT_TIMEOUT"
PORTS = 61440  # jax's own choice under a scheduler: this plus the job's number modulo 4096
HINT = "give each process --coordinator=HOST:PORT --processes=N --process=I (or JAXKD_COORDINATOR, ...)"


@dataclasses.dataclass(frozen=True)
class Start:
  """One process of several.

  Attributes:
    coordinator: HOST:PORT of process 0, None where a scheduler does not say. local_devices: which of the machine's
      accelerators are this process's, None for all. source: who said so. Timeouts are in seconds.
  """

  coordinator: str | None
  processes: int
  process: int
  local_devices: tuple[int, ...] | None = None
  source: str = "flags or environment"
  start_timeout: float = 60.0
  heartbeat_timeout: int = 30


def split_flags(argv: list[str]) -> tuple[list[str], dict[str, str]]:
  """`argv` without the flags of this module, and those.

  Raises:
    UserError: a flag without a value.
  """
  rest, flags, i = [], {}, 0
  while i < len(argv):
    name, equals, value = argv[i].removeprefix("--").partition("=")
    if not argv[i].startswith("--") or name not in FLAGS:
      rest.append(argv[i])
    else:
      if not equals:
        i += 1
        if i == len(argv):
          raise UserError(f"--{name} has no value", f"write --{name}=VALUE")
        value = argv[i]
      flags[name] = value
    i += 1
  return rest, flags


def wanted(flags: Mapping[str, str], environ: Mapping[str, str]) -> Start | None:
  """How to start, or None for one process alone.

  Flags win over the environment, and that over the scheduler, which is asked when `distributed` is "auto", when
  something is left open, or when this is one of several tasks of an `srun` step or of `mpirun`. "off" asks nobody.

  Raises:
    UserError: something is missing, contradictory or not a number; nothing was detected for "auto".
  """
  given = {name: flags.get(name) or environ.get(variable, "") for name, variable in FLAGS.items()}
  mode = given["distributed"]
  if mode not in ("", "auto", "off"):
    raise UserError(
      f"--distributed={mode} is not known", "auto asks the scheduler, off runs one process alone"
    )
  if mode == "off":
    return None
  asked = {k: given[k] for k in ("coordinator", "processes", "process") if given[k]}
  found = detect(environ)
  if mode == "auto" and found is None and len(asked) < 3:
    raise UserError(
      "--distributed=auto: this is no task of srun, mpirun or an indexed Kubernetes job",
      f"start it with srun or mpirun, or {HINT}",
    )
  if not asked and mode != "auto" and not _is_parallel_step(environ):
    return None
  start = found or Start(None, 0, -1)
  start = dataclasses.replace(
    start,
    coordinator=given["coordinator"] or start.coordinator,
    processes=_number("processes", given["processes"]) if given["processes"] else start.processes,
    process=_number("process", given["process"]) if given["process"] else start.process,
    start_timeout=_seconds("--start-timeout", given["start-timeout"] or "60"),
    heartbeat_timeout=round(_seconds(HEARTBEAT, environ.get(HEARTBEAT) or "30")),
  )
  if len(asked) == 3:
    start = dataclasses.replace(start, local_devices=None, source=Start.source)
  return None if start.processes == 1 and start.process <= 0 else _checked(start)


def _checked(start: Start) -> Start:
  missing = [
    name
    for name, is_open in (
      ("--coordinator", start.coordinator is None),
      ("--processes", start.processes < 1),
      ("--process", start.process < 0),
    )
    if is_open
  ]
  if missing:
    raise UserError(f"several processes: {', '.join(missing)} is not given", HINT)
  if start.process >= start.processes:
    raise UserError(
      f"--process={start.process} of --processes={start.processes}", f"number them 0 to {start.processes - 1}"
    )
  split(start.coordinator or "")
  return start


def _number(name: str, text: str) -> int:
  if not text.isdigit():
    raise UserError(f"--{name}={text} is not a whole number", HINT)
  if name == "processes" and int(text) == 0:
    raise UserError("--processes=0", "at least 1")
  return int(text)


def _seconds(name: str, text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = 0.0
  if not 1 <= value < 86400:
    raise UserError(f"{name}={text} is not a number of seconds", "1 to 86399, e.g. 60")
  return value


# --- schedulers ---


def detect(environ: Mapping[str, str]) -> Start | None:
  """What the scheduler says of this process: SLURM under `srun`, Open MPI, an indexed Kubernetes job; or None."""
  for reader in READERS:
    if found := reader(environ):
      return found
  return None


def _is_parallel_step(environ: Mapping[str, str]) -> bool:
  """Whether this is one of several tasks of a step: only then are processes joined that nobody asked to be."""
  found = _slurm(environ) or _open_mpi(environ)
  return found is not None and found.processes > 1


def _slurm(environ: Mapping[str, str]) -> Start | None:
  """A task of an `srun` step; the batch script itself has no SLURM_STEP_NODELIST."""
  names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
  count = environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS")
  if not count or any(name not in environ for name in names):
    return None
  port = PORTS + int(environ["SLURM_JOB_ID"]) % 4096
  per_node = _expanded(environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
  node = int(environ.get("SLURM_NODEID", "0"))
  beside = per_node[node] if node < len(per_node) else int(count)
  return Start(
    f"{first_host(environ['SLURM_STEP_NODELIST'])}:{port}",
    int(count),
    int(environ["SLURM_PROCID"]),
    _own_device(int(environ["SLURM_LOCALID"]), beside, environ),
    source="SLURM",
  )


def first_host(nodes: str) -> str:
  """The first name of a SLURM node list: `node[007-015,20],other` is node007."""
  found = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes)
  return "".join(part or "" for part in found.groups()) if found else nodes


def _expanded(counts: str) -> list[int]:
  """SLURM's `8(x2),4` as [8, 8, 4]."""
  found = re.findall(r"(\d+)(?:\(x(\d+)\))?", counts)
  return [int(n) for n, times in found for _ in range(int(times or 1))]


def _open_mpi(environ: Mapping[str, str]) -> Start | None:
  """A rank of `mpirun`. Version 4 says where it was started; 5 does not, which matters on several machines only."""
  names = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
  if any(name not in environ for name in names):
    return None
  count, rank = (int(environ[name]) for name in names)
  beside = int(environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", count))
  local = int(environ.get("OMPI_COMM_WORLD_LOCAL_RANK", rank))
  uri = environ.get("OMPI_MCA_orte_hnp_uri", "")
  coordinator = None
  if found := re.match(r"(\d+)\..*?(?:tcp://([^,:]+)|tcp6://\[([^,\]]+))", uri):
    host = found[2] or f"[{found[3]}]"
    coordinator = f"{host}:{PORTS + int(found[1]) // 4096 % 4096}"
  elif beside == count:
    coordinator = f"127.0.0.1:{PORTS + zlib.crc32(environ.get('PMIX_NAMESPACE', '').encode()) % 4096}"
  return Start(coordinator, count, rank, _own_device(local, beside, environ), source="Open MPI")


def _kubernetes(environ: Mapping[str, str]) -> Start | None:
  """A pod of an indexed job knows its number; how many there are and where the first is, its manifest says."""
  index = environ.get("JOB_COMPLETION_INDEX", "")
  if "KUBERNETES_SERVICE_HOST" not in environ or not index.isdigit():
    return None
  return Start(None, 0, int(index), source="Kubernetes")


READERS: tuple[Callable[[Mapping[str, str]], Start | None], ...] = (_slurm, _open_mpi, _kubernetes)


def _own_device(local: int, beside: int, environ: Mapping[str, str]) -> tuple[int, ...] | None:
  """One accelerator for each task of a machine; all for a single task, or where the scheduler shows but one."""
  visible = environ.get("CUDA_VISIBLE_DEVICES")
  if beside <= 1 or (visible is not None and len(visible.split(",")) == 1):
    return None
  return (local,)
