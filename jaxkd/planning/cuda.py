"""Lowering and compiling for CUDA on a machine without a GPU.

The only file that uses jax's private or experimental API, and why:

- `jax._src.cudnn...check_cudnn_version`: tracing cuDNN attention asks for the installed cuDNN's version, and nothing is
  installed here. The probe is answered with `CUDNN` while such a program is traced; no public switch exists.
- `jax.experimental.topologies`: the only way to name devices that are not there. It may change between releases.
- `jax_cuda12_plugin`: that it can be imported tells whether the compiler for CUDA is installed (extra `aot`).

This proves what is handed to XLA, and what XLA makes of it. It does not prove that cuDNN takes the attention kernels
(they stay opaque calls, and their workspace is in no memory figure), nor any speed: without a device nothing is tuned.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax

from jaxkd.errors import UserError

CUDNN = 91002  # 9.10.2
# What XLA wants to know of a device: NVIDIA's data sheets and CUDA programming guide, compute capabilities 9.0 and 8.0.
_TARGET = """
gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {shared} threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: {l2} clock_rate_ghz: {clock}
  device_memory_size: {memory} shared_memory_per_block_optin: {optin}
  cuda_compute_capability {{ major: {major} minor: 0 }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 }}
platform_name: "CUDA"
runtime_version {{ major: 12 minor: 9 }}
dnn_version_info {{ major: 9 minor: 10 patch: 2 }}
device_description_str: "{name}"
"""
TARGETS = {
  "h100": _TARGET.format(
    shared=233472,
    cores=132,
    fpus=128,
    bandwidth=3352320000000,
    l2=52428800,
    clock=1.98,
    memory=84942979072,
    optin=232448,
    major=9,
    name="NVIDIA H100 80GB HBM3",
  ),
  "a100": _TARGET.format(
    shared=167936,
    cores=108,
    fpus=64,
    bandwidth=2039000000000,
    l2=41943040,
    clock=1.41,
    memory=84987740160,
    optin=166912,
    major=8,
    name="NVIDIA A100-SXM4-80GB",
  ),
}


@contextlib.contextmanager
def traceable() -> Iterator[None]:
  """Within it, cuDNN attention can be traced on any machine. Nothing that was traced can run here."""
  from jax._src.cudnn import fused_attention_stablehlo

  with mock.patch.object(fused_attention_stablehlo, "check_cudnn_version", return_value=CUDNN):
    yield


def lower(function: Any, *arguments: Any) -> Any:
  """`function` (jitted or not) lowered for CUDA at the given (abstract) arguments, as `jax.stages.Lowered`.

  With several devices the kernels hide behind `CustomSPMDPartitioning`: count them on one.
  """
  jitted = function if hasattr(function, "trace") else jax.jit(function)
  with traceable():
    return jitted.trace(*arguments).lower(lowering_platforms=("cuda",))


def missing() -> str:
  """Why nothing can be compiled for CUDA here, or an empty string."""
  if importlib.util.find_spec("jax_cuda12_plugin") is None:
    return "the extra `aot` is not installed: pip install 'jaxkd[aot]'"
  if os.environ.get("JAX_PLATFORMS") != "cpu":
    return "JAX_PLATFORMS is not `cpu`: set JAX_PLATFORMS=cpu"
  return ""


def parse_topology(text: str) -> tuple[int, int, int]:
  """(slices, hosts, devices per host) of e.g. "1x2x8". Raises UserError for anything else."""
  parts = text.split("x")
  if len(parts) != 3 or not all(p.isdigit() and int(p) for p in parts):
    raise UserError(
      f"--topology={text} is not SLICESxHOSTSxDEVICES", "write e.g. --topology=1x2x8 for 2 hosts of 8 GPUs"
    )
  slices, hosts, devices = map(int, parts)
  return slices, hosts, devices


def devices(chip: str, topology: str) -> list[Any]:
  """The devices of `topology`, none of which is here.

  Raises:
    UserError: they cannot be described on this machine (see `missing`), or the chip is not a CUDA one.
  """
  parse_topology(topology)
  if why := missing():
    raise UserError(f"cannot compile for {chip}: {why}", "leave the compiling out with --no-compile")
  from jax.experimental import topologies

  found = topologies.get_topology_desc(platform="cuda", topology=topology, target_config=TARGETS[chip])
  return list(found.devices)


# Which library multiplies is decided by timing on a device, so it is arbitrary here; cuBLAS takes every product, while
# Triton's tiler gives up on some programs ("Couldn't find output tile sizes").
OPTIONS = {"xla_gpu_enable_triton_gemm": False}


def compile_for(function: Any, *arguments: Any) -> Any:
  """`function`, jitted, as a `jax.stages.Compiled` for the devices that its arguments are placed on."""
  with traceable():
    return function.lower(*arguments).compile(compiler_options=OPTIONS)
