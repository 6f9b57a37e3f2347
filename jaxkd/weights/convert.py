"""State dicts to variables and back: strict, with every key used once and every leaf filled once."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxkd import models
from jaxkd.errors import UserError
from jaxkd.models.parameters import variable_shapes
from jaxkd.models.positions import grid_of, resize_positions
from jaxkd.weights import tables
from jaxkd.weights.tables import Table

POSITIONS = "params/pos_embed"
# Leaves that are often zero on purpose: biases, and ConvNeXt V2's GRN as it starts.
ZERO_AT_START = re.compile(r".*/(bias|grn/(gamma|beta)|mean)")


class WeightsError(UserError, ValueError):
  """Weights that are not those of the model."""


@dataclasses.dataclass(frozen=True)
class Row:
  """One converted array: jaxkd path, torch's keys and shapes, our shape, and what was done besides renaming."""

  leaf: str
  keys: tuple[str, ...]
  torch_shapes: tuple[tuple[int, ...], ...]
  shape: tuple[int, ...]
  note: str = ""


@dataclasses.dataclass(frozen=True)
class Conversion:
  """`variables` with an account of where they came from.

  `dropped` are keys left out on purpose, `fresh` leaves that the caller allowed to be missing and that were
  initialised, `zeros` leaves that hold nothing but 0.
  """

  variables: dict[str, Any]
  model: str
  style: str
  rows: tuple[Row, ...]
  dropped: tuple[str, ...]
  fresh: tuple[str, ...]
  zeros: tuple[str, ...]


def from_torch(name: str, state_dict: Mapping[str, Any], **options: Any) -> dict[str, Any]:
  """Variables `{"params": ..., ["batch_stats": ...]}` of `jaxkd.models.create(name, **options)`, float32 numpy.

  See `convert_state` for the arguments and errors. Leaves that are all zero are warned of.
  """
  converted = convert_state(name, state_dict, **options)
  if converted.zeros:
    warnings.warn(f"{name}: all zero: {_first(converted.zeros)}", stacklevel=2)
  return converted.variables


def convert_state(
  name: str,
  state_dict: Mapping[str, Any],
  *,
  style: str = "",
  strict: bool = True,
  allow: Iterable[str] = (),
  interpolate_pos: bool = False,
  **options: Any,
) -> Conversion:
  """Converts a state dict and says what it did.

  Args:
    name: a name of `jaxkd.models`; options: as of `create`.
    state_dict: names to numpy arrays or torch tensors of any float dtype.
    style: the style of the names; detected when empty.
    strict: refuse any difference. With `strict=False`, `allow` must list (with wildcards) the jaxkd leaves that may
      be missing or of another shape, which are then initialised anew, and the torch keys that may be left over.
    interpolate_pos: resample a position table of another grid by the family's own kernel. Without it such a table
      is refused when `image_size` is given, and kept as it is (the model reads its grid) when it is not.

  Raises:
    WeightsError: missing, unexpected and mis-shaped keys (all three lists), NaN or Inf in a leaf (named), a
      position table of another grid, or an unknown style. Nothing is returned then.
  """
  allowed = tuple(allow)
  if not strict and not allowed:
    raise WeightsError(
      "strict=False without a list of what may differ", "pass allow=('params/head/*',) or the like"
    )
  model = create(name, options)
  shapes = traverse_util.flatten_dict(variable_shapes(model), sep="/")
  if not style:
    style = detect_style(name, shapes, state_dict)
  keys: dict[str, tuple[str, ...]]
  dropped: list[str]
  if style == "jaxkd":
    keys, dropped = {leaf: (leaf,) for leaf in shapes}, []
  else:
    names = tables.table(name, style)
    state_dict = {names.present(key): array for key, array in state_dict.items()}
    keys, dropped = _match(names, name, style, shapes, state_dict)
  reader = _Reader(name, style, model, state_dict, interpolate_pos, "image_size" in options)
  problems = _Problems(allowed if not strict else ())
  leaves = {leaf: reader.read(leaf, keys[leaf], shape.shape, problems) for leaf, shape in shapes.items()}
  used = {key for of_leaf in keys.values() for key in of_leaf}
  problems.unexpected += [k for k in state_dict if k not in used and k not in dropped]
  dropped += problems.check(name, style)
  fresh = [leaf for leaf, value in leaves.items() if value is None]
  if fresh:
    leaves |= _initial(model, fresh)
  zeros = tuple(k for k, v in leaves.items() if not ZERO_AT_START.fullmatch(k) and not np.any(v))
  variables = traverse_util.unflatten_dict(leaves, sep="/")
  return Conversion(variables, name, style, tuple(reader.rows), tuple(dropped), tuple(fresh), zeros)


