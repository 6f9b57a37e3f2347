"""Where arrays live: a mesh of ("data", "fsdp") and path rules for parameters. Models know nothing of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxkd.errors import UserError

# First match wins; the axis of a matrix that is split over "fsdp". Everything else is replicated.
RULES = (
  (re.compile(r".*(qkv|fc1|proj)/kernel"), -1),
  (re.compile(r".*fc2/kernel"), -2),
)


def make_mesh(*, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
  """`devices` (default: all there are, of every process) as [data, fsdp].

  Raises:
    UserError: `fsdp` does not divide the number of devices.
  """
  count = jax.device_count() if devices is None else len(devices)
  if count % fsdp:
    raise UserError(
      f"sharding.fsdp={fsdp} does not divide {count} devices", "choose a divisor of the device count"
    )
  axis_types = (AxisType.Auto, AxisType.Auto)
  return jax.make_mesh((count // fsdp, fsdp), ("data", "fsdp"), axis_types=axis_types, devices=devices)


def check_batch(batch_size: int, mesh: Mesh) -> None:
  """Raises UserError when the global batch does not divide over the devices."""
  if batch_size % mesh.size:
    below = batch_size // mesh.size * mesh.size
    near = " or ".join(str(n) for n in (below, below + mesh.size) if n)
    raise UserError(
      f"batch size {batch_size} is not divisible by {mesh.size} devices",
      f"set --config.train.batch_size={near}",
    )


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Examples split over every device, fsdp ones included."""
  return NamedSharding(mesh, P(("data", "fsdp")))


def state_shardings(state, mesh: Mesh):
  """A sharding for each leaf of `state`; optimiser moments follow their parameter, whose path theirs contains."""
  return jax.tree_util.tree_map_with_path(lambda path, leaf: _sharding(path, leaf, mesh), state)


def _sharding(path, leaf, mesh: Mesh) -> NamedSharding:
  name = jax.tree_util.keystr(path, simple=True, separator="/")
  for pattern, axis in RULES:
    if mesh.shape["fsdp"] > 1 and pattern.fullmatch(name) and leaf.shape[axis] % mesh.shape["fsdp"] == 0:
      spec: list[str | None] = [None] * leaf.ndim
      spec[axis] = "fsdp"
      return NamedSharding(mesh, P(*spec))
  return replicated(mesh)


def put(tree, shardings):
  """A copy of host or device arrays under `shardings`; the copy makes donating the result safe."""
  return jax.tree.map(lambda x, s: jax.device_put(np.array(x), s), tree, shardings)
