"""Names of the same array in jaxkd and in torch: one table for each family of models and style of names.

A table maps a jaxkd module (a regular expression over its path) to torch's module, both ways. Leaves follow one
rule: kernel and scale are `weight`, mean and var are `running_mean` and `running_var`; 4-d kernels are HWIO here and
OIHW there, 2-d kernels IO and OI. Several torch names for one module (query, key, value) are its parts along torch's
first axis.

Styles: `official` (the authors' release), `timm`, `torchvision`, `cifar` (the usual CIFAR ResNet code), `transformers`
(`state_dict()` of transformers 5), `transformers_hub` (its files, all versions), `jaxkd` (our own paths and layouts).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from jaxkd.errors import UserError, did_you_mean

BLOCK = r"block(\d+)"
BATCH_NORM_COUNT = r".*num_batches_tracked"


@dataclasses.dataclass(frozen=True)
class Table:
  """One style of one family.

  Args:
    modules: jaxkd path (regular expression) -> torch path, or several of them; `{0}` is the first group.
    prefix: what a model with a head puts before every key but the head's (transformers).
    heads: torch paths that never take the prefix.
    shapes: torch path (regular expression) -> "pointwise" for 1x1 convolutions, "row" for [1 1 1 c].
    dropped: torch keys (regular expressions) without counterpart here, left out on purpose.
    zeros: torch keys written as zeros of so many of the model's widths, because strict loading there wants them.
    folds_positions: registers models have no position row for the cls token; it is part of the token.
    renamed: keys (regular expressions) of older files -> their present names.
  """

  modules: dict[str, str | tuple[str, ...]]
  prefix: str = ""
  heads: tuple[str, ...] = ()
  shapes: dict[str, str] = dataclasses.field(default_factory=dict)
  dropped: tuple[str, ...] = ()
  zeros: tuple[str, ...] = ()
  folds_positions: bool = False
  renamed: dict[str, str] = dataclasses.field(default_factory=dict)

  def torch_modules(self, path: str) -> tuple[str, ...] | None:
    """Torch's paths of the jaxkd module or bare parameter `path`, without prefix; None when it has no name."""
    for pattern, template in self.modules.items():
      if match := re.fullmatch(pattern, path):
        groups = [int(g) if g.isdigit() else g for g in match.groups()]
        templates = (template,) if isinstance(template, str) else template
        return tuple(t.format(*groups) for t in templates)
    return None

  def present(self, key: str) -> str:
    """The present name of `key`, for files older than a renaming."""
    for pattern, new in self.renamed.items():
      if match := re.fullmatch(pattern, key):
        return match.expand(new)
    return key

  def drops(self, key: str) -> bool:
    return any(re.fullmatch(pattern, key) for pattern in self.dropped)


def _vit_blocks(**changes: str | tuple[str, ...]) -> dict[str, str | tuple[str, ...]]:
  """timm's and the official names of a transformer."""
  names: dict[str, str | tuple[str, ...]] = {
    "cls_token": "cls_token",
    "dist_token": "dist_token",
    "pos_embed": "pos_embed",
    "register_tokens": "register_tokens",
    "patch_embed/proj": "patch_embed.proj",
    rf"{BLOCK}/(norm1|norm2)": "blocks.{0}.{1}",
    rf"{BLOCK}/attn/(qkv|proj)": "blocks.{0}.attn.{1}",
    rf"{BLOCK}/mlp/(fc1|fc2|w12|w3)": "blocks.{0}.mlp.{1}",
    rf"{BLOCK}/(ls1|ls2)/gamma": "blocks.{0}.{1}.gamma",
    "(norm|head|head_dist)": "{0}",
  }
  return names | changes


TIMM_SWIGLU: dict[str, str | tuple[str, ...]] = {
  rf"{BLOCK}/mlp/(fc1|fc2)": "blocks.{0}.mlp.{1}",
  rf"{BLOCK}/mlp/w12": "blocks.{0}.mlp.fc1",
  rf"{BLOCK}/mlp/w3": "blocks.{0}.mlp.fc2",
}


def _timm_vit() -> dict[str, str | tuple[str, ...]]:
  names = _vit_blocks(register_tokens="reg_token")
  del names[rf"{BLOCK}/mlp/(fc1|fc2|w12|w3)"]
  return names | TIMM_SWIGLU


def _embeddings() -> dict[str, str | tuple[str, ...]]:
  return {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "pos_embed": "embeddings.position_embeddings",
    "register_tokens": "embeddings.register_tokens",
    "patch_embed/proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
  }


def _hub_attention(layer: str) -> dict[str, str | tuple[str, ...]]:
  """Names in transformers' files."""
  parts = tuple(layer + f".attention.attention.{p}" for p in ("query", "key", "value"))
  return {rf"{BLOCK}/attn/qkv": parts, rf"{BLOCK}/attn/proj": layer + ".attention.output.dense"}


