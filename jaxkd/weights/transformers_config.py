"""transformers' config.json for our models."""

from __future__ import annotations

from typing import Any

from jaxkd import models
from jaxkd.errors import UserError
from jaxkd.models.convnextv2 import ConvNeXtV2
from jaxkd.models.vit import ViT
from jaxkd.weights import tables


def transformers_config(options: dict[str, Any]) -> dict[str, Any]:
  """The config under which transformers builds the same model; `options` as of `models.create`, with `name`.

  Raises:
    UserError: transformers has no such model.
  """
  model = models.create(**options)
  labels = {"num_labels": model.num_classes} if model.num_classes else {}
  if isinstance(model, ConvNeXtV2):
    return {**_convnextv2(model), **labels}
  if not isinstance(model, ViT):
    raise UserError(
      f"transformers has no counterpart of model '{options['name']}'", "export in another style"
    )
  return {**_transformer(model, tables.family(options["name"])), **labels}


def _convnextv2(model: ConvNeXtV2) -> dict[str, Any]:
  kind = "ConvNextV2ForImageClassification" if model.num_classes else "ConvNextV2Model"
  return {
    "architectures": [kind],
    "model_type": "convnextv2",
    "num_channels": model.in_channels,
    "patch_size": model.patch_size,
    "num_stages": len(model.widths),
    "hidden_sizes": list(model.widths),
    "depths": list(model.depths),
    "hidden_act": "gelu",
    "layer_norm_eps": model.norm_epsilon,
    "image_size": model.image_size[0],
  }


def _transformer(model: ViT, family: str) -> dict[str, Any]:
  _check(model, family)
  kinds = {
    "deit": ("deit", "DeiTForImageClassificationWithTeacher" if model.num_classes else "DeiTModel"),
    "vit": ("vit", "ViTForImageClassification" if model.num_classes else "ViTModel"),
    "dinov2": ("dinov2", "Dinov2Model"),
  }
  kind, architecture = kinds[family]
  if model.registers:
    kind, architecture = "dinov2_with_registers", "Dinov2WithRegistersModel"
  common = {
    "architectures": [architecture],
    "model_type": kind,
    "hidden_size": model.width,
    "num_hidden_layers": model.depth,
    "num_attention_heads": model.heads,
    "hidden_act": "gelu",
    "layer_norm_eps": model.norm_epsilon,
    "image_size": model.image_size[0],
    "patch_size": model.patch_size,
    "num_channels": model.in_channels,
    "qkv_bias": True,
  }
  if family != "dinov2":
    return {**common, "intermediate_size": int(model.width * model.mlp_ratio)}
  registers = {"num_register_tokens": model.registers} if model.registers else {}
  swiglu = {"mlp_ratio": int(model.mlp_ratio), "use_swiglu_ffn": model.swiglu}
  return {**common, **swiglu, **registers, "layerscale_value": model.layer_scale}


def _check(model: ViT, family: str) -> None:
  """Raises UserError for what transformers' classes cannot be told."""
  if family == "dinov2" and model.num_classes:
    raise UserError(
      "transformers' DINOv2 classifier takes cls and mean patch tokens together, ours the cls token",
      "export in style 'official' or 'timm', or with num_classes=0",
    )
  if family == "dinov2" and model.mlp_ratio != int(model.mlp_ratio):
    raise UserError(
      f"transformers' DINOv2 takes whole mlp_ratios, not {model.mlp_ratio}",
      "export in style 'official' or 'timm'",
    )
  if model.image_size[0] != model.image_size[1] and family == "deit":
    raise UserError("transformers' DeiT takes square images", "export in style 'timm'")