def create(name: str, options: Mapping[str, Any]) -> nn.Module:
  """`jaxkd.models.create`, with its complaints as WeightsError."""
  try:
    return models.create(name, **options)
  except (ValueError, TypeError) as e:
    raise WeightsError(f"model '{name}': {e}", "see jaxkd.models.options(name) for what it takes") from e


def detect_style(name: str, shapes: Mapping[str, Any], state_dict: Mapping[str, Any]) -> str:
  """The style of `state_dict`: the one that names most of its keys.

  Raises:
    WeightsError: no style names any key.
  """
  if all("/" in key for key in state_dict) and state_dict:
    return "jaxkd"
  scores = {}
  for style, names in tables.FAMILIES[tables.family(name)].items():
    prefixed = tables.is_prefixed(names, state_dict)
    keys = {k for leaf in shapes for k in tables.torch_keys(names, leaf, prefixed=prefixed) or ()}
    scores[style] = sum(names.present(key) in keys for key in state_dict)
  best = max(scores, key=lambda s: scores[s], default="")
  if not best or not scores[best]:
    raise WeightsError(
      f"no key is one of model '{name}' in any style ({', '.join(tables.styles(name))}); the keys begin with "
      f"{_first(list(state_dict), 3)}",
      "name the model these weights belong to",
    )
  return best


