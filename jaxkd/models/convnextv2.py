"""ConvNeXt V2 (Woo et al., CVPR 2023, arXiv:2301.00808).

Parameter paths read like the official ones: `stages.1.2.pwconv1` is `stage1_block2/pwconv1`.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxkd.models.convolution import resolve_convolution
from jaxkd.models.layers import (
  DTYPES,
  DropPath,
  check_classes,
  check_images,
  check_rates,
  check_sizes,
  choose,
  classify,
  conv_layer,
  dense,
  gelu,
  global_mean,
  image_pair,
  layer_norm,
  run_block,
  trunc_normal,
)


class GlobalResponseNorm(nn.Module):
  """x + gamma * (x * n) + beta, n the channel's L2 norm over the map divided by the mean norm: [b h w c]."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    gamma = self.param("gamma", nn.initializers.zeros, (x.shape[-1],))[None, None, None]
    beta = self.param("beta", nn.initializers.zeros, (x.shape[-1],))[None, None, None]
    y = x.astype(jnp.float32)
    square = jnp.sum(y * y, axis=(1, 2), keepdims=True)
    # A channel that is 0 everywhere has norm 0 and passes no gradient through it.
    norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    relative = norm / (jnp.mean(norm, axis=-1, keepdims=True) + 1e-6)
    return (gamma * (y * relative) + beta + y).astype(self.dtype)


class ConvNeXtBlock(nn.Module):
  """Depthwise 7x7, LayerNorm, 1x1 to 4c, GELU, GRN, 1x1 to c, residual: [b h w c] -> [b h w c]."""

  drop_path: float = 0.0
  dtype: Any = jnp.float32
  convolution: str = "native"

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
    channels = x.shape[-1]
    depthwise: dict[str, Any] = {"padding": ((3, 3), (3, 3)), "feature_group_count": channels}
    common: dict[str, Any] = {"dtype": self.dtype, "kernel_init": trunc_normal}
    y = conv_layer(self.convolution)(channels, (7, 7), name="dwconv", **depthwise, **common)(x)
    y = layer_norm(y, self.dtype, "norm")
    y = gelu(dense(y, 4 * channels, name="pwconv1", **common))
    y = GlobalResponseNorm(self.dtype, name="grn")(y)
    y = dense(y, channels, name="pwconv2", **common)
    return x + DropPath(self.drop_path, name="drop_path")(y, train=train)


class ConvNeXtV2(nn.Module):
  """Patch stem, four stages of ConvNeXt V2 blocks with 2x2 downsampling between them, pooled linear head.

  `apply(variables, images [b h w c] float32, train=False) -> (logits [b c] float32, taps)` with the taps
  `stem` [b h w c], `stageN` [b h w c], `features` [b d] (pooled, then normalised), `logits`, `logits/cls`.
  """

  num_classes: int
  in_channels: int
  image_size: tuple[int, int]
  widths: tuple[int, ...]
  depths: tuple[int, ...]
  patch_size: int = 4
  drop_path: float = 0.0
  norm_epsilon: float = 1e-6
  dtype: Any = jnp.float32
  convolution: str = "native"
  remat: bool = False

  @property
  def special_tokens(self) -> int:
    return 0

  @property
  def num_layers(self) -> int:
    return len(self.widths)

  @nn.compact
  def __call__(
    self, images: Float[Array, "b h w c"], *, train: bool = False, want: tuple[str, ...] = ()
  ) -> tuple[Float[Array, "b c"], dict[str, Array]]:
    check_images(images, self.in_channels)
    for name in want:
      choose("tap to want from a CNN", name, ())
    x = self._patches(images.astype(self.dtype), self.widths[0], self.patch_size, "stem_conv")
    x = layer_norm(x, self.dtype, "stem_norm")
    taps, done = {"stem": x}, 0
    for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
      if stage:
        x = layer_norm(x, self.dtype, f"down{stage}_norm")
        x = self._patches(x, width, 2, f"down{stage}_conv")
      for i in range(depth):
        rate = self.drop_path * done / max(sum(self.depths) - 1, 1)
        layer = ConvNeXtBlock(rate, self.dtype, self.convolution, name=f"stage{stage}_block{i}")
        x = run_block(layer, x, remat=self.remat, train=train)
        done += 1
      taps[f"stage{stage}"] = x
    taps["features"] = layer_norm(global_mean(x), jnp.float32, "norm", self.norm_epsilon)
    logits = classify(taps["features"], self.num_classes, self.dtype, "head", trunc_normal)
    taps["logits"] = taps["logits/cls"] = logits
    return logits, taps

  def _patches(self, x: Array, width: int, size: int, name: str) -> Array:
    """A convolution whose stride is its kernel size."""
    options: dict[str, Any] = {"padding": "VALID", "dtype": self.dtype, "kernel_init": trunc_normal}
    return conv_layer(self.convolution)(width, (size, size), (size, size), name=name, **options)(x)


def convnextv2(
  *,
  num_classes: int = 10,
  in_channels: int = 3,
  image_size: int | Sequence[int] = 32,
  patch_size: int = 4,
  widths: Sequence[int] = (96, 192, 384, 768),
  depths: Sequence[int] = (3, 3, 9, 3),
  drop_path: float = 0.0,
  norm_epsilon: float = 1e-6,
  convolution: str = "auto",
  dtype: str = "float32",
) -> ConvNeXtV2:
  """Builds a ConvNeXt V2; the defaults are Tiny with the ImageNet stem (patch 4); 32 px images want patch 2.

  `drop_path` is the last block's rate, growing linearly from 0 over all blocks. `norm_epsilon` is that of the
  norm before the head (official: 1e-6; transformers: 1e-12); all others use 1e-6.
  `convolution="auto"` is resolved here, once, for this machine. Images whose side the strides
  do not divide lose the remainder, as in torch. Raises ValueError for sizes that are not positive, widths and
  depths of different lengths, and images smaller than the product of the strides.
  """
  check_classes(num_classes)
  check_rates(drop_path=drop_path)
  widths, depths, size = tuple(widths), tuple(depths), image_pair(image_size)
  check_sizes(widths=widths, depths=depths, in_channels=in_channels, patch_size=patch_size)
  if len(widths) != len(depths):
    raise ValueError(f"widths={widths} and depths={depths} must have one entry per stage")
  least = patch_size * 2 ** (len(widths) - 1)
  if min(size) < least:
    raise ValueError(
      f"image_size={size[0]}x{size[1]} is smaller than the strides' product {least}; use a smaller patch_size"
    )
  return ConvNeXtV2(
    num_classes=num_classes,
    in_channels=in_channels,
    image_size=size,
    widths=widths,
    depths=depths,
    patch_size=patch_size,
    drop_path=drop_path,
    norm_epsilon=norm_epsilon,
    convolution=resolve_convolution(convolution),
    dtype=DTYPES[choose("dtype", dtype, DTYPES)],
  )
