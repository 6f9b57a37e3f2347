"""ResNet of basic blocks (He et al., 2016, arXiv:1512.03385): a 3x3 stem for small images, or ImageNet's 7x7."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxkd.models.convolution import resolve_convolution
from jaxkd.models.layers import (
  DTYPES,
  ResidualBlock,
  batch_norm,
  check_classes,
  check_images,
  check_sizes,
  choose,
  classify,
  conv3x3,
  conv_layer,
  global_mean,
  he_normal,
  image_pair,
  run_block,
  torch_uniform,
)

STEMS = ("cifar", "imagenet")


class ResNet(nn.Module):
  """Stem, stages of basic blocks (each but the first halves the map), pooled linear head.

  `apply(variables, images [b h w c] float32, train=False) -> (logits [b c] float32, taps)` with the taps
  `stem` and `stageN` [b h w c], `features` [b d], `logits` and `logits/cls`. Collections `params` and `batch_stats`.
  Parameter paths read like torch's: `layer1_0/conv1` is `layer1.0.conv1`.
  """

  num_classes: int
  in_channels: int
  image_size: tuple[int, int]
  widths: tuple[int, ...]
  depths: tuple[int, ...]
  stem: str = "cifar"
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
    x = self._stem(images.astype(self.dtype), train)
    taps = {"stem": x}
    for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
      for block in range(depth):
        stride = 2 if stage and not block else 1
        layer = self._block(width, stride, f"layer{stage + 1}_{block}")
        x = run_block(layer, x, remat=self.remat, train=train)
      taps[f"stage{stage}"] = x
    taps["features"] = global_mean(x)
    logits = classify(taps["features"], self.num_classes, self.dtype, "fc", torch_uniform)
    taps["logits"] = taps["logits/cls"] = logits
    return logits, taps

  def _block(self, width: int, stride: int, name: str) -> ResidualBlock:
    return ResidualBlock(width, stride, False, self.dtype, self.convolution, name=name)

  def _stem(self, x: Array, train: bool) -> Array:
    """3x3 at stride 1; or 7x7 at stride 2 and a 3x3 max-pool at stride 2, padded as in torch."""
    if self.stem == "cifar":
      x = conv3x3(self.widths[0], self.dtype, convolution=self.convolution, name="conv1")(x)
      return nn.relu(batch_norm(x, train, self.dtype, "bn1"))
    options: dict[str, Any] = {"use_bias": False, "dtype": self.dtype, "kernel_init": he_normal}
    layer = conv_layer(self.convolution)
    x = layer(self.widths[0], (7, 7), 2, padding=((3, 3), (3, 3)), name="conv1", **options)(x)
    x = nn.relu(batch_norm(x, train, self.dtype, "bn1"))
    return nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def resnet(
  *,
  num_classes: int = 10,
  in_channels: int = 3,
  image_size: int | Sequence[int] = 32,
  widths: Sequence[int] = (64, 128, 256, 512),
  depths: Sequence[int] = (2, 2, 2, 2),
  stem: str = "cifar",
  convolution: str = "auto",
  dtype: str = "float32",
) -> ResNet:
  """Builds a ResNet of basic blocks; the defaults are ResNet-18, 11,173,962 parameters with 10 classes.

  `convolution="auto"` is resolved here, once, for this machine (see `convolution`).
  Raises ValueError for sizes that are not positive and for widths and depths of different lengths.
  """
  check_classes(num_classes)
  widths, depths = tuple(widths), tuple(depths)
  check_sizes(widths=widths, depths=depths, in_channels=in_channels)
  if len(widths) != len(depths):
    raise ValueError(f"widths={widths} and depths={depths} must have one entry per stage")
  return ResNet(
    num_classes=num_classes,
    in_channels=in_channels,
    image_size=image_pair(image_size),
    widths=widths,
    depths=depths,
    stem=choose("stem", stem, STEMS),
    convolution=resolve_convolution(convolution),
    dtype=DTYPES[choose("dtype", dtype, DTYPES)],
  )
