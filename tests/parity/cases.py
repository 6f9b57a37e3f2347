"""What is compared with torch: jaxkd name, style of the torch names, options and image sizes of each case. No torch."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Case:
  name: str
  style: str
  options: dict[str, Any]
  sizes: tuple[int, int]


VIT = {"width": 16, "depth": 2, "heads": 2}
DINOV2 = {**VIT, "image_size": 42}
# transformers' own default epsilon; timm's and the official code have 1e-6.
DEIT = {**VIT, "image_size": 32, "patch_size": 4, "num_classes": 5, "norm_epsilon": 1e-12}
CONVNEXT = {"widths": (8, 16, 24, 32), "depths": (1, 1, 2, 1), "num_classes": 5, "norm_epsilon": 1e-12}
RESNET = {"widths": (8, 12, 16, 24), "num_classes": 5}
PLAIN = {"interpolation": "transformers"}

CASES = {
  "dinov2": Case("dinov2_vits14", "transformers", DINOV2 | PLAIN, (42, 70)),
  "dinov2_registers": Case("dinov2_vits14_reg", "transformers", DINOV2, (42, 28)),
  "dinov2_swiglu": Case("dinov2_vitg14", "transformers", DINOV2 | PLAIN | {"swiglu": True}, (42, 70)),
  "deit": Case("deit_tiny", "transformers", DEIT | PLAIN, (32, 48)),
  "vit": Case("vit_tiny", "transformers", DEIT | PLAIN, (32, 48)),
  "convnextv2": Case("convnextv2_tiny", "transformers", CONVNEXT | {"patch_size": 4}, (32, 64)),
  "convnextv2_32px": Case("convnextv2_tiny", "official", CONVNEXT | {"patch_size": 2}, (32, 48)),
  "dinov2_official": Case("dinov2_vits14", "official", DINOV2, (42, 70)),
  "dinov2_official_registers": Case("dinov2_vits14_reg", "official", DINOV2, (42, 28)),
  "deit_timm": Case("deit_tiny", "timm", DEIT | {"norm_epsilon": 1e-6}, (32, 48)),
  "resnet18_cifar": Case("resnet18_cifar", "torchvision", RESNET, (32, 40)),
}
