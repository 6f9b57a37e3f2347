"""Where arrays live: a mesh of ("data", "fsdp") and path rules for parameters. Models know nothing of it."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxkd import distributed
from jaxkd.errors import UserError

# First match wins; the axis of a matrix that is split over "fsdp": a block's hidden features, so that its products meet
# in one sum. Other large arrays are split along their longest axis, small ones are on every device.
RULES = (
  (re.compile(r".*(qkv|fc1|proj)/kernel"), -1),
  (re.compile(r".*fc2/kernel"), -2),
)
SMALL = 2048  # numbers: splitting fewer saves nothing and costs a message


def make_mesh(*, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
  """`devices` (default: all there are, of all processes that run together) as [data, fsdp].

  Raises:
    UserError: `fsdp` does not divide the number of devices.
  """
  if devices is None:
    devices = jax.devices() if distributed.processes() > 1 else jax.local_devices()
  count = len(devices)
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
    each = mesh.size // max(distributed.processes(), 1)
    of = f" ({distributed.processes()} processes x {each})" if distributed.processes() > 1 else ""
    raise UserError(
      f"batch size {batch_size} is not divisible by {mesh.size} devices{of}",
      f"set --config.train.batch_size={near}",
    )


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Examples split over every device, fsdp ones included."""
  return NamedSharding(mesh, P(("data", "fsdp")))


def state_shardings(state, mesh: Mesh):
  """A sharding for each leaf of `state`; optimiser moments and averages follow their parameter, whose path theirs
  contains."""
  return jax.tree_util.tree_map_with_path(lambda path, leaf: _sharding(path, leaf, mesh), state)


def _sharding(path, leaf, mesh: Mesh) -> NamedSharding:
  name, parts = jax.tree_util.keystr(path, simple=True, separator="/"), mesh.shape["fsdp"]
  if parts == 1:
    return replicated(mesh)
  axes = [axis for pattern, axis in RULES if pattern.fullmatch(name)][:1]
  if leaf.size >= SMALL:
    axes += sorted(range(-leaf.ndim, 0), key=lambda axis: (leaf.shape[axis], axis), reverse=True)
  for axis in axes:
    if leaf.shape[axis] % parts == 0:
      spec: list[str | None] = [None] * leaf.ndim
      spec[axis] = "fsdp"
      return NamedSharding(mesh, P(*spec))
  return replicated(mesh)


# --- between host and devices, the same in one process and in several ---


def put(tree, shardings):
  """Host arrays, each with the sharding of the same place in `shardings`; every process has all of each array.

  The devices get copies, which makes donating the result safe.
  """
  return jax.tree.map(lambda x, s: _place(np.array(x), s), tree, shardings)


def _place(array: np.ndarray, sharding) -> jax.Array:
  if sharding.is_fully_addressable:
    return jax.device_put(array, sharding)
  return assemble(array.shape, sharding, lambda index: array[index])


def assemble(shape: tuple[int, ...], split: NamedSharding, part: Callable[[Any], np.ndarray]) -> jax.Array:
  """The array [*shape] whose share on each device of this process is `part(index)`, `index` being slices of it.

  `jax.make_array_from_callback` does the same by implicit transfers, which a guard on the training loop refuses.
  """
  places: Any = split.addressable_devices_indices_map(shape)
  parts = [jax.device_put(part(index), device) for device, index in places.items()]
  return jax.make_array_from_single_device_arrays(shape, split, parts)


def shard_batch(tree, mesh: Mesh):
  """Host arrays [b ...], of which every process has all rows, split over the devices by their first axis.

  `b` must be a multiple of `mesh.size` (see `padded`).
  """
  return jax.tree.map(lambda x: shard_rows(x, np.arange(len(x)), mesh), tree)


def shard_rows(array, rows: np.ndarray, mesh: Mesh) -> jax.Array:
  """`array[rows]` [b ...], split over the devices by its first axis; a process reads the rows of its devices only.

  `array` is a numpy array, or `StoredImages`, which decodes what is read.
  """

  def part(index: Any) -> np.ndarray:  # one slice for each axis
    return np.array(array[rows[index[0]]])

  return assemble((len(rows), *array.shape[1:]), batch_sharding(mesh), part)


def padded(first: int, count: int, total: int, mesh: Mesh) -> np.ndarray:
  """Rows `first` ... `first + count - 1` of `total`, filled up with the last one to a multiple of the devices.

  What a model gives for the rows from `total - first` on is to be cut.
  """
  size = -(-count // mesh.size) * mesh.size
  return np.minimum(np.arange(first, first + size), total - 1)


def fetch(tree):
  """Device arrays as numpy arrays on every process that takes part; all of them must ask for the same tree.

  One array at a time is gathered on the devices where it is split over processes.
  """
  return jax.tree.map(_fetch, tree)


def _fetch(x) -> np.ndarray:
  if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
    mesh: Any = x.sharding
    x = _gatherer(replicated(mesh.mesh))(x)
  return np.array(x)


@functools.lru_cache(maxsize=8)
def _gatherer(everywhere: NamedSharding):
  return jax.jit(lambda x: x, out_shardings=everywhere)
