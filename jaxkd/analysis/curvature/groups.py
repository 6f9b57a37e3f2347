"""Names for parts of a model, from parameter paths: top-level group, layer type, attention head."""

import re

import jax.numpy as jnp
from jaxtyping import Array, Float

# First match wins; paths as `jaxkd.models` names them.
LAYER_TYPES = (
  (r"attn/qkv/", "attention qkv"),
  (r"attn/proj/", "attention projection"),
  (r"/mlp/", "mlp"),
  (r"/(dwconv|pwconv\d|grn)/", "convnext block"),
  (r"(^|/)ls\d/", "layer scale"),
  (r"(^|/)se/", "squeeze excite"),
  (r"(^|[/_])bn\d*/", "batch norm"),
  (r"(^|/)(patch_embed|stem_conv|stem\w*)/|^(pos_embed|\w+_tokens?)$", "embedding"),
  (r"(^|/)[a-z]*norm\d*/", "norm"),
  (r"^(head|fc|classifier)\w*/", "head"),
  (r"conv\w*/|downsample", "conv"),
)


def first_component(path: str) -> str:
  """The top-level group of a parameter path: `block07/attn/qkv/kernel` -> `block07`."""
  return path.split("/", 1)[0]


def layer_type(path: str) -> str:
  """The kind of layer a parameter belongs to: "attention qkv", "mlp", "norm", "embedding", ...; else "other"."""
  return next((name for pattern, name in LAYER_TYPES if re.search(pattern, path)), "other")


def is_split_by_head(path: str) -> bool:
  """Whether the parameter has a part for every attention head: kernel and bias of qkv, kernel of proj."""
  return re.search(r"(^|/)attn/(qkv/(kernel|bias)|proj/kernel)$", path) is not None


def sum_by_head(path: str, products: Array, heads: int) -> Float[Array, " h"]:
  """Sums an array shaped like the parameter over everything but the heads.

  qkv's columns are [3 h d], proj's rows are [h d], as `models.transformer.Attention` cuts them.
  """
  if path.endswith("attn/proj/kernel"):
    return jnp.sum(products.reshape(heads, -1), axis=1)
  return jnp.sum(products.reshape(-1, 3, heads, products.shape[-1] // (3 * heads)), axis=(0, 1, 3))
