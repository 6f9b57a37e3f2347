"""Options of a model read off its weights: classes, channels, patch, resolution; and off transformers' config.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import traverse_util

from jaxkd import models
from jaxkd.models.parameters import variable_shapes
from jaxkd.weights import tables
from jaxkd.weights.convert import create, detect_style

# transformers' names of options, for models whose weights do not tell them.
CONFIG_KEYS = {"num_attention_heads": "heads", "layer_norm_eps": "norm_epsilon"}
# Its default where a model has no config.json beside it; DINOv2's is 1e-6, as here.
TRANSFORMERS_EPSILON = 1e-12


def infer_options(
  name: str,
  state: Mapping[str, Any],
  given: Mapping[str, Any],
  *,
  style: str = "",
  folder: Path | None = None,
) -> tuple[str, dict[str, Any]]:
  """(style, options of `create(name, ...)`): those `given`, completed by what the arrays' shapes say.

  Only options that the shapes determine are filled in: the width and depth of a name that fixes them
  (`deit_tiny`) are not, so that weights of another size are refused later. `folder` may hold transformers'
  config.json, which tells heads and epsilon.

  Raises:
    WeightsError: unknown model or option, or the keys are of no known style.
  """
  known = models.options(name)
  flat = traverse_util.flatten_dict(variable_shapes(create(name, given)), sep="/")
  style = style or detect_style(name, flat, state)
  shape = _Shapes(name, style, state)
  found = {**_image_options(shape, known, given), **_transformers_options(name, style, folder)}
  return style, {**{k: v for k, v in found.items() if k in known}, **given}


class _Shapes:
  """Torch shapes by jaxkd path."""

  def __init__(self, name: str, style: str, state: Mapping[str, Any]):
    self.name, self.style, self.state = name, style, state

  def __call__(self, leaf: str) -> tuple[int, ...]:
    """The shape of the first torch key of `leaf` (OIHW for convolutions), () where there is none."""
    if self.style == "jaxkd":
      shape = tuple(self.state[leaf].shape) if leaf in self.state else ()
      return tuple(shape[i] for i in (3, 2, 0, 1)) if len(shape) == 4 else shape[::-1]
    names = tables.table(self.name, self.style)
    prefixed = tables.is_prefixed(names, self.state)
    keys = tables.torch_keys(names, leaf, prefixed=prefixed) or ("",)
    return tuple(self.state[keys[0]].shape) if keys[0] in self.state else ()


def _image_options(shape: _Shapes, known: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
  found: dict[str, Any] = {}
  stems = ("params/patch_embed/proj/kernel", "params/stem_conv/kernel", "params/conv1/kernel")
  stem = next(filter(None, map(shape, stems)), ())
  if len(stem) == 4:
    found["in_channels"] = stem[1]
    if not shape("params/conv1/kernel"):  # a ResNet's name fixes its stem
      found["patch_size"] = stem[2]
  heads = ("params/head/kernel", "params/fc/kernel")
  head = next(filter(None, map(shape, heads)), ())
  found["num_classes"] = head[0] if head else 0
  table = shape("params/pos_embed")
  if len(table) == 3 and "patch_size" in found:
    found |= _resolution(table[1], found["patch_size"], known, shape)
  generic = known.get("width") == models.options("vit")["width"] and shape.name in ("vit", "deit")
  if generic and len(stem) == 4:
    found |= {"width": stem[0], "depth": _depth(shape)}
  if (hidden := shape("params/block00/mlp/fc1/kernel")) and not known.get("swiglu"):
    found["mlp_ratio"] = hidden[0] / hidden[1]
  return {k: v for k, v in found.items() if k not in given}


def _resolution(rows: int, patch: int, known: Mapping[str, Any], shape: _Shapes) -> dict[str, Any]:
  """The image side whose grid the position table has, for square grids."""
  registers = known.get("registers", 0)
  folded = registers and shape.style != "jaxkd" and tables.table(shape.name, shape.style).folds_positions
  special = 0 if folded else 1 + bool(shape("params/dist_token"))
  side = math.isqrt(rows - special)
  return {"image_size": side * patch} if side * side == rows - special else {}


def _depth(shape: _Shapes) -> int:
  depth = 0
  while shape(f"params/block{depth:02d}/norm1/scale"):
    depth += 1
  return depth


def _transformers_options(name: str, style: str, folder: Path | None) -> dict[str, Any]:
  if not style.startswith("transformers"):
    return {}
  found: dict[str, Any] = {"interpolation": "transformers"}
  if tables.family(name) != "dinov2":
    found["norm_epsilon"] = TRANSFORMERS_EPSILON
  path = folder / "config.json" if folder else None
  if path and path.is_file():
    config = json.loads(path.read_text())
    found |= {ours: config[theirs] for theirs, ours in CONFIG_KEYS.items() if theirs in config}
  return found
