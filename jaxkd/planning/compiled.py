"""Reading a program compiled for CUDA (HLO text after all passes): kernels, traffic, collectives with their purpose."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Iterator

BYTES = {
  "pred": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4,
  "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16,
}  # fmt: skip
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Operations that are no kernel and move no bytes.
FREE = (
  "parameter",
  "constant",
  "tuple",
  "get-tuple-element",
  "bitcast",
  "after-all",
  "partition-id",
  "replica-id",
)
CALLS = ("call", "while", "conditional", "async-start")  # what they call is counted in their place
GATHERS = ("gather", "dynamic-slice", "slice")


@dataclasses.dataclass(frozen=True)
class Operation:
  """One line of HLO. `bytes` are those of its result; `called` the computations it names."""

  name: str
  type: str
  opcode: str
  operands: tuple[str, ...]
  called: tuple[str, ...]
  origin: str  # jax's name of what it computes: `op_name`
  rest: str

  @functools.cached_property
  def bytes(self) -> int:
    return sum(
      BYTES.get(dtype, 0) * math.prod(int(d) for d in dims.split(",") if d)
      for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", self.type)
    )


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective of the program: kind, whole arrays' bytes on one device, devices of a group, number of arrays."""

  kind: str
  bytes: int
  group: int
  arrays: int
  purpose: str


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled module by computation; the body of a loop counts once."""

  computations: dict[str, list[Operation]]
  entry: str
  frames: dict[int, tuple[str, str]]  # stack frame -> innermost (file, function) of this package

  @functools.cached_property
  def types(self) -> dict[str, Operation]:
    return {o.name: o for operations in self.computations.values() for o in operations}

  def launched(self, computation: str = "") -> Iterator[Operation]:
    """What runs on the device, in order: the entry's operations, and those of what it calls."""
    for o in self.computations[computation or self.entry]:
      if o.opcode in CALLS:
        for name in o.called:
          yield from self.launched(name)
      elif o.opcode not in FREE and not o.opcode.endswith("-done"):
        yield o

  @functools.cached_property
  def kernels(self) -> dict[str, int]:
    """How many of each: fusions by kind, attention, matrix products of a library, copies, collectives, others."""
    return dict(Counter(map(_kind, self.launched())))

  @functools.cached_property
  def attention(self) -> tuple[int, int]:
    """cuDNN attention kernels, (forward, backward)."""
    found = Counter("Backward" in o.rest for o in self.launched() if "__cudnn$fmha" in o.rest)
    return found[False], found[True]

  @functools.cached_property
  def bytes(self) -> int:
    """Bytes that one device's kernels read and write, if each reads its operands and writes its result once."""
    return sum(o.bytes + self._read(o) for o in self.launched() if not _is_collective(o))

  def _read(self, o: Operation) -> int:
    """Bytes of the operands; of one that a fusion only picks from, of what it picks."""
    sizes = [self.types[name].bytes if name in self.types else 0 for name in o.operands]
    if o.opcode in GATHERS:
      return min(o.bytes, sizes[0]) + sum(sizes[1:])
    if o.opcode != "fusion" or not o.called:
      return sum(sizes)
    inside = self.computations[o.called[0]]
    parameters = [p for p in inside if p.opcode == "parameter"]
    for p in parameters:
      users = [u for u in inside if p.name in u.operands]
      picked = [u.bytes for u in users if u.opcode in GATHERS and u.operands[0] == p.name]
      number = int(re.search(r"parameter\((\d+)\)", p.rest)[1])  # type: ignore[index]
      if users and len(picked) == len(users) and number < len(sizes):
        sizes[number] = min(sizes[number], sum(picked))
    return sum(sizes)

  @functools.cached_property
  def collectives(self) -> list[Collective]:
    """Every collective, the largest first."""
    found = [self._collective(o) for o in self._all() if _is_collective(o)]
    return sorted(found, key=lambda c: -c.bytes)

  def _all(self) -> Iterator[Operation]:
    for operations in self.computations.values():
      yield from operations

  def _collective(self, o: Operation) -> Collective:
    kind = o.opcode.removesuffix("-start")
    group, size = _group(o.rest), sum(self.types[n].bytes for n in o.operands if n in self.types)
    reasons = dict.fromkeys(purpose(*self._origin(n)) for n in (o.name, *self._sources(o)))
    known = [r for r in reasons if r] or ["unknown"]
    whole = size * (group if kind == "all-gather" else 1)
    return Collective(kind, whole, group, len(o.operands), "; ".join(known))

  def _sources(self, o: Operation) -> Iterator[str]:
    """The arrays that a collective moves; where many were put into one buffer, those many."""
    for name in o.operands:
      maker = self.types.get(name)
      inside = self.computations.get(maker.called[0], []) if maker and maker.called else []
      joined = maker is not None and any(i.opcode == "concatenate" for i in inside)
      yield from maker.operands if maker and joined else (name,)

  def _origin(self, name: str) -> tuple[str, str, str]:
    """(jax's name, file, function) of the array `name`, through operations that only pass it on."""
    o = self.types.get(name)
    while o is not None and not o.origin and o.operands:
      o = self.types.get(o.operands[0])
    if o is None:
      return "", "", ""
    frame = re.search(r"stack_frame_id=(\d+)", o.rest)
    return o.origin, *self.frames.get(int(frame[1]) if frame else 0, ("", ""))


