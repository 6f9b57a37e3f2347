"""ResNet for small images (He et al., 2016, arXiv:1512.03385): 3x3 stem at stride 1, no max-pool."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

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
  global_mean,
  image_pair,
  torch_uniform,
)


class ResNet(nn.Module):
  """Stem, stages of basic blocks (each but the first halves the map), pooled linear head.

  `apply(variables, images [b h w c] float32, train=False) -> (logits [b c] float32, taps)` with the taps
  `stageN` [b h w c], `features` [b d], `logits` and `logits/cls`. Collections `params` and `batch_stats`.
  Parameter paths read like torch's: `layer1_0/conv1` is `layer1.0.conv1`.
  """

  num_classes: int
  in_channels: int
  image_size: tuple[int, int]
  widths: tuple[int, ...]
  depths: tuple[int, ...]
  dtype: Any = jnp.float32

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
    x = conv3x3(self.widths[0], self.dtype, name="conv1")(images.astype(self.dtype))
    x = nn.relu(batch_norm(x, train, self.dtype, "bn1"))
    taps = {}
    for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
      for block in range(depth):
        stride = 2 if stage and not block else 1
        layer = ResidualBlock(width, stride, False, self.dtype, name=f"layer{stage + 1}_{block}")
        x = layer(x, train=train)
      taps[f"stage{stage}"] = x
    taps["features"] = global_mean(x)
    logits = classify(taps["features"], self.num_classes, self.dtype, "fc", torch_uniform)
    taps["logits"] = taps["logits/cls"] = logits
    return logits, taps


def resnet(
  *,
  num_classes: int = 10,
  in_channels: int = 3,
  image_size: int | Sequence[int] = 32,
  widths: Sequence[int] = (64, 128, 256, 512),
  depths: Sequence[int] = (2, 2, 2, 2),
  dtype: str = "float32",
) -> ResNet:
  """Builds a ResNet of basic blocks; the defaults are ResNet-18, 11,173,962 parameters with 10 classes.

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
    dtype=DTYPES[choose("dtype", dtype, DTYPES)],
  )
