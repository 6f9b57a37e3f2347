"""The least time a step can take: arithmetic or memory traffic, whichever is longer, then communication."""

from __future__ import annotations

import dataclasses

from jaxkd.planning.chips import Chip


@dataclasses.dataclass(frozen=True)
class Work:
  """What one step asks of all devices together.

  Attributes:
    flops: all of them. float32_flops, tensorfloat32_flops: those of them in float32 matrix products, at full
      precision and at the default one. bytes: read from and written to device memory.
  """

  flops: float
  bytes: float
  float32_flops: float = 0.0
  tensorfloat32_flops: float = 0.0


@dataclasses.dataclass(frozen=True)
class Time:
  """Milliseconds of one step."""

  arithmetic: float
  memory: float
  communication: float

  @property
  def step(self) -> float:
    """Nothing overlaps communication here, although XLA hides part of it."""
    return max(self.arithmetic, self.memory) + self.communication


def wire_bytes(kind: str, payload: float, devices: int) -> float:
  """Bytes that each device sends for a collective over `devices` in a ring; `payload` is the whole array's."""
  if devices == 1:
    return 0.0
  share = payload * (devices - 1) / devices
  return 2 * share if kind == "all-reduce" else share


def step_time(work: Work, chip: Chip, *, dtype: str, devices: int, hosts: int = 1, sent: float = 0.0) -> Time:
  """Roofline of one step.

  Args:
    dtype: of the forward and backward pass. sent: bytes each device sends; over several hosts the network is the limit.
  """
  rest = work.flops - work.float32_flops - work.tensorfloat32_flops
  seconds = (
    rest / chip.rate(dtype)
    + work.float32_flops / chip.float32
    + work.tensorfloat32_flops / chip.tensorfloat32
  )
  link = chip.network if hosts > 1 else chip.link
  return Time(
    arithmetic=1e3 * seconds / devices,
    memory=1e3 * work.bytes / devices / chip.bandwidth,
    communication=1e3 * sent / link if sent else 0.0,
  )
