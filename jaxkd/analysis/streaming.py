"""Images through a compiled function, batch by batch, in one compiled shape; and where a model keeps its layers."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float


def map_batches(function: Callable[..., Any], *arrays: Array | np.ndarray, batch_size: int) -> Any:
  """`function(*parts)` over equally long arrays [b ...], its results joined along axis 0 as numpy.

  The last batch is moved back to full size and what it repeats is cut, so `function`, which must treat every image by
  itself, compiles once. A batch is fetched after the next one was dispatched.

  Raises:
    ValueError: no images, arrays of different lengths, or a batch size below 1.
  """
  count = len(arrays[0])
  if not count or batch_size < 1 or any(len(a) != count for a in arrays):
    raise ValueError(f"cannot batch arrays of lengths {[len(a) for a in arrays]} by {batch_size}")
  size = min(batch_size, count)
  done: list[Any] = []
  running: tuple[Any, int] | None = None
  for start in range(0, count, size):
    first = min(start, count - size)
    whole = size == count  # an array that lies on several devices stays as it is
    dispatched = function(*spread(arrays if whole else [a[first : first + size] for a in arrays]))
    done += [_fetch(*running)] if running else []
    running = (dispatched, start - first)
  done += [_fetch(*running)] if running else []
  return jax.tree.map(lambda *parts: np.concatenate(parts), *done)


def _fetch(result: Any, skip: int) -> Any:
  return jax.tree.map(lambda x: np.asarray(x)[skip:], result)


def spread(tree: Any) -> Any:
  """Host arrays [b ...] split over this process's devices by their first axis; as they are where there is one device,
  where `b` is no multiple of the devices, or where an array lies on devices already."""
  devices = jax.local_devices()
  rows = {len(x) for x in jax.tree.leaves(tree)}
  if len(devices) == 1 or any(n % len(devices) for n in rows):
    return tree
  sharding = NamedSharding(Mesh(np.array(devices), ("data",)), PartitionSpec("data"))
  return jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jax.device_put(x, sharding), tree)


def attends(model: nn.Module) -> bool:
  """Whether the model is a transformer: it has special tokens, and attention maps to give."""
  return bool(model.special_tokens)


def check_attends(model: nn.Module, purpose: str) -> None:
  """Raises ValueError for a model without attention."""
  if not attends(model):
    raise ValueError(f"{purpose} needs attention maps, and {type(model).__name__} is convolutional")


def taps_of(
  model: nn.Module, variables: Any, images: Float[Array, "b h w c"], want: tuple[str, ...] = ()
) -> dict[str, Array]:
  """Taps in evaluation mode, matrix products and their gradients in full float32 (not TensorFloat-32, as on GPUs)."""
  with jax.default_matmul_precision("highest"):
    _, taps = model.apply(variables, images, train=False, want=want)
  return dict(taps)


def layer_names(model: nn.Module) -> tuple[str, ...]:
  """Names of the taps that hold the layers' spatial features, first to last: `blockNN/tokens` or `stageN`."""
  return tuple(f"block{i:02d}/tokens" if attends(model) else f"stage{i}" for i in range(model.num_layers))


def patch_grid(model: nn.Module, images: Array | np.ndarray) -> tuple[int, int]:
  """Rows and columns of a transformer's patches on images [b h w c]."""
  return images.shape[1] // model.patch_size, images.shape[2] // model.patch_size


def spatial_map(
  tap: Float[Array, "b n d"] | Float[Array, "b h w d"], special_tokens: int, grid: tuple[int, int] | None
) -> Float[Array, "b h w d"]:
  """A tap as a map: tokens lose the special ones and get their grid back, a convolutional map is returned as it is.

  Raises:
    ValueError: tokens that do not fill the grid, or a tap that is neither.
  """
  if tap.ndim == 4:
    return tap
  if tap.ndim != 3 or grid is None or tap.shape[1] != special_tokens + grid[0] * grid[1]:
    raise ValueError(
      f"a tap of shape {tap.shape} is neither a map [b h w c] nor {special_tokens} special tokens and a grid of {grid}"
    )
  return tap[:, special_tokens:].reshape(tap.shape[0], *grid, tap.shape[2])


def spatial_taps(
  model: nn.Module, variables: Any, images: Float[Array, "b h w c"], layers: tuple[str, ...] | None = None
) -> dict[str, Float[Array, "b y x d"]]:
  """The named taps of the model on the images (default: every layer's), as maps.

  Raises:
    ValueError: the model has no such tap, or it is not spatial.
  """
  names, taps = layers or layer_names(model), taps_of(model, variables, images)
  if missing := [name for name in names if name not in taps]:
    raise ValueError(f"{type(model).__name__} has no tap {missing[0]!r}; known: {', '.join(sorted(taps))}")
  grid = patch_grid(model, images) if attends(model) else None
  return {name: spatial_map(taps[name], model.special_tokens, grid) for name in names}
