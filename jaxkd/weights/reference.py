"""Plain torch models in the official names, to check converted weights against: an independent second implementation.

They load a state dict strictly, so nothing of our key tables is involved, and return the same parts that our taps
name, in torch's float32. transformers' own classes serve for its styles (`reference_transformers`). Needs torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from jaxkd.models.convnextv2 import ConvNeXtV2
from jaxkd.models.positions import grid_of
from jaxkd.models.resnet import ResNet
from jaxkd.models.vit import ViT

Parts = dict[str, torch.Tensor]


class Mlp(nn.Module):
  def __init__(self, width: int, hidden: int):
    super().__init__()
    self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

  def forward(self, x):
    return self.fc2(F.gelu(self.fc1(x)))


class SwiGlu(nn.Module):
  """Official names w12 and w3, timm's fc1 and fc2."""

  def __init__(self, width: int, hidden: int, names: tuple[str, str]):
    super().__init__()
    self.names = names
    self.add_module(names[0], nn.Linear(width, 2 * hidden))
    self.add_module(names[1], nn.Linear(hidden, width))

  def forward(self, x):
    first, last = (getattr(self, n) for n in self.names)
    gate, value = first(x).chunk(2, dim=-1)
    return last(F.silu(gate) * value)


class Attention(nn.Module):
  def __init__(self, width: int, heads: int):
    super().__init__()
    self.heads = heads
    self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

  def forward(self, x):
    b, n, d = x.shape
    q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
    maps = (q @ k.transpose(-1, -2) * (d // self.heads) ** -0.5).softmax(-1)
    return self.proj((maps @ v).transpose(1, 2).reshape(b, n, d))


class Scale(nn.Module):
  def __init__(self, width: int):
    super().__init__()
    self.gamma = nn.Parameter(torch.ones(width))

  def forward(self, x):
    return x * self.gamma


class Block(nn.Module):
  def __init__(self, model: ViT, official: bool):
    super().__init__()
    d, eps = model.width, model.norm_epsilon
    hidden = int(d * model.mlp_ratio)
    self.norm1, self.norm2 = nn.LayerNorm(d, eps=eps), nn.LayerNorm(d, eps=eps)
    self.attn = Attention(d, model.heads)
    names = ("w12", "w3") if official else ("fc1", "fc2")
    gated = (int(hidden * 2 / 3) + 7) // 8 * 8
    self.mlp = SwiGlu(d, gated, names) if model.swiglu else Mlp(d, hidden)
    self.ls1, self.ls2 = (Scale(d) if model.layer_scale else nn.Identity() for _ in range(2))

  def forward(self, x):
    x = x + self.ls1(self.attn(self.norm1(x)))
    return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
  def __init__(self, model: ViT):
    super().__init__()
    size, channels = model.patch_size, 3 if model.grayscale_to_rgb else model.in_channels
    self.proj = nn.Conv2d(channels, model.width, size, size)

  def forward(self, x):
    return self.proj(x).flatten(2).transpose(1, 2)


class TorchViT(nn.Module):
  """ViT, DeiT and DINOv2 in the names of timm or, with `official`, of DINOv2's release."""

  def __init__(self, model: ViT, grid: tuple[int, int], official: bool):
    super().__init__()
    self.model, self.grid, self.official = model, grid, official
    d, token = model.width, lambda n: nn.Parameter(torch.zeros(1, n, model.width))
    # timm leaves the special rows out of the table of a model with registers.
    self.rows = 0 if model.registers and not official else model.positioned_tokens
    self.cls_token, self.pos_embed = token(1), token(self.rows + grid[0] * grid[1])
    if official:
      self.mask_token = nn.Parameter(torch.zeros(1, d))
    if model.distilled:
      self.dist_token = token(1)
    if model.registers:
      self.register_parameter("register_tokens" if official else "reg_token", token(model.registers))
    self.patch_embed = PatchEmbed(model)
    self.blocks = nn.ModuleList(Block(model, official) for _ in range(model.depth))
    self.norm = nn.LayerNorm(d, eps=model.norm_epsilon)
    heads = ("head", "head_dist")[: 1 + model.distilled] if model.num_classes else ()
    for name in heads:
      self.add_module(name, nn.Linear(d, model.num_classes))

  def positions(self, h: int, w: int) -> torch.Tensor:
    """The table at h x w patches, as the reference of this model's kernel computes it."""
    if (h, w) == self.grid:
      return self.pos_embed
    special, table = self.pos_embed[:, : self.rows], self.pos_embed[:, self.rows :]
    table = table.reshape(1, *self.grid, -1).permute(0, 3, 1, 2)
    kernel = self.model.position_kernel
    if kernel == "offset":
      scale = [(n + 0.1) / o for n, o in zip((h, w), self.grid, strict=True)]
      table = F.interpolate(table, scale_factor=scale, mode="bicubic")
    else:
      table = F.interpolate(table, size=(h, w), mode="bicubic", antialias=kernel == "antialias")
    return torch.cat([special, table.flatten(2).transpose(1, 2)], dim=1)

  def forward(self, images: torch.Tensor) -> Parts:
    b, _, h, w = images.shape
    patches, size = self.patch_embed(images), self.model.patch_size
    special = [self.cls_token] + ([self.dist_token] if self.model.distilled else [])
    tokens = [t.expand(b, -1, -1) for t in special]
    positions = self.positions(h // size, w // size)
    if self.rows:
      x = torch.cat([*tokens, patches], dim=1) + positions
    else:
      x = torch.cat([*tokens, patches + positions], dim=1)
    if self.model.registers:
      registers: torch.Tensor = getattr(self, "register_tokens" if self.official else "reg_token")
      x = torch.cat([x[:, : len(special)], registers.expand(b, -1, -1), x[:, len(special) :]], dim=1)
    parts = {"embed/tokens": x}
    for i, block in enumerate(self.blocks):
      parts[f"block{i:02d}/tokens"] = x = block(x)
    parts["norm/tokens"] = x = self.norm(x)
    parts["logits/cls"] = self.get_submodule("head")(x[:, 0]) if self.model.num_classes else x[:, 0]
    if self.model.distilled and self.model.num_classes:
      parts["logits/dist"] = self.get_submodule("head_dist")(x[:, 1])
    return parts


class ChannelNorm(nn.LayerNorm):
  """LayerNorm over the channels of [b c h w]."""

  def forward(self, x):
    return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Grn(nn.Module):
  def __init__(self, width: int):
    super().__init__()
    self.gamma, self.beta = (nn.Parameter(torch.zeros(1, 1, 1, width)) for _ in range(2))

  def forward(self, x):
    norm = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
    return self.gamma * (x * (norm / (norm.mean(-1, keepdim=True) + 1e-6))) + self.beta + x


class ConvNeXtBlock(nn.Module):
  def __init__(self, width: int):
    super().__init__()
    self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
    self.norm = nn.LayerNorm(width, eps=1e-6)
    self.pwconv1, self.pwconv2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
    self.grn = Grn(4 * width)

  def forward(self, x):
    y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
    return x + self.pwconv2(self.grn(F.gelu(self.pwconv1(y)))).permute(0, 3, 1, 2)


class TorchConvNeXtV2(nn.Module):
  """ConvNeXt V2 in the official names."""

  def __init__(self, model: ConvNeXtV2):
    super().__init__()
    widths, size = model.widths, model.patch_size
    stem = nn.Sequential(
      nn.Conv2d(model.in_channels, widths[0], size, size), ChannelNorm(widths[0], eps=1e-6)
    )
    downs = [
      nn.Sequential(ChannelNorm(a, eps=1e-6), nn.Conv2d(a, b, 2, 2)) for a, b in itertools.pairwise(widths)
    ]
    self.downsample_layers = nn.ModuleList([stem, *downs])
    self.stages = nn.ModuleList(
      nn.Sequential(*(ConvNeXtBlock(w) for _ in range(d))) for w, d in zip(widths, model.depths, strict=True)
    )
    self.norm = nn.LayerNorm(widths[-1], eps=model.norm_epsilon)
    if model.num_classes:
      self.head = nn.Linear(widths[-1], model.num_classes)

  def forward(self, x: torch.Tensor) -> Parts:
    parts = {}
    for i, (down, stage) in enumerate(zip(self.downsample_layers, self.stages, strict=True)):
      x = down(x)
      if i == 0:
        parts["stem"] = x.permute(0, 2, 3, 1)
      x = stage(x)
      parts[f"stage{i}"] = x.permute(0, 2, 3, 1)
    parts["features"] = features = self.norm(x.mean((2, 3)))
    parts["logits/cls"] = self.get_submodule("head")(features) if hasattr(self, "head") else features
    return parts


class BasicBlock(nn.Module):
  def __init__(self, before: int, width: int, stride: int, shortcut: str):
    super().__init__()
    self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
    self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
    self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
    self.shortcut_name = shortcut if stride > 1 or before != width else ""
    if self.shortcut_name:
      project = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
      self.add_module(shortcut, project)

  def forward(self, x):
    y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
    return F.relu(y + (getattr(self, self.shortcut_name)(x) if self.shortcut_name else x))


class TorchResNet(nn.Module):
  """ResNet of basic blocks in torchvision's names or, with `cifar`, those of the usual CIFAR code."""

  def __init__(self, model: ResNet, cifar: bool):
    super().__init__()
    self.small, self.head_name = model.stem == "cifar", "linear" if cifar else "fc"
    kernel, stride, pad = (3, 1, 1) if self.small else (7, 2, 3)
    width = model.widths[0]
    self.conv1 = nn.Conv2d(model.in_channels, width, kernel, stride, pad, bias=False)
    self.bn1 = nn.BatchNorm2d(width)
    for i, (w, depth) in enumerate(zip(model.widths, model.depths, strict=True)):
      blocks = []
      for j in range(depth):
        stride = 2 if i and not j else 1
        blocks.append(BasicBlock(width, w, stride, "shortcut" if cifar else "downsample"))
        width = w
      self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
    self.stages = len(model.widths)
    if model.num_classes:
      self.add_module(self.head_name, nn.Linear(width, model.num_classes))

  def forward(self, x: torch.Tensor) -> Parts:
    x = F.relu(self.bn1(self.conv1(x)))
    x = x if self.small else F.max_pool2d(x, 3, 2, 1)
    parts = {"stem": x.permute(0, 2, 3, 1)}
    for i in range(self.stages):
      x = getattr(self, f"layer{i + 1}")(x)
      parts[f"stage{i}"] = x.permute(0, 2, 3, 1)
    parts["features"] = features = x.mean((2, 3))
    head = getattr(self, self.head_name, None)
    parts["logits/cls"] = head(features) if head else features
    return parts


def build(model: Any, style: str, grid: tuple[int, int] | None = None) -> nn.Module:
  """The torch counterpart of a jaxkd model in the names of `style`, with torch's own initial weights.

  `grid`: rows and columns of the position table, the model's own when None. Raises ValueError for a model without
  counterpart.
  """
  if isinstance(model, ViT) and model.stem == "patch" and not model.grayscale_to_rgb:
    return TorchViT(model, grid or model.grid, official=style == "official").eval()
  if isinstance(model, ConvNeXtV2) and style == "official":
    return TorchConvNeXtV2(model).eval()
  if isinstance(model, ResNet):
    return TorchResNet(model, cifar=style == "cifar").eval()
  raise ValueError(f"there is no torch counterpart of {type(model).__name__} in style '{style}'")


def run(module: nn.Module, images: np.ndarray) -> dict[str, np.ndarray]:
  """All parts for images [b h w c] float32, as numpy."""
  with torch.no_grad():
    parts = module(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))))
  return {name: part.numpy() for name, part in parts.items()}


def load(module: nn.Module, state_dict: Mapping[str, Any]) -> nn.Module:
  """`module` with the weights, strictly but for counters and mask tokens that files may leave out."""
  state = {k: torch.as_tensor(np.array(v)) if isinstance(v, np.ndarray) else v for k, v in state_dict.items()}
  missing, unexpected = module.load_state_dict(state, strict=False)
  wrong = [k for k in missing if not k.endswith(("num_batches_tracked", "mask_token"))] + list(unexpected)
  if wrong:
    raise ValueError(f"the weights do not fit the torch model: {', '.join(wrong[:10])}")
  return module


def grid(model: Any, table: np.ndarray | None) -> tuple[int, int] | None:
  """Rows and columns of a converted position table [1 n d]; None for a model without one."""
  return None if table is None else grid_of(table.shape[1] - model.positioned_tokens, model.grid)
