"""Plain PyTorch models with our weights: the other side of the comparisons.

Layers and names are those of `jaxkd.weights.reference`, so that a state dict of ours loads strictly; the forward passes
here keep nothing but the answer, attention is torch's fused one, and convolutional networks run in channels_last, which
is its fastest layout on CPU. DINOv2 is transformers' own model. Needs torch, and transformers for DINOv2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flax import traverse_util
from torch import nn
from torch.nn import functional as F

from bench import torchvision_import  # noqa: F401, before transformers
from jaxkd.models.adaptive_cnn import AdaptiveCNN
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


class ResidualSE(nn.Module):
  """conv-BN-ReLU-conv-BN-SE-add-ReLU; a 1x1 shortcut on stride or width change."""

  def __init__(self, before: int, width: int, stride: int):
    super().__init__()
    self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
    self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
    self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
    squeezed = max(width // 16, 1)
    self.se = nn.ModuleDict(
      {"fc1": nn.Linear(width, squeezed, bias=False), "fc2": nn.Linear(squeezed, width, bias=False)}
    )
    self.projects = stride > 1 or before != width
    if self.projects:
      self.downsample_conv = nn.Conv2d(before, width, 1, stride, bias=False)
      self.downsample_bn = nn.BatchNorm2d(width)

  def forward(self, x):
    y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
    gate = torch.sigmoid(self.se["fc2"](F.relu(self.se["fc1"](y.mean((2, 3))))))
    y = y * gate[:, :, None, None]
    return F.relu(y + (self.downsample_bn(self.downsample_conv(x)) if self.projects else x))


class AdaptiveCnn(nn.Module):
  """Our AdaptiveCNN without dropout; modules have its names."""

  def __init__(self, model: AdaptiveCNN):
    super().__init__()
    before = model.widths[0]
    self.stem_conv = nn.Conv2d(model.in_channels, before, 3, 1, 1, bias=False)
    self.stem_bn, self.stem_pool = nn.BatchNorm2d(before), model.stem_pool
    self.blocks = []
    for stage, (width, depth) in enumerate(zip(model.widths, model.depths, strict=True)):
      for block in range(depth):
        name = f"stage{stage}_block{block}"
        self.add_module(name, ResidualSE(before, width, 2 if stage and not block else 1))
        self.blocks.append(name)
        before = width
    self.fc1, self.fc2 = nn.Linear(before, model.head_width), nn.Linear(model.head_width, model.num_classes)

  def forward(self, images):
    x = F.relu(self.stem_bn(self.stem_conv(images)))
    x = F.max_pool2d(x, 2) if self.stem_pool else x
    for name in self.blocks:
      x = getattr(self, name)(x)
    return self.fc2(F.relu(self.fc1(x.mean((2, 3)))))


def by_names(variables: Mapping[str, Any]) -> dict[str, torch.Tensor]:
  """A torch state dict of modules that are named as ours; every array is used."""
  leaves = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
  }
  turns = {2: (1, 0), 4: (3, 2, 0, 1)}
  found = {}
  for tree in variables.values():
    for path, leaf in traverse_util.flatten_dict(dict(tree)).items():
      array = np.asarray(leaf)
      array = array.transpose(turns[array.ndim]) if path[-1] == "kernel" else array
      found[".".join((*path[:-1], leaves[path[-1]]))] = torch.from_numpy(np.array(array))
  return found


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
  if isinstance(model, AdaptiveCNN):
    module = AdaptiveCnn(model)
    counters = {k: v for k, v in module.state_dict().items() if k.endswith("num_batches_tracked")}
    module.load_state_dict({**by_names(variables), **counters})
    return module.eval().to(memory_format=torch.channels_last)
  kind, style = {ViT: (DeiT, "timm"), ResNet: (ResNet18, "torchvision"), ConvNeXtV2: (ConvNeXt, "official")}[
    type(model)
  ]
  module = reference.load(kind(model), to_torch(name, variables, style)).eval()
  return module if kind is DeiT else module.to(memory_format=torch.channels_last)
