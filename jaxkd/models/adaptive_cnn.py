"""AdaptiveCNN: a small residual network with squeeze-and-excitation, one size for MNIST, one for CIFAR."""

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
  check_rates,
  check_sizes,
  choose,
  classify,
  conv3x3,
  global_mean,
  image_pair,
  run_block,
  torch_uniform,
)

VARIANTS: dict[str, dict[str, Any]] = {
  "mnist": {
    "widths": (32, 64, 128),
    "depths": (2, 2, 2),
    "stem_pool": True,
    "in_channels": 1,
    "image_size": 28,
  },
  "cifar": {
    "widths": (64, 128, 256, 512),
    "depths": (2, 3, 3, 3),
    "stem_pool": False,
    "in_channels": 3,
    "image_size": 32,
  },
}


class AdaptiveCNN(nn.Module):
  """Stem, stages of residual SE blocks (each but the first halves the map), pooled two-layer head.

  `apply(variables, images [b h w c] float32, train=False) -> (logits [b c] float32, taps)` with the taps
  `stageN` [b h w c], `features` [b d], `logits` and `logits/cls`. Collections `params` and `batch_stats`.
  """

  num_classes: int
  in_channels: int
  image_size: tuple[int, int]
  widths: tuple[int, ...]
  depths: tuple[int, ...]
  stem_pool: bool
  head_width: int
  dropout: float = 0.3
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
    stem = conv3x3(self.widths[0], self.dtype, convolution=self.convolution, name="stem_conv")
    x = stem(images.astype(self.dtype))
    x = nn.relu(batch_norm(x, train, self.dtype, "stem_bn"))
    x = nn.max_pool(x, window_shape=(2, 2), strides=(2, 2)) if self.stem_pool else x
    taps = {}
    for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
      for block in range(depth):
        stride = 2 if stage and not block else 1
        name = f"stage{stage}_block{block}"
        layer = ResidualBlock(width, stride, True, self.dtype, self.convolution, name=name)
        x = run_block(layer, x, remat=self.remat, train=train)
      taps[f"stage{stage}"] = x
    taps["features"] = global_mean(x)
    taps["logits"] = taps["logits/cls"] = self._head(taps["features"], train)
    return taps["logits"], taps

  def _head(self, features: Array, train: bool) -> Array:
    if not self.num_classes:
      return features
    x = nn.Dense(self.head_width, dtype=self.dtype, kernel_init=torch_uniform, name="fc1")(features)
    x = nn.Dropout(self.dropout, name="dropout")(nn.relu(x), deterministic=not train)
    return classify(x, self.num_classes, self.dtype, "fc2", torch_uniform)


def adaptive_cnn(
  *,
  variant: str = "mnist",
  num_classes: int = 10,
  in_channels: int | None = None,
  image_size: int | Sequence[int] | None = None,
  widths: Sequence[int] | None = None,
  depths: Sequence[int] | None = None,
  stem_pool: bool | None = None,
  head_width: int | None = None,
  dropout: float = 0.3,
  convolution: str = "auto",
  dtype: str = "float32",
) -> AdaptiveCNN:
  """Builds an AdaptiveCNN; None takes the variant's value, `head_width` half the last width.

  With 10 classes `mnist` has 709,034 parameters and `cifar` 17,629,514. `convolution="auto"` is resolved here, once,
  for this machine. Raises ValueError for an unknown variant, for widths and depths of different lengths, and for
  images that the stages would shrink to nothing.
  """
  check_classes(num_classes)
  given = {"widths": widths, "depths": depths, "stem_pool": stem_pool, "in_channels": in_channels}
  given |= {"image_size": image_size}
  values = VARIANTS[choose("variant", variant, VARIANTS)] | {k: v for k, v in given.items() if v is not None}
  for name in ("widths", "depths"):
    values[name] = tuple(values[name])
    check_sizes(**{name: values[name]})
  if len(values["widths"]) != len(values["depths"]):
    raise ValueError(f"widths={values['widths']} and depths={values['depths']} must have one entry per stage")
  values["image_size"] = image_pair(values["image_size"])
  head_width = values["widths"][-1] // 2 if head_width is None else head_width
  check_sizes(in_channels=values["in_channels"], head_width=head_width)
  check_rates(dropout=dropout)
  if values["stem_pool"] and min(values["image_size"]) < 2:
    raise ValueError(f"image_size={values['image_size']} leaves nothing after stem_pool; use stem_pool=False")
  return AdaptiveCNN(
    num_classes=num_classes,
    head_width=head_width,
    dropout=dropout,
    convolution=resolve_convolution(convolution),
    dtype=DTYPES[choose("dtype", dtype, DTYPES)],
    **values,
  )