def _module_attention(layer: str) -> dict[str, str | tuple[str, ...]]:
  """Names in transformers 5's modules."""
  parts = tuple(layer + f".attention.{p}" for p in ("q_proj", "k_proj", "v_proj"))
  return {rf"{BLOCK}/attn/qkv": parts, rf"{BLOCK}/attn/proj": layer + ".attention.o_proj"}


def _transformers_vit(heads: dict[str, str], *, hub: bool) -> dict[str, str | tuple[str, ...]]:
  layer = "encoder.layer.{0}" if hub else "layers.{0}"
  attention = _hub_attention(layer) if hub else _module_attention(layer)
  fc1, fc2 = (".intermediate.dense", ".output.dense") if hub else (".mlp.fc1", ".mlp.fc2")
  return {
    **_embeddings(),
    **attention,
    rf"{BLOCK}/norm1": layer + ".layernorm_before",
    rf"{BLOCK}/norm2": layer + ".layernorm_after",
    rf"{BLOCK}/mlp/fc1": layer + fc1,
    rf"{BLOCK}/mlp/fc2": layer + fc2,
    **heads,
  }


def _transformers_dinov2(*, hub: bool) -> dict[str, str | tuple[str, ...]]:
  layer = "encoder.layer.{0}"
  attention = _hub_attention(layer) if hub else _module_attention(layer)
  w12 = (layer + ".mlp.weights_in",) if hub else (layer + ".mlp.gate_proj", layer + ".mlp.up_proj")
  return {
    **_embeddings(),
    **attention,
    rf"{BLOCK}/(norm1|norm2)": layer + ".{1}",
    rf"{BLOCK}/ls(1|2)/gamma": layer + ".layer_scale{1}.lambda1",
    rf"{BLOCK}/mlp/(fc1|fc2)": layer + ".mlp.{1}",
    rf"{BLOCK}/mlp/w12": w12,
    rf"{BLOCK}/mlp/w3": layer + (".mlp.weights_out" if hub else ".mlp.down_proj"),
  }


DEIT_HEADS = {"head": "cls_classifier", "head_dist": "distillation_classifier"}
VIT_HEADS = {"head": "classifier"}


def _deit(*, hub: bool) -> Table:
  heads = tuple(DEIT_HEADS.values())
  dropped = ("(deit\\.)?pooler\\..*", "(deit\\.)?embeddings\\.mask_token")
  return Table(_transformers_vit(DEIT_HEADS, hub=hub), prefix="deit.", heads=heads, dropped=dropped)


def _plain_vit(*, hub: bool) -> Table:
  heads = tuple(VIT_HEADS.values())
  dropped = ("(vit\\.)?pooler\\..*", "(vit\\.)?embeddings\\.mask_token")
  return Table(_transformers_vit(VIT_HEADS, hub=hub), prefix="vit.", heads=heads, dropped=dropped)


def _dinov2(*, hub: bool) -> Table:
  mask = "embeddings.mask_token"
  return Table(_transformers_dinov2(hub=hub), dropped=(re.escape(mask),), zeros=(mask,))


CONVNEXT_STAGE = r"stage(\d+)_block(\d+)"
CONVNEXTV2_OFFICIAL = Table(
  {
    "stem_conv": "downsample_layers.0.0",
    "stem_norm": "downsample_layers.0.1",
    r"down(\d+)_norm": "downsample_layers.{0}.0",
    r"down(\d+)_conv": "downsample_layers.{0}.1",
    rf"{CONVNEXT_STAGE}/(dwconv|norm|pwconv1|pwconv2)": "stages.{0}.{1}.{2}",
    rf"{CONVNEXT_STAGE}/grn/(gamma|beta)": "stages.{0}.{1}.grn.{2}",
    "(norm|head)": "{0}",
  },
  shapes={r".*\.grn\.(gamma|beta)": "row"},
)
CONVNEXTV2_TIMM = Table(
  {
    "stem_conv": "stem.0",
    "stem_norm": "stem.1",
    r"down(\d+)_norm": "stages.{0}.downsample.0",
    r"down(\d+)_conv": "stages.{0}.downsample.1",
    rf"{CONVNEXT_STAGE}/dwconv": "stages.{0}.blocks.{1}.conv_dw",
    rf"{CONVNEXT_STAGE}/norm": "stages.{0}.blocks.{1}.norm",
    rf"{CONVNEXT_STAGE}/pwconv(1|2)": "stages.{0}.blocks.{1}.mlp.fc{2}",
    rf"{CONVNEXT_STAGE}/grn/gamma": "stages.{0}.blocks.{1}.mlp.grn.weight",
    rf"{CONVNEXT_STAGE}/grn/beta": "stages.{0}.blocks.{1}.mlp.grn.bias",
    "norm": "head.norm",
    "head": "head.fc",
  },
  shapes={r".*\.mlp\.fc[12]\.weight": "pointwise"},
)
CONVNEXTV2_TRANSFORMERS = Table(
  {
    "stem_conv": "embeddings.patch_embeddings",
    "stem_norm": "embeddings.layernorm",
    r"down(\d+)_norm": "encoder.stages.{0}.downsampling_layer.0",
    r"down(\d+)_conv": "encoder.stages.{0}.downsampling_layer.1",
    rf"{CONVNEXT_STAGE}/(dwconv|pwconv1|pwconv2)": "encoder.stages.{0}.layers.{1}.{2}",
    rf"{CONVNEXT_STAGE}/norm": "encoder.stages.{0}.layers.{1}.layernorm",
    rf"{CONVNEXT_STAGE}/grn/gamma": "encoder.stages.{0}.layers.{1}.grn.weight",
    rf"{CONVNEXT_STAGE}/grn/beta": "encoder.stages.{0}.layers.{1}.grn.bias",
    "norm": "layernorm",
    "head": "classifier",
  },
  prefix="convnextv2.",
  heads=("classifier",),
  shapes={r".*\.grn\.(weight|bias)": "row"},
  renamed={r"(.*\.grn\.)gamma": r"\1weight", r"(.*\.grn\.)beta": r"\1bias"},
)


