"""Models: functions of (variables, images) that return (logits, taps).

`create(name, **options)` builds one. Taps are a flat dict of named intermediates: `embed/tokens`,
`blockNN/tokens`, `blockNN/normed`, `blockNN/cls`, `norm/tokens`, `blockNN/attn` (on request) of a transformer,
`stem` and `stageN` of a convolutional network, `features`, `logits`, `logits/cls`, `logits/dist`. Every module has
`special_tokens`, `num_layers`, `image_size`, `in_channels` and `num_classes`.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from flax import linen as nn

from jaxkd.models.adaptive_cnn import adaptive_cnn
from jaxkd.models.convnextv2 import convnextv2
from jaxkd.models.dinov2 import dinov2
from jaxkd.models.heads import Projector, PrototypeHead
from jaxkd.models.layers import choose, listed
from jaxkd.models.parameters import parameter_table
from jaxkd.models.resnet import resnet
from jaxkd.models.vit import vit

__all__ = ["Projector", "PrototypeHead", "create", "names", "options", "parameter_table"]

TINY: dict[str, Any] = {"width": 192, "depth": 12, "heads": 3}
SMALL: dict[str, Any] = {"width": 384, "depth": 12, "heads": 6}
BASE: dict[str, Any] = {"width": 768, "depth": 12, "heads": 12}
LARGE: dict[str, Any] = {"width": 1024, "depth": 24, "heads": 16}
GIANT: dict[str, Any] = {"width": 1536, "depth": 40, "heads": 24, "swiglu": True}
DINOV2 = {"vits14": SMALL, "vitb14": BASE, "vitl14": LARGE, "vitg14": GIANT}
CONVNEXTV2: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
  "atto": ((40, 80, 160, 320), (2, 2, 6, 2)),
  "femto": ((48, 96, 192, 384), (2, 2, 6, 2)),
  "pico": ((64, 128, 256, 512), (2, 2, 6, 2)),
  "nano": ((80, 160, 320, 640), (2, 2, 8, 2)),
  "tiny": ((96, 192, 384, 768), (3, 3, 9, 3)),
  "base": ((128, 256, 512, 1024), (3, 3, 27, 3)),
}
DEIT: dict[str, Any] = {"distilled": True, "inference": "mean"}

BUILDERS: dict[str, Callable[..., nn.Module]] = {
  "adaptive_cnn": adaptive_cnn,
  "resnet18_cifar": resnet,
  "resnet18": partial(resnet, stem="imagenet", image_size=224, num_classes=1000),
  **{f"convnextv2_{n}": partial(convnextv2, widths=w, depths=d) for n, (w, d) in CONVNEXTV2.items()},
  "deit": partial(vit, **DEIT),
  "deit_tiny": partial(vit, **DEIT, **TINY),
  "deit_small": partial(vit, **DEIT, **SMALL),
  "deit_base": partial(vit, **DEIT, **BASE),
  "vit": vit,
  "vit_tiny": partial(vit, **TINY),
  "vit_small": partial(vit, **SMALL),
  "vit_base": partial(vit, **BASE),
  **{f"dinov2_{n}": partial(dinov2, **size) for n, size in DINOV2.items()},
  **{f"dinov2_{n}_reg": partial(dinov2, **size, registers=4) for n, size in DINOV2.items()},
}


def names() -> list[str]:
  """The registered model names."""
  return list(BUILDERS)


def options(name: str) -> dict[str, Any]:
  """Options of `create(name, ...)` and their defaults. Raises ValueError for an unknown name."""
  builder = BUILDERS[choose("model", name, BUILDERS)]
  return {p.name: p.default for p in inspect.signature(builder).parameters.values()}


def create(name: str, **given: Any) -> nn.Module:
  """Builds a model. Raises ValueError for an unknown name or option and for values that do not fit."""
  known = options(name)
  for option in given:
    if option not in known:
      raise ValueError(f"model {name!r} has no option {option!r}; {listed(option, known)}")
  return BUILDERS[choose("model", name, BUILDERS)](**given)