# Where a collective comes from -> what it is for; the first that fits. Patterns of jax's name, file and function.
PURPOSES = (
  (r"", r"", r"batch_norm|BatchNorm.*|_compute_stats", "statistics of BatchNorm over the global batch"),
  (
    r"",
    r"(cka|gram|correlation|tokens|kd|logit_rivals|relational|dino|classification|locality|attention_transfer|whitening)\.py",
    r"",
    "a term over the global batch, and its derivative",
  ),
  (r"transpose\(jvp", r"", r"", "gradients"),
  (
    r"scatter-add",
    r"(policies|operations)\.py",
    r"",
    "augmentation: histograms of images (equalize, autocontrast)",
  ),
  (
    r"",
    r"(policies|operations|packing|fusion)\.py",
    r"",
    "augmentation policy: its groups of 64 images span several devices",
  ),
  (r"", r"mixing\.py", r"", "mixed partners on other devices"),
  (r"", r"(augment|photometry|boxes|pixels)\.py", r"", "augmentation: draws over the global batch"),
  (r"", r"(terms|objective|targets)\.py", r"", "logged values and statistics over the global batch"),
  (r"", r"step\.py", r"", "loss, accuracy and the norm of the gradient"),
  (r"", r"(optim|parameter_groups|muon|sam|averaging)\.py", r"", "optimiser"),
  (
    r"",
    r"(vit|transformer|layers|heads|attention|resnet|convnextv2|adaptive_cnn)\.py",
    r"",
    "parameters split over fsdp",
  ),
)


def purpose(origin: str, file: str, function: str) -> str:
  """What a collective of this origin is for, or an empty string."""
  for name, path, inside, text in PURPOSES:
    if (not name or re.search(name, origin)) and all(
      not pattern or re.fullmatch(pattern, value) for pattern, value in ((path, file), (inside, function))
    ):
      return text if origin or file else ""
  return ""


def parse(text: str) -> Program:
  """A module's text (`Compiled.as_text()`) as a `Program`."""
  computations: dict[str, list[Operation]] = {}
  current: list[Operation] = []
  entry = ""
  for line in text.splitlines():
    if start := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line):
      current = computations.setdefault(start[2], [])
      entry = start[2] if start[1] else entry
    elif made := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)", line):
      current.append(_operation(made[1], made[2]))
  return Program(computations, entry, _frames(text))


def _frames(text: str) -> dict[int, tuple[str, str]]:
  """The tables of source positions at the head of a module."""
  head = text[: text.find("\n%") if "\n%" in text else len(text)]
  files, functions = (
    {int(n): value for n, value in re.findall(r'^(\d+) "(.*)"$', _section(head, title), re.MULTILINE)}
    for title in ("FileNames", "FunctionNames")
  )
  places = {
    int(n): (files.get(int(f), ""), functions.get(int(g), ""))
    for n, f, g in re.findall(
      r"^(\d+) \{file_name_id=(\d+) function_name_id=(\d+)", _section(head, "FileLocations"), re.MULTILINE
    )
  }
  rows = re.findall(
    r"^(\d+) \{file_location_id=(\d+) parent_frame_id=(\d+)", _section(head, "StackFrames"), re.MULTILINE
  )
  # A parent is written with 1 added, so that a frame without one names itself at most.
  stack = {int(n): (places.get(int(at), ("", "")), int(parent) - 1) for n, at, parent in rows}
  return {n: _own(n, stack) for n in stack}


def _section(head: str, title: str) -> str:
  found = re.search(rf"^{title}\n((?:\d+ .*\n)*)", head, re.MULTILINE)
  return found[1] if found else ""


def _own(frame: int, stack: dict[int, tuple[tuple[str, str], int]]) -> tuple[str, str]:
  """The innermost frame inside the package, from `frame` outwards."""
  while frame in stack:
    (file, function), frame = stack[frame]
    if "/jaxkd/" in file:
      return file.rpartition("/")[2], function.partition(".<locals>")[0]
  return "", ""


def _operation(name: str, text: str) -> Operation:
  end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
  opcode, _, after = text[end:].strip().partition("(")
  inside = after[: _closing("(" + after, 0) - 1]
  rest = text[end:].strip()
  called = re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", rest)
  for branches in re.findall(r"branch_computations=\{([^}]*)\}", rest):
    called += [b.strip().lstrip("%") for b in branches.split(",")]
  origin = re.search(r'op_name="([^"]*)"', rest)
  operands = tuple(re.findall(r"%([\w.\-]+)", re.sub(r"/\*.*?\*/", "", inside)))
  return Operation(name, text[:end], opcode, operands, tuple(called), origin[1] if origin else "", rest)


def _closing(text: str, start: int) -> int:
  """Where the parenthesis that opens at `start` closes."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == "(") - (text[i] == ")")
    if depth == 0:
      return i
  return len(text) - 1


def _is_collective(o: Operation) -> bool:
  return o.opcode.removesuffix("-start") in COLLECTIVES


def _kind(o: Operation) -> str:
  if "__cudnn$fmha" in o.rest:
    return "attention"
  if _is_collective(o):
    return "collective"
  if o.opcode == "fusion":
    triton = re.search(r"__triton_gemm|__triton_nested_gemm", o.rest)
    return "fusion: matrix product" if triton else "fusion: " + _after("kind=k", o.rest)
  if o.opcode == "custom-call":
    return "library: " + re.sub(r"\W+", " ", _after('custom_call_target="', o.rest)).strip()
  return o.opcode


def _after(mark: str, text: str) -> str:
  found = re.search(re.escape(mark) + r"([\w$.]+)", text)
  return found[1] if found else "other"


def _group(rest: str) -> int:
  """Devices in one group of a collective."""
  if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
    return len(listed[1].split(","))
  if named := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{('[^}]*)\}", rest):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
  if pairs := re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", rest):
    return len(set(re.findall(r"\d+", pairs[1])))
  tiled = re.search(r"replica_groups=\[(\d+),(\d+)\]", rest)
  return int(tiled[2]) if tiled else 1
