"""Pieces shared by the models: activations, stochastic depth, normalisation, convolutions, the classifier.

What frameworks default differently is spelt out here once: erf GELU, LayerNorm epsilon 1e-6, BatchNorm
momentum (torch 0.1 = flax 0.9) and epsilon 1e-5, explicit convolution padding, the initialisers. Parameters
are float32 whatever the compute dtype; statistics (LayerNorm, BatchNorm, softmax, pooling) are taken in
float32.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxkd.errors import nearest
from jaxkd.models import convolution as conv

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

trunc_normal = nn.initializers.truncated_normal(0.02)
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
torch_uniform = nn.initializers.variance_scaling(
  1 / 3, "fan_in", "uniform"
)  # torch's default for Linear and Conv


def choose(option: str, value: str, known: Iterable[str]) -> str:
  """The value if it is one of the known ones, else a ValueError that names them."""
  if value not in (known := list(known)):
    raise ValueError(f"unknown {option} {value!r}; {listed(value, known)}")
  return value


def listed(value: Any, known: Iterable[str]) -> str:
  """`known: a, b; did you mean 'a'?`, the end of a message."""
  close = nearest(str(value), known := list(known))
  return f"known: {', '.join(known)}" + f"; {close}" * bool(close)


def check_classes(num_classes: int) -> None:
  """Raises ValueError for a negative number of classes; 0 means no classifier."""
  if num_classes < 0:
    raise ValueError(f"num_classes={num_classes} is negative; use 0 for a model without classifier")


def check_rates(**rates: float) -> None:
  """Raises ValueError for a dropout or drop-path rate outside [0, 1)."""
  for name, rate in rates.items():
    if not 0 <= rate < 1:
      raise ValueError(f"{name}={rate} is not a rate; use 0 <= {name} < 1")


def check_sizes(**sizes: Any) -> None:
  """Raises ValueError for a size (an int, or several) that is not positive."""
  for name, value in sizes.items():
    values = value if isinstance(value, tuple | list) else (value,)
    if not values or any(not isinstance(v, int) or v < 1 for v in values):
      raise ValueError(f"{name}={value} must be positive and whole")


def image_pair(image_size: int | Iterable[int]) -> tuple[int, int]:
  """(height, width) from one side or from a pair, in pixels. Raises ValueError for anything else."""
  pair = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
  if len(pair) != 2:
    raise ValueError(f"image_size={image_size!r} must be one side or (height, width)")
  check_sizes(image_size=pair)
  return pair


def check_images(images: Array, in_channels: int) -> None:
  """Raises ValueError unless images are [b h w c] with the channels the model was built for."""
  if images.ndim != 4 or images.shape[-1] != in_channels:
    raise ValueError(
      f"images of shape {images.shape} do not fit this model; expected [b, h, w, {in_channels}] "
      f"(build the model with in_channels={images.shape[-1] if images.ndim == 4 else '...'} otherwise)"
    )


def dense(x: Float[Array, "... p"], features: int, **options: Any) -> Float[Array, "... q"]:
  """A linear layer over the last axis; `options` are those of `nn.Dense` (name, dtype, kernel_init).

  The axes before the last are one while it multiplies: XLA would otherwise transpose a copy of the cotangent for
  the kernel's gradient, and on CPU recompute in it what led to the cotangent (see `transformer.Block`).
  """
  return nn.Dense(features, dot_general=_product_of_rows, **options)(x)


def _product_of_rows(x: Array, kernel: Array, dimension_numbers: Any, **options: Any) -> Array:
  """`dot_general` of the last axis of x with the first of the kernel, as `nn.Dense` asks for it."""
  y = jax.lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), **options)
  return y.reshape(*x.shape[:-1], kernel.shape[-1])


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """Exact GELU, x/2 (1 + erf(x/sqrt 2)), as torch's default; computed in float32, returned in x's dtype.

  Not `jax.nn.gelu(approximate=False)`: its erfc costs up to twice the time on CPU.
  """
  y = x.astype(jnp.float32)
  return (0.5 * y * (1 + jax.lax.erf(y * 0.5**0.5))).astype(x.dtype)


def layer_norm(
  x: Float[Array, "... d"], dtype: Any, name: str, epsilon: float = 1e-6
) -> Float[Array, "... d"]:
  """`LayerNorm`: float32 inside, `dtype` out."""
  return LayerNorm(epsilon, name=name)(x.astype(jnp.float32)).astype(dtype)


class LayerNorm(nn.Module):
  """LayerNorm over the last axis (Ba et al., 2016, arXiv:1607.06450), float32: [... d] -> [... d].

  Not flax's, whose gradient takes three times as long on CPU. The copy costs nothing in the compiled program: it
  makes the gradient of this layer one term of the residual stream's gradient. Without it the broadcast of a mean
  is added last, which XLA takes for a reason to recompute the sum over all later layers in each layer.
  """

  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    shape = (1,) * (x.ndim - 1) + x.shape[-1:]
    scale = self.param("scale", nn.initializers.ones, x.shape[-1:]).reshape(shape)
    bias = self.param("bias", nn.initializers.zeros, x.shape[-1:]).reshape(shape)
    return standardize(jnp.copy(x), self.epsilon) * scale + bias


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def standardize(x: Float[Array, "... d"], epsilon: float) -> Float[Array, "... d"]:
  """(x - mean) / sqrt(variance + epsilon) of each row; the biased two-pass variance survives a large mean."""
  return _standardize(x, epsilon)[0]


def _standardize(x: Array, epsilon: float) -> tuple[Array, Array]:
  centred = x - x.mean(-1, keepdims=True)
  scale = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
  return centred * scale, scale


@standardize.defjvp
def _standardize_jvp(epsilon: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
  """dy = s (dx - mean(dx) - y mean(y dx)), exact for any epsilon since s is that of the forward pass."""
  (dx,) = tangents
  y, scale = _standardize(primals[0], epsilon)
  return y, scale * (dx - dx.mean(-1, keepdims=True) - y * (y * dx).mean(-1, keepdims=True))


def run_block(block: nn.Module, x: Array, *, remat: bool, **options: Any) -> Any:
  """`block(x, **options)`; with `remat` its inside is computed again in the backward pass instead of being kept."""

  def call(block: nn.Module, x: Array) -> Any:
    return block(x, **options)

  return nn.remat(call)(block, x) if remat else call(block, x)


BATCH_NORM_MOMENTUM = 0.9  # share of the running statistics that a training step keeps


def batch_norm(x: Float[Array, "b h w c"], train: bool, dtype: Any, name: str) -> Float[Array, "b h w c"]:
  """BatchNorm as torch's (its momentum 0.1 is 0.9 here): float32 inside, `dtype` out.

  One difference: the running variance is the biased one, n/(n-1) below torch's for n values per channel.
  """
  options: dict[str, Any] = {
    "momentum": BATCH_NORM_MOMENTUM,
    "epsilon": 1e-5,
    "dtype": jnp.float32,
    "name": name,
  }
  return nn.BatchNorm(use_running_average=not train, **options)(x.astype(jnp.float32)).astype(dtype)


def conv3x3(
  features: int, dtype: Any, *, stride: int = 1, convolution: str = "native", name: str | None = None
) -> nn.Conv:
  """3x3 convolution without bias, padded by 1 on every side as in torch (SAME differs at stride 2)."""
  options: dict[str, Any] = {"padding": ((1, 1), (1, 1)), "kernel_init": he_normal}
  return conv_layer(convolution)(features, (3, 3), stride, use_bias=False, dtype=dtype, name=name, **options)


def conv_layer(convolution: str) -> Callable[..., nn.Conv]:
  """`nn.Conv` computed by the implementation of that name, see `convolution`."""
  return functools.partial(nn.Conv, conv_general_dilated=conv.implementation(convolution))


def global_mean(maps: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
  """Global average pool, in float32."""
  return jnp.mean(maps.astype(jnp.float32), axis=(1, 2))


def classify(
  x: Float[Array, "b d"], num_classes: int, dtype: Any, name: str, init: Any
) -> Float[Array, "b c"]:
  """Linear layer computed in `dtype`, logits float32; without classes the features themselves in float32."""
  if num_classes:
    x = nn.Dense(num_classes, dtype=dtype, kernel_init=init, name=name)(x)
  return x.astype(jnp.float32)


class DropPath(nn.Module):
  """Stochastic depth per sample (Huang et al., 2016, arXiv:1603.09382): [b ...] -> [b ...].

  A dropped sample's branch is 0, a kept one is divided by 1 - rate, so that the expectation is unchanged.
  """

  rate: float = 0.0

  @nn.compact
  def __call__(self, x: Float[Array, "b ..."], *, train: bool) -> Float[Array, "b ..."]:
    if not train or self.rate == 0:
      return x
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, shape)
    return jnp.where(keep, x / (1 - self.rate), jnp.zeros_like(x))


class SqueezeExcite(nn.Module):
  """Channel gate (Hu et al., 2018, arXiv:1709.01507) without biases: mean, C -> C/16 -> C, ReLU, sigmoid."""

  reduction: int = 16
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, maps: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    channels = maps.shape[-1]
    squeezed = max(channels // self.reduction, 1)
    dense = {"use_bias": False, "dtype": self.dtype, "kernel_init": torch_uniform}
    gate = nn.Dense(squeezed, name="fc1", **dense)(global_mean(maps).astype(self.dtype))
    gate = nn.Dense(channels, name="fc2", **dense)(nn.relu(gate))
    return maps * nn.sigmoid(gate)[:, None, None, :]


class ResidualBlock(nn.Module):
  """conv-BN-ReLU-conv-BN[-SE]-add-ReLU 1x1+BN shortcut on stride or width change (arXiv:1512.03385)."""

  features: int
  stride: int = 1
  squeeze_excite: bool = False
  dtype: Any = jnp.float32
  convolution: str = "native"

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 c2"]:
    conv = functools.partial(conv3x3, self.features, self.dtype, convolution=self.convolution)
    y = nn.relu(batch_norm(conv(stride=self.stride, name="conv1")(x), train, self.dtype, "bn1"))
    y = batch_norm(conv(name="conv2")(y), train, self.dtype, "bn2")
    if self.squeeze_excite:
      y = SqueezeExcite(dtype=self.dtype, name="se")(y)
    if self.stride != 1 or x.shape[-1] != self.features:
      x = self._project(x, train)
    return nn.relu(x + y)

  def _project(self, x: Array, train: bool) -> Array:
    options: dict[str, Any] = {"use_bias": False, "kernel_init": he_normal, "dtype": self.dtype}
    layer = conv_layer(self.convolution)
    x = layer(self.features, (1, 1), self.stride, padding="VALID", name="downsample_conv", **options)(x)
    return batch_norm(x, train, self.dtype, "downsample_bn")
