"""Device memory: what a training step needs, and what to say when there is not enough."""

from __future__ import annotations

from typing import Any

import jax

from jaxkd.errors import OutOfDeviceMemory
from jaxkd.experiment import Experiment


def step_bytes(step, *arguments: Any) -> int | None:
  """Bytes that the compiled `step` needs on each device for `arguments`; None where the backend does not say."""
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
  try:
    return compiled_bytes(step.lower(*shapes).compile())
  except (RuntimeError, NotImplementedError):  # the compiler itself ran out of memory, or cannot tell
    return None


def compiled_bytes(compiled: Any) -> int | None:
  """Bytes that a compiled function needs on each device; None where the backend does not say."""
  found = compiled.memory_analysis()
  if found is None:
    return None
  return (
    found.argument_size_in_bytes
    + found.output_size_in_bytes
    + found.temp_size_in_bytes
    - found.alias_size_in_bytes
  )


def explain(experiment: Experiment, error: BaseException, need: int | None) -> OutOfDeviceMemory:
  """The error a user sees instead of `error`."""
  size, said = experiment.config.train.batch_size, str(error).splitlines()[0][:200]
  estimate = f"{need / 2**20:,.1f} MiB" if need else "unknown"
  return OutOfDeviceMemory(
    f"out of device memory with train.batch_size={size} on {experiment.mesh.size} devices; "
    f"compiled need per device: {estimate} ({said})",
    "halve train.batch_size and double optim.accumulate, set train.remat=blocks or precision.compute=bfloat16, "
    "split with sharding.fsdp; analyses: a smaller probe chunk (--hessian-images, --images)",
  )
