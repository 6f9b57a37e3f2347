"""What a chip can do at best, from its data sheet; this machine's processor is measured instead."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxkd.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Chip:
  """Peak rates of one device.

  Attributes:
    platform: "cuda" or "cpu". bfloat16, tensorfloat32, float32: FLOP/s of matrix products, dense.
    bandwidth: bytes/s of its memory. memory: bytes.
    link, network: bytes/s each way to the devices of the same host, and of other hosts; 0 where there is one device.
    basis: where the rates are from.
  """

  name: str
  platform: str
  bfloat16: float
  tensorfloat32: float
  float32: float
  bandwidth: float
  memory: float
  link: float
  network: float
  basis: str

  def rate(self, dtype: str) -> float:
    """FLOP/s of the products of a program that computes in `dtype`; float32 is TensorFloat-32 by default."""
    return self.bfloat16 if dtype == "bfloat16" else self.tensorfloat32


# NVIDIA's data sheets: H100 SXM5 80 GB, A100 SXM4 80 GB; NVLink 900 and 600 GB/s both ways together. The network is
# that of the usual servers: one 400 Gb/s (200 Gb/s) adapter for each GPU.
SHEET = "data sheet"
CHIPS = {
  "h100": Chip("h100", "cuda", 989e12, 494e12, 67e12, 3.35e12, 80e9, 450e9, 50e9, SHEET),
  "a100": Chip("a100", "cuda", 312e12, 156e12, 19.5e12, 2.04e12, 80e9, 300e9, 25e9, SHEET),
}
NAMES = (*CHIPS, "cpu")


def chip(name: str) -> Chip:
  """A chip by name; "cpu" measures this machine, about a second. Raises UserError for an unknown name."""
  if name == "cpu":
    return measured()
  if name not in CHIPS:
    raise UserError(f"unknown chip '{name}'", did_you_mean(name, NAMES))
  return CHIPS[name]


def measured() -> Chip:
  """This machine's processor: the best of a few matrix products and of a few copies."""
  n, mebibytes = 1024, 128
  rates = {}
  for dtype in (jnp.float32, jnp.bfloat16):
    x = jnp.ones((n, n), dtype)
    rates[jnp.dtype(dtype).name] = 2 * n**3 / _fastest(jax.jit(lambda x: x @ x), x)
  big = jnp.ones(mebibytes * 2**18, jnp.float32)
  bandwidth = 2 * big.nbytes / _fastest(jax.jit(lambda x: x + 1), big)
  single = rates["float32"]
  return Chip("cpu", "cpu", rates["bfloat16"], single, single, bandwidth, 0, 0, 0, "measured")


def _fastest(function: Callable, x: jax.Array, repeats: int = 5) -> float:
  """Seconds of the fastest of some calls after the first."""
  jax.block_until_ready(function(x))
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(function(x))
    times.append(time.perf_counter() - start)
  return min(times)
