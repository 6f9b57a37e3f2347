"""Which parameters an optimiser treats how, decided by their paths: decayed, frozen, slowed, orthogonalised.

Trees are those of a run, `{"model": ..., "heads": ...}`; parameters that an outer group took away are absent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import jax

from jaxkd.errors import UserError, did_you_mean

# Matrices and convolution kernels decay; biases, norms, scales, tokens and positions do not (DeiT's rule).
DECAYED = re.compile(r".*kernel$")
# First name of a path inside the model, from the image to the logits.
EMBEDDINGS = re.compile(r"patch_embed|pos_embed|(cls|dist|mask|register)_tokens?|stem_.*|conv1|bn1")
BLOCKS = re.compile(r"block(\d+)|(?:stage|layer)(\d+)_(?:block)?(\d+)|down(\d+)_.*")
LAST = re.compile(r"norm|head.*|fc\d?")


def path_name(path) -> str:
  """`model/block00/attn/qkv/kernel`."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def decay_mask(params) -> dict:
  """True where weight decay applies, by parameter path."""
  return _by_path(lambda name, _: bool(DECAYED.fullmatch(name)), params)


def muon_mask(params) -> dict:
  """True for the matrices inside the model's blocks. Embeddings, classifiers and projections are none of Muon's."""
  return _by_path(
    lambda name, leaf: leaf.ndim == 2 and _in_block(name) and DECAYED.match(name) is not None, params
  )


def trainable_mask(params, freeze: Iterable[str]) -> dict:
  """False for parameters of the model whose path below `model/` one of the regular expressions matches in full.

  Raises:
    UserError: an expression that is none or matches no parameter, or nothing of the model left to train.
  """
  patterns = compiled(freeze)
  names = [name for name in _names(params) if name.startswith("model/")]
  for pattern in patterns:
    if not any(pattern.fullmatch(name.removeprefix("model/")) for name in names):
      close = did_you_mean(pattern.pattern, {_first(name) for name in names})
      raise UserError(
        f"optim.freeze: '{pattern.pattern}' matches no parameter of the model",
        f"{close} (a whole path is matched, e.g. 'block00/.*')",
      )

  def trained(name: str, _) -> bool:
    return not any(p.fullmatch(name.removeprefix("model/")) for p in patterns if name.startswith("model/"))

  if names and not any(trained(name, None) for name in names):
    raise UserError(f"optim.freeze: {tuple(freeze)} leave nothing of the model to train", "freeze less")
  return _by_path(trained, params)


def keep_trained(tree, freeze: Iterable[str]):
  """`tree` (gradients, say) with None, which is no leaf, where `freeze` matches; without `freeze` as it is."""
  if not freeze:
    return tree
  return jax.tree.map(lambda leaf, trained: leaf if trained else None, tree, trainable_mask(tree, freeze))


def compiled(freeze: Iterable[str]) -> list[re.Pattern]:
  """The regular expressions of `optim.freeze`, or a UserError for what is none."""
  found = []
  for text in freeze:
    try:
      found.append(re.compile(text))
    except (re.error, TypeError) as e:
      raise UserError(f"optim.freeze: {text!r} is not a regular expression: {e}", "e.g. 'block00/.*'") from e
  return found


def depths(params) -> tuple[dict, int]:
  """The depth of every parameter and the greatest one: embeddings 0, blocks 1, 2, ..., norm and heads last.

  Bao et al. (2022), arXiv:2106.08254 count so for ViTs; a CNN's blocks count one by one here, and a
  downsampling layer goes with the block that follows it. Projections of loss terms are last too.

  Raises:
    UserError: a parameter of the model whose place is not known.
  """
  keys = sorted({key for name in _names(params) if (key := _block(name)) is not None})
  order = {key: i + 1 for i, key in enumerate(keys)}
  last = len(order) + 1
  return _by_path(lambda name, _: _depth(name, order, last), params), last


def depth_scales(params, factor: float) -> dict:
  """`factor ** (last - depth)` for every parameter."""
  found, last = depths(params)
  return jax.tree.map(lambda depth: factor ** (last - depth), found)


def _depth(name: str, order: dict[tuple, int], last: int) -> int:
  block, first = _block(name), _first(name)
  if block is not None:
    return order[block]
  if EMBEDDINGS.fullmatch(first):
    return 0
  if not name.startswith("model/") or LAST.fullmatch(first):
    return last
  raise UserError(
    f"optim.layer_decay: the depth of '{name}' is not known", "set --config.optim.layer_decay=1"
  )


def _block(name: str) -> tuple[int, ...] | None:
  match = BLOCKS.fullmatch(_first(name))
  if not match:
    return None
  block, stage, inner, down = match.groups()
  return (0, int(block)) if block else (int(stage), int(inner)) if stage else (int(down), 0)


def _in_block(name: str) -> bool:
  return _block(name) is not None


def _first(name: str) -> str:
  """The first part of a path inside the model; empty elsewhere."""
  return name.split("/")[1] if name.startswith("model/") else ""


def _names(params) -> list[str]:
  return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def _by_path(function, params) -> dict:
  return jax.tree_util.tree_map_with_path(lambda path, leaf: function(path_name(path), leaf), params)