def _match(
  names: Table, name: str, style: str, shapes: Mapping[str, Any], state_dict: Mapping[str, Any]
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
  """Torch's keys of every leaf, and the keys of the state dict that are dropped on purpose."""
  prefixed = tables.is_prefixed(names, state_dict)
  keys: dict[str, tuple[str, ...]] = {}
  for leaf in shapes:
    found = tables.torch_keys(names, leaf, prefixed=prefixed)
    if found is None:
      raise WeightsError(
        f"style '{style}' has no name for '{leaf}' of model '{name}'",
        "change the model's options or the style",
      )
    keys[leaf] = found
  bare = {key: key.removeprefix(names.prefix) if prefixed else key for key in state_dict}
  return keys, [key for key in state_dict if names.drops(bare[key]) or names.drops(key)]


class _Problems:
  """What does not fit, collected so that one message tells all of it."""

  def __init__(self, allow: tuple[str, ...]):
    self.allow = allow
    self.missing: list[str] = []
    self.misshaped: list[str] = []
    self.unexpected: list[str] = []

  def allowed(self, what: str) -> bool:
    return any(fnmatch.fnmatchcase(what, pattern) for pattern in self.allow)

  def check(self, name: str, style: str) -> list[str]:
    """The unexpected keys that are allowed. Raises WeightsError for everything that is not."""
    left = [key for key in self.unexpected if self.allowed(key)]
    unexpected = [key for key in self.unexpected if key not in left]
    lists = {"missing": self.missing, "mis-shaped": self.misshaped, "unexpected": unexpected}
    if any(lists.values()):
      told = "; ".join(f"{len(v)} {k}: {_first(v)}" for k, v in lists.items() if v)
      raise WeightsError(
        f"the weights are not those of model '{name}' in style '{style}': {told}",
        "match the options to the weights, or list what may differ: --allow PATTERN, allow=(...) with strict=False",
      )
    return left


@dataclasses.dataclass
class _Reader:
  """Turns torch's arrays into leaves, one at a time, so that memory stays near one copy."""

  name: str
  style: str
  model: nn.Module
  state: Mapping[str, Any]
  interpolate: bool
  sized: bool  # the caller named the image size
  rows: list[Row] = dataclasses.field(default_factory=list)

  def read(
    self, leaf: str, keys: tuple[str, ...], shape: tuple[int, ...], problems: _Problems
  ) -> np.ndarray | None:
    """The leaf, or None where the problem was noted or allowed."""
    absent = [key for key in keys if key not in self.state]
    if absent:
      if not problems.allowed(leaf):
        problems.missing += absent
      return None
    parts = [as_numpy(self.state[key]) for key in keys]
    value, note = self._layout(leaf, parts, shape)
    if leaf == POSITIONS:
      value, note = self._positions(value, note)
    if value.shape != shape and not (leaf == POSITIONS and self._keeps(value)):
      if not problems.allowed(leaf):
        problems.misshaped.append(self._misshaped(leaf, keys, parts, shape))
      return None
    self._check_finite(leaf, value)
    self.rows.append(Row(leaf, keys, tuple(p.shape for p in parts), value.shape, note))
    return value

  def _layout(self, leaf: str, parts: list[np.ndarray], shape: tuple[int, ...]) -> tuple[np.ndarray, str]:
    value = parts[0] if len(parts) == 1 else np.concatenate(parts)
    notes = [f"joined {len(parts)}"] if len(parts) > 1 else []
    if self.style != "jaxkd":
      value = _squeeze(value, len(shape))
      if leaf.endswith("/kernel"):
        value = np.transpose(value, (2, 3, 1, 0) if value.ndim == 4 else tuple(range(value.ndim))[::-1])
        notes.append("OIHW to HWIO" if value.ndim == 4 else "transposed")
      value, folded = self._unfold(leaf, value)
      notes += folded
    if value.dtype != np.float32:
      notes.append(f"{value.dtype} to float32")
    return np.array(value, np.float32, order="C"), ", ".join(notes)  # a copy of its own, never torch's memory

  def _unfold(self, leaf: str, value: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """timm leaves the cls row out of the positions of a model with registers: it is in the token."""
    registers = getattr(self.model, "registers", 0)
    if leaf != POSITIONS or not registers or not tables.table(self.name, self.style).folds_positions:
      return value, []
    rows = np.zeros((1, self.model.positioned_tokens, value.shape[-1]), value.dtype)
    return np.concatenate([rows, value], axis=1), ["row of cls is in the token"]

  def _positions(self, value: np.ndarray, note: str) -> tuple[np.ndarray, str]:
    special, grid = self.model.positioned_tokens, self.model.grid
    patches = value.shape[1] - special if value.ndim == 3 else -1
    if not self.interpolate or patches < 1 or patches == grid[0] * grid[1]:
      return value, note
    try:
      old = grid_of(patches, grid)
    except ValueError:
      return value, note  # of no grid at all: told as mis-shaped
    moved = resize_positions(jnp.asarray(value), special, old, grid, kernel=self.model.position_kernel)
    told = f"{old[0]}x{old[1]} to {grid[0]}x{grid[1]} ({self.model.position_kernel})"
    return np.asarray(moved), ", ".join(filter(None, [note, told]))

  def _keeps(self, value: np.ndarray) -> bool:
    """A square table of another grid stays as it is when nobody named an image size: the model reads its grid."""
    special, width = self.model.positioned_tokens, self.model.width
    patches = value.shape[1] - special if value.ndim == 3 else 0
    square = patches > 0 and round(patches**0.5) ** 2 == patches
    return not self.sized and square and value.shape[::2] == (1, width)

  def _misshaped(self, leaf: str, keys: tuple[str, ...], parts: list[np.ndarray], shape) -> str:
    told = f"{' + '.join(keys)} {' + '.join(str(p.shape) for p in parts)} for {leaf} {shape}"
    if leaf == POSITIONS:
      told += f" ({parts[0].shape[1] if parts[0].ndim > 1 else 0} positions, the model has {shape[1]}; "
      told += "interpolate_pos=True resamples a square table)"
    return told

  def _check_finite(self, leaf: str, value: np.ndarray) -> None:
    if not np.isfinite(value).all():
      bad = int(value.size - np.isfinite(value).sum())
      raise WeightsError(
        f"leaf '{leaf}' of model '{self.name}' holds {bad} NaN or Inf of {value.size} values",
        "the weights are damaged or the training diverged; get another copy",
      )


def as_numpy(array: Any) -> np.ndarray:
  """A numpy view of a numpy array or torch tensor; bfloat16 and float16 tensors are widened to float32."""
  if isinstance(array, np.ndarray):
    return array
  tensor = array.detach().cpu()
  if tensor.is_floating_point() and tensor.element_size() < 4:
    tensor = tensor.float()
  return tensor.numpy()


def _squeeze(value: np.ndarray, ndim: int) -> np.ndarray:
  """Drops the axes of length 1 that torch has beyond `ndim`: those of 1x1 convolutions and of [1 1 1 c] rows."""
  if value.ndim == 4 and ndim == 2 and value.shape[2:] == (1, 1):
    return value[:, :, 0, 0]
  if value.ndim == 4 and ndim == 1 and value.shape[:3] == (1, 1, 1):
    return value[0, 0, 0]
  return value


def _initial(model: nn.Module, leaves: list[str]) -> dict[str, np.ndarray]:
  """Initial values of some leaves, with seed 0."""
  images = jnp.zeros((1, *model.image_size, model.in_channels))
  flat = traverse_util.flatten_dict(jax.jit(model.init)(jax.random.key(0), images), sep="/")
  return {leaf: np.array(flat[leaf]) for leaf in leaves}


def _first(items: Iterable[str], count: int = 10) -> str:
  items = list(items)
  rest = f" and {len(items) - count} more" if len(items) > count else ""
  return ", ".join(items[:count]) + rest


def to_torch(name: str, variables: Mapping[str, Any], style: str = "timm") -> dict[str, np.ndarray]:
  """The state dict of `variables` in torch's names and layouts, float32 numpy arrays of their own.

  Within a style `to_torch(from_torch(x))` is bitwise `x`, but for keys that have no counterpart here and are written
  as zeros because strict loading wants them (`mask_token`, `num_batches_tracked`).

  Raises:
    WeightsError: a leaf that the style has no name for. UserError: the family has no such style.
  """
  leaves = {
    k: np.array(v, np.float32, order="C")
    for k, v in traverse_util.flatten_dict(dict(variables), sep="/").items()
  }
  if style == "jaxkd":
    return leaves
  names = tables.table(name, style)
  if names.folds_positions and "params/register_tokens" in leaves:
    _fold(leaves)
  prefixed = bool(names.prefix) and any(tables.is_head(names, k) for k in _all_keys(names, leaves))
  out: dict[str, np.ndarray] = {}
  for leaf, value in leaves.items():
    keys = tables.torch_keys(names, leaf, prefixed=prefixed)
    if keys is None:
      raise WeightsError(
        f"style '{style}' has no name for '{leaf}' of model '{name}'",
        "export in style 'jaxkd', which has a name for everything",
      )
    value = _torch_layout(leaf, value)
    for key, part in zip(keys, np.split(value, len(keys)), strict=True):
      out[key] = np.ascontiguousarray(_torch_shape(names, key, part))
  return out | _written_zeros(names, leaves, out)


def _all_keys(names: Table, leaves: Mapping[str, np.ndarray]) -> list[str]:
  return [k for leaf in leaves for k in tables.torch_keys(names, leaf, prefixed=False) or ()]


def _fold(leaves: dict[str, np.ndarray]) -> None:
  """Moves the position rows of the special tokens into the tokens."""
  table, tokens = (
    leaves[POSITIONS],
    [f"params/{t}" for t in ("cls_token", "dist_token") if f"params/{t}" in leaves],
  )
  for i, token in enumerate(tokens):
    leaves[token] = leaves[token] + table[:, i : i + 1]
  leaves[POSITIONS] = table[:, len(tokens) :]


def _torch_layout(leaf: str, value: np.ndarray) -> np.ndarray:
  if not leaf.endswith("/kernel"):
    return value
  return np.transpose(value, (3, 2, 0, 1) if value.ndim == 4 else (1, 0))


def _torch_shape(names: Table, key: str, value: np.ndarray) -> np.ndarray:
  shape = next((s for pattern, s in names.shapes.items() if re.fullmatch(pattern, key)), "")
  if shape == "row":
    return value[None, None, None]
  # timm builds the small ConvNeXts (first width below Tiny's 96) with 1x1 convolutions for linear layers.
  if shape == "pointwise" and min(value.shape) < 96 * 2 ** int(key.split(".")[1]):
    return value[:, :, None, None]
  return value


def _written_zeros(
  names: Table, leaves: Mapping[str, np.ndarray], written: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Keys that strict loading in torch wants and that mean nothing here."""
  zeros = {key: np.zeros((1, leaves["params/cls_token"].shape[-1]), np.float32) for key in names.zeros}
  if tables.BATCH_NORM_COUNT in names.dropped:
    counts = [k.removesuffix("running_var") for k in written if k.endswith("running_var")]
    zeros |= {f"{k}num_batches_tracked": np.zeros((), np.int64) for k in counts}
  return zeros
