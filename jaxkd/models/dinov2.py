"""DINOv2 (Oquab et al., TMLR 2024, arXiv:2304.07193): the ViT body with LayerScale, at patch 14.

References: the official `dinov2` code, transformers' `Dinov2Model` and `Dinov2WithRegistersModel`, timm. They agree
but for the positions of the models without registers away from the table's own grid: the official code scales by
(new + 0.1) / old, which shifts the sampling grid, transformers by new / old, timm with antialiasing.
"""

from collections.abc import Sequence

from jaxkd.models.layers import choose
from jaxkd.models.vit import ViT, vit

INTERPOLATION = {"official": "offset", "transformers": "plain", "timm": "antialias"}


def dinov2(
  *,
  num_classes: int = 0,
  in_channels: int = 3,
  image_size: int | Sequence[int] = 518,
  patch_size: int = 14,
  width: int = 384,
  depth: int = 12,
  heads: int = 6,
  mlp_ratio: float = 4.0,
  drop_path: float = 0.0,
  registers: int = 0,
  layer_scale: float = 1e-5,
  swiglu: bool = False,
  interpolation: str = "official",
  norm_epsilon: float = 1e-6,
  attention: str = "auto",
  init_std: float = 0.02,
  dtype: str = "float32",
) -> ViT:
  """Builds a DINOv2 backbone; without classes its logits are the normalised cls token.

  `image_size` is that of the position table (518 px: 37x37 patches in the released weights); images of any
  size that 14 divides are accepted, 224 px giving 256 patch tokens. `interpolation` names whose kernel resamples
  the positions: "official", "transformers" or "timm"; with registers all three are the same. Raises ValueError
  as `vit` does.
  """
  kernel = INTERPOLATION[choose("interpolation", interpolation, INTERPOLATION)]
  model = vit(
    num_classes=num_classes,
    in_channels=in_channels,
    image_size=image_size,
    patch_size=patch_size,
    width=width,
    depth=depth,
    heads=heads,
    mlp_ratio=mlp_ratio,
    drop_path=drop_path,
    registers=registers,
    layer_scale=layer_scale,
    swiglu=swiglu,
    norm_epsilon=norm_epsilon,
    attention=attention,
    init_std=init_std,
    dtype=dtype,
  )
  return model.clone(position_kernel="antialias" if registers else kernel)
