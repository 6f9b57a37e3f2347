"""The torch side of the cases: models with random weights, and their outputs part by part.

`transformers` and plain torch modules in the official names; nothing of jaxkd's key tables is used here.
"""

from typing import Any

import numpy as np
import torch
import transformers

from jaxkd import models
from jaxkd.weights import reference, reference_transformers

from .cases import CASES


def randomize(module: torch.nn.Module, seed: int) -> torch.nn.Module:
  """Weights under which every part matters: tokens so small that a LayerNorm's epsilon is seen."""
  rng = np.random.default_rng(seed)
  with torch.no_grad():
    for name, p in module.named_parameters():
      small = ("patch", "token", "pos", "stem", "downsample_layers.0.0")
      scale = 0.01 if any(s in name for s in small) else 0.7 * p[0].numel() ** -0.5 if p.ndim > 1 else 0.2
      value = rng.normal(0, scale, p.shape)
      norm_or_scale = p.ndim == 1 and name.endswith(("weight", "gamma", "lambda1"))
      p.copy_(torch.from_numpy(value.astype(np.float32)) + (1 if norm_or_scale else 0))
    for name, b in module.named_buffers():
      if name.endswith("running_mean"):
        b.copy_(torch.from_numpy(rng.normal(0, 0.2, b.shape).astype(np.float32)))
      if name.endswith("running_var"):
        b.copy_(torch.from_numpy(rng.uniform(0.5, 1.5, b.shape).astype(np.float32)))
  return module.eval()


def _dinov2_config(kind: type, o: dict[str, Any], **more: Any):
  return kind(
    hidden_size=o["width"],
    num_hidden_layers=o["depth"],
    num_attention_heads=o["heads"],
    image_size=o["image_size"],
    patch_size=14,
    layer_norm_eps=1e-6,
    **more,
  )


def dinov2(**o: Any) -> torch.nn.Module:
  return transformers.Dinov2Model(
    _dinov2_config(transformers.Dinov2Config, o, use_swiglu_ffn=o.get("swiglu", False))
  )


def dinov2_registers(**o: Any) -> torch.nn.Module:
  kind = transformers.Dinov2WithRegistersConfig
  return transformers.Dinov2WithRegistersModel(_dinov2_config(kind, o, num_register_tokens=4))


def _vit_config(kind: type, o: dict[str, Any]):
  return kind(
    hidden_size=o["width"],
    num_hidden_layers=o["depth"],
    num_attention_heads=o["heads"],
    intermediate_size=4 * o["width"],
    image_size=o["image_size"],
    patch_size=o["patch_size"],
    layer_norm_eps=o["norm_epsilon"],
    num_labels=o["num_classes"],
  )


def deit(**o: Any) -> torch.nn.Module:
  return transformers.DeiTForImageClassificationWithTeacher(_vit_config(transformers.DeiTConfig, o))


def vit(**o: Any) -> torch.nn.Module:
  return transformers.ViTForImageClassification(_vit_config(transformers.ViTConfig, o))


def convnextv2(**o: Any) -> torch.nn.Module:
  config = transformers.ConvNextV2Config(
    hidden_sizes=list(o["widths"]),
    depths=list(o["depths"]),
    patch_size=o["patch_size"],
    num_labels=o["num_classes"],
    layer_norm_eps=o["norm_epsilon"],
  )
  return transformers.ConvNextV2ForImageClassification(config)


TRANSFORMERS = {
  "dinov2": dinov2,
  "dinov2_registers": dinov2_registers,
  "dinov2_swiglu": dinov2,
  "deit": deit,
  "vit": vit,
  "convnextv2": convnextv2,
}


def build(key: str, **changes: Any) -> torch.nn.Module:
  """The torch model of a case, by transformers for its styles, else by plain torch; weights not yet random."""
  case = CASES[key]
  options = case.options | changes
  if key in TRANSFORMERS:
    return TRANSFORMERS[key](**options)
  return reference.build(models.create(case.name, **options), case.style)


def run(key: str, module: torch.nn.Module, images: np.ndarray) -> dict[str, np.ndarray]:
  """All parts for images [b h w c] float32."""
  return (reference_transformers if key in TRANSFORMERS else reference).run(module, images)
