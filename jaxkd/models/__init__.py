"""Models: functions of (variables, images) that return (logits, taps).

`create(name, **options)` builds one. Taps are a flat dict of named intermediates: `blockNN/tokens`,
`norm/tokens`, `blockNN/attn` (on request) of a transformer, `stageN` of a convolutional network, `features`,
`logits`, `logits/cls`, `logits/dist`. Every module has `special_tokens`, `num_layers`, `image_size`,
`in_channels` and `num_classes`.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from flax import linen as nn

from jaxkd.models.adaptive_cnn import adaptive_cnn
from jaxkd.models.heads import Projector, PrototypeHead
from jaxkd.models.layers import choose, did_you_mean
from jaxkd.models.resnet import resnet
from jaxkd.models.vit import vit

__all__ = ["Projector", "PrototypeHead", "create", "names", "options"]

TINY: dict[str, Any] = {"width": 192, "depth": 12, "heads": 3}
SMALL: dict[str, Any] = {"width": 384, "depth": 12, "heads": 6}
BASE: dict[str, Any] = {"width": 768, "depth": 12, "heads": 12}
DEIT: dict[str, Any] = {"distilled": True, "inference": "mean"}

BUILDERS: dict[str, Callable[..., nn.Module]] = {
  "adaptive_cnn": adaptive_cnn,
  "resnet18_cifar": resnet,
  "deit": partial(vit, **DEIT),
  "deit_tiny": partial(vit, **DEIT, **TINY),
  "deit_small": partial(vit, **DEIT, **SMALL),
  "deit_base": partial(vit, **DEIT, **BASE),
  "vit": vit,
  "vit_tiny": partial(vit, **TINY),
  "vit_small": partial(vit, **SMALL),
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
  for option in given:
    if option not in (known := options(name)):
      hint = did_you_mean(option, known)
      raise ValueError(f"model {name!r} has no option {option!r}; known: {', '.join(known)}{hint}")
  return BUILDERS[choose("model", name, BUILDERS)](**given)
