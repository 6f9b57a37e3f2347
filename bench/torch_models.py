"""Plain PyTorch models with our weights: the other side of the comparisons.

Layers and names are those of `jaxkd.weights.reference`, so that a state dict of ours loads strictly; the forward passes
here keep nothing but the answer, attention is torch's fused one, and convolutional networks run in channels_last, which
is its fastest layout on CPU. DINOv2 is transformers' own model. Needs torch, and transformers for DINOv2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from jaxkd.models.convnextv2 import ConvNeXtV2
from jaxkd.models.resnet import ResNet
from jaxkd.models.vit import ViT
from jaxkd.weights import reference, to_torch


class Attention(reference.Attention):
  def forward(self, x):
    b, n, d = x.shape
    q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
    return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))


class DeiT(reference.TorchViT):
  """Logits of both heads, and the last block's patch tokens."""

  def __init__(self, model: ViT):
    super().__init__(model, model.grid, official=False)
    for block in self.blocks:
      block.attn.__class__ = Attention

  def forward(self, images):
    special = [t.expand(len(images), -1, -1) for t in (self.cls_token, self.dist_token)]
    x = torch.cat([*special, self.patch_embed(images)], dim=1) + self.pos_embed
    for block in self.blocks:
      x = block(x)
    y = self.norm(x)
    return self.head(y[:, 0]), self.head_dist(y[:, 1]), x[:, 2:]


class ResNet18(reference.TorchResNet):
  def __init__(self, model: ResNet):
    super().__init__(model, cifar=False)

  def forward(self, images):
    x = F.relu(self.bn1(self.conv1(images)))
    for i in range(self.stages):
      x = getattr(self, f"layer{i + 1}")(x)
    return self.fc(x.mean((2, 3)))


class ConvNeXt(reference.TorchConvNeXtV2):
  def forward(self, images):
    x = images
    for down, stage in zip(self.downsample_layers, self.stages, strict=True):
      x = stage(down(x))
    return self.head(self.norm(x.mean((2, 3))))


class DinoV2(nn.Module):
  """transformers' Dinov2Model; the normalised patch tokens."""

  def __init__(self, options: Mapping[str, Any], variables: Mapping[str, Any]):
    super().__init__()
    from jaxkd.weights import reference_transformers

    state = to_torch(options["name"], variables, "transformers")
    self.body = reference_transformers.build(options, state)

  def forward(self, images):
    return self.body(images).last_hidden_state[:, 1:]


def counterpart(
  model: nn.Module | Any, options: Mapping[str, Any], variables: Mapping[str, Any]
) -> nn.Module:
  """The torch module of a jaxkd model, with its weights, in training mode off."""
  name = options["name"]
  if name.startswith("dinov2"):
    return DinoV2(options, variables).eval()
  kind, style = {ViT: (DeiT, "timm"), ResNet: (ResNet18, "torchvision"), ConvNeXtV2: (ConvNeXt, "official")}[
    type(model)
  ]
  module = reference.load(kind(model), to_torch(name, variables, style)).eval()
  return module if kind is DeiT else module.to(memory_format=torch.channels_last)
