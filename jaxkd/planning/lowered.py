"""Reading a lowered program (StableHLO text): attention kernels and float32 matrix products, with their origin."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePath

FORWARD, BACKWARD = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"

# Matrix products that stay float32 in a bfloat16 run: (file, function) -> why. Anything else is a defect.
STATISTICS = {
  ("boxes.py", "sample_boxes"): "resampling of crops: pixel positions need more than 8 bits",
  ("teachers.py", "Teacher.prepare"): "resizing the teacher's images",
  (
    "positions.py",
    "resize_positions",
  ): "resampling of a position table, once a step and independent of the batch",
  ("tokens.py", "resize_grid"): "interpolation of the teacher's tokens to the student's grid",
  ("operations.py", "compose"): "products of 3x3 matrices that say where pixels move",
  (
    "operations.py",
    "_running_totals",
  ): "cumulated histograms of an augmentation: counts of pixels, which are exact",
  ("terms.py", "_spread"): "spread of features, a logged statistic",
  ("whitening.py", "whiten"): "whitening, which divides by small variances",
  ("relational.py", "_similarities"): "similarities between the samples of a batch",
  ("relational.py", "_cosines"): "angles between the samples of a batch",
  ("cka.py", "_gram"): "Gram matrices of CKA, whose estimate subtracts nearly equal numbers",
  ("attention.py", "attention_with_maps"): "attention maps that a term looks at",
  ("locality.py", "attention_distance"): "mean attention distance, a statistic of the maps",
  ("heads.py", "PrototypeHead.__call__"): "cosines with DINO's prototypes, divided by temperatures near 0.04",
  ("dino.py", "dino"): "cross entropies between the views of an image",
  ("gram.py", "cosine_matrix"): "cosine matrices of the correlation and Gram losses",
}

# These multiply for whoever calls them, who is the origin.
HELPERS = (("attention.py", "_scores"), ("layers.py", "_product_of_rows"), ("layers.py", "dense"))


@dataclasses.dataclass(frozen=True)
class Product:
  """A float32 matrix product: the innermost function of jaxkd it comes from, how often, and its FLOPs in all."""

  file: str
  function: str
  count: int
  flops: float
  highest: bool  # computed in full float32; otherwise TensorFloat-32 on CUDA

  @property
  def reason(self) -> str:
    """Why it is float32, or an empty string: it should not be."""
    return STATISTICS.get((self.file, self.function), "")


def attention_calls(text: str) -> tuple[int, int]:
  """Calls of cuDNN's flash attention in a single-device program: (forward, backward)."""
  found: Counter[str] = Counter()
  for line, _ in _operations(text):
    for name in (FORWARD, BACKWARD):
      found[name] += line.count(f"@{name}(")
  return found[FORWARD], found[BACKWARD]


def float32_products(text: str) -> list[Product]:
  """Every float32 `dot_general` and convolution of a program whose text has debug information."""
  locations = dict(re.findall(r"^#(loc\d*) = (.*)$", text, re.MULTILINE))
  found: dict[tuple[str, str], list[tuple[float, bool]]] = {}
  for line, callers in _operations(text):
    if not re.search(r"stablehlo\.(dot_general|convolution)", line):
      continue
    types = re.findall(r"tensor<((?:\d+x)*)(\w+)>", line)[-3:]  # of both factors and the product
    if "f32" not in (types[0][1], types[1][1]):  # bfloat16 factors may be summed in float32
      continue
    origin = next((o for place in (line, *callers) if (o := _origin(place, locations))), ("?", "?"))
    found.setdefault(origin, []).append((_flops(line, types), "HIGHEST" in line))
  return [
    Product(*origin, len(parts), sum(f for f, _ in parts), all(h for _, h in parts))
    for origin, parts in sorted(found.items())
  ]


def _operations(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
  """Every line of `main` and of the functions it calls, as often as they are called, with the calls that lead to it,
  the innermost first. The body of a loop counts once."""
  bodies: dict[str, list[str]] = {}
  body: list[str] = []
  for line in text.splitlines():
    if start := re.match(r"\s*func\.func (?:public |private )?@(\S+?)\(", line):
      body = bodies.setdefault(start[1], [])
    else:
      body.append(line)

  def visit(name: str, callers: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for line in bodies[name]:
      if called := re.search(r"\bcall @([^\s(]+)\(", line):
        yield from visit(called[1], (line, *callers))
      else:
        yield line, callers

  return visit("main", ())


def _flops(line: str, types: list[tuple[str, str]]) -> float:
  """Two for each multiplication of a `dot_general`; of a convolution those of its kernel at every output."""
  left, right, out = ([int(d) for d in dims.split("x") if d] for dims, _ in types)
  if contracted := re.search(r"contracting_dims = \[([\d, ]*)\]", line):
    return 2.0 * math.prod(out) * math.prod(left[int(i)] for i in contracted[1].split(",") if i.strip())
  return 2.0 * math.prod(out) * math.prod(right) / max(right[-1], 1)


def _origin(line: str, locations: dict[str, str]) -> tuple[str, str] | None:
  """(file, function) of the innermost frame inside the package, from the location at the end of a line."""
  wanted = re.findall(r"#(loc\d+)", line)[-1:]
  while wanted:
    here = locations[wanted.pop(0)]
    frame = re.match(r'loc\("([^"]+)"\(#(loc\d+)\)\)', here)
    place = re.match(r'loc\("([^"]+\.py)":', locations[frame[2]]) if frame else None
    if frame and place:
      if "/jaxkd/" in place[1]:
        origin = PurePath(place[1]).name, frame[1].partition(".<locals>")[0]
        if origin not in HELPERS:
          return origin
    else:
      wanted = re.findall(r"#(loc\d+)", here) + wanted
  return None