def _resnet(shortcut: str, head: str) -> Table:
  return Table(
    {
      "(conv1|bn1)": "{0}",
      r"layer(\d+)_(\d+)/(conv1|bn1|conv2|bn2)": "layer{0}.{1}.{2}",
      r"layer(\d+)_(\d+)/downsample_conv": "layer{0}.{1}." + shortcut + ".0",
      r"layer(\d+)_(\d+)/downsample_bn": "layer{0}.{1}." + shortcut + ".1",
      "fc": head,
    },
    dropped=(BATCH_NORM_COUNT,),
  )


FAMILIES: dict[str, dict[str, Table]] = {
  "deit": {
    "timm": Table(_timm_vit(), folds_positions=True),
    "transformers": _deit(hub=False),
    "transformers_hub": _deit(hub=True),
  },
  "vit": {
    "timm": Table(_timm_vit(), folds_positions=True),
    "transformers": _plain_vit(hub=False),
    "transformers_hub": _plain_vit(hub=True),
  },
  "dinov2": {
    "official": Table(_vit_blocks(), dropped=("mask_token",), zeros=("mask_token",)),
    "timm": Table(_timm_vit(), folds_positions=True),
    "transformers": _dinov2(hub=False),
    "transformers_hub": _dinov2(hub=True),
  },
  "convnextv2": {
    "official": CONVNEXTV2_OFFICIAL,
    "timm": CONVNEXTV2_TIMM,
    "transformers": CONVNEXTV2_TRANSFORMERS,
  },
  "resnet18": {
    "torchvision": _resnet("downsample", "fc"),
    "cifar": _resnet("shortcut", "linear"),
  },
  "adaptive_cnn": {},
}
ALIASES = {
  ("convnextv2", "transformers_hub"): "transformers",  # one set of names in memory and in files
  ("resnet18", "timm"): "torchvision",
  ("deit", "official"): "timm",
}


def family(model: str) -> str:
  """The family of tables a model name belongs to."""
  return next(f for f in sorted(FAMILIES, key=len, reverse=True) if model.startswith(f))


def styles(model: str) -> list[str]:
  """Styles in which `model` can be read and written, `jaxkd` last."""
  return [*FAMILIES[family(model)], "jaxkd"]


def table(model: str, style: str) -> Table:
  """The table of a style, an alias included.

  Raises:
    UserError: the family has no such style.
  """
  known = FAMILIES[family(model)]
  style = ALIASES.get((family(model), style), style)
  if style not in known:
    raise UserError(f"model '{model}' has no names in style '{style}'", did_you_mean(style, styles(model)))
  return known[style]


LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def torch_keys(names: Table, leaf: str, *, prefixed: bool) -> tuple[str, ...] | None:
  """Torch's keys of the jaxkd leaf `params/block00/norm1/scale`; None when the style has no name for it."""
  path = leaf.partition("/")[2]
  module, _, last = path.rpartition("/")
  found = names.torch_modules(path)
  if found is None and last in LEAVES and (found := names.torch_modules(module)) is not None:
    found = tuple(f"{m}.{LEAVES[last]}" for m in found)
  if found is None or not prefixed:
    return found
  return tuple(key if is_head(names, key) else names.prefix + key for key in found)


def is_head(names: Table, key: str) -> bool:
  return any(key.startswith(head + ".") for head in names.heads)


def is_prefixed(names: Table, keys: Iterable[str]) -> bool:
  """Whether the keys carry the table's prefix."""
  return bool(names.prefix) and any(key.startswith(names.prefix) for key in keys)
