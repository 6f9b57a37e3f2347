"""The parameters of a model as a table, from shapes alone."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxkd.models.layers import choose


def variable_shapes(model: nn.Module) -> dict[str, Any]:
  """Shapes and dtypes of all collections of `model`, as nested dicts of `jax.ShapeDtypeStruct`."""
  images = jax.ShapeDtypeStruct((1, *model.image_size, model.in_channels), jnp.float32)
  return jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)


def parameter_table(model: nn.Module, *, by: str = "leaf") -> list[dict[str, Any]]:
  """Rows `name`, `shape`, `count` and `share` (of all parameters, in [0, 1]), in path order; nothing is computed.

  `by="leaf"` gives every array, `by="module"` sums the arrays of each top-level module (shape is then None).
  Collections other than `params` (BatchNorm's statistics) are no parameters and are left out. Raises ValueError
  for another `by`.
  """
  choose("by", by, ("leaf", "module"))
  leaves = jax.tree_util.tree_leaves_with_path(variable_shapes(model)["params"])
  named = [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape) for path, leaf in leaves]
  total = sum(math.prod(shape) for _, shape in named)
  if by == "leaf":
    counts: dict[str, Any] = {name: (shape, math.prod(shape)) for name, shape in named}
  else:
    counts = {}
    for name, shape in named:
      module = name.partition("/")[0]
      counts[module] = (None, counts.get(module, (None, 0))[1] + math.prod(shape))
  return [
    {"name": name, "shape": shape, "count": count, "share": count / total}
    for name, (shape, count) in counts.items()
  ]
