"""The parts of a vision transformer: patch embedding, attention, MLP or SwiGLU, LayerScale, pre-norm block.

Parameter paths read like those of timm and of the official DINOv2 code: `blocks.7.attn.qkv.weight` is
`block07/attn/qkv/kernel` transposed.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import constant, truncated_normal
from jaxtyping import Array, Float

from jaxkd.models.attention import attention, attention_with_maps
from jaxkd.models.layers import DropPath, batch_norm, conv3x3, gelu, layer_norm, torch_uniform


class PatchEmbed(nn.Module):
  """Images to patch tokens, row-major: [b h w c] -> [b n d]; `conv` puts two 3x3 conv-BN-GELU first."""

  width: int
  patch_size: int
  stem: str = "patch"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b n d"]:
    x = images.astype(self.dtype)
    if self.stem == "conv":
      for i in (1, 2):
        x = conv3x3(max(self.width // 4, 1), self.dtype, name=f"conv{i}")(x)
        x = gelu(batch_norm(x, train, self.dtype, f"bn{i}"))
    size = (self.patch_size, self.patch_size)
    options: dict[str, Any] = {"padding": "VALID", "dtype": self.dtype, "kernel_init": torch_uniform}
    x = nn.Conv(self.width, size, size, name="proj", **options)(x)
    return x.reshape(x.shape[0], -1, self.width)


class Attention(nn.Module):
  """Multi-head self-attention, and its maps [b h n n] float32 if they are asked for.

  Takes and returns rows, [b*n d] (r for short); `shape` is (b, n). Maps that are asked for can be perturbed (Flax's
  `perturb`): where the collection `perturbations` is given, its `maps` are added to them.
  """

  heads: int
  implementation: str = "xla"
  dropout: float = 0.0
  init_std: float = 0.02
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "r d"], shape: tuple[int, int], *, train: bool, maps: bool
  ) -> tuple[Float[Array, "r d"], Float[Array, "b h n n"] | None]:
    d = x.shape[-1]
    init = truncated_normal(self.init_std)
    qkv = nn.Dense(3 * d, dtype=self.dtype, kernel_init=init, name="qkv")(x)
    qkv = qkv.reshape(*shape, 3, self.heads, d // self.heads)
    q, k, v = (qkv[:, :, i] for i in range(3))
    weights = None
    if maps:
      y, weights = attention_with_maps(q, k, v, perturb=partial(self.perturb, "maps"))
    else:
      y = attention(q, k, v, implementation=self.implementation)
    y = nn.Dense(d, dtype=self.dtype, kernel_init=init, name="proj")(y.reshape(-1, d))
    return nn.Dropout(self.dropout, name="drop")(y, deterministic=not train), weights


class Mlp(nn.Module):
  """Linear, erf GELU, linear: [r d] -> [r d]."""

  ratio: float = 4.0
  dropout: float = 0.0
  init_std: float = 0.02
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "r d"], *, train: bool) -> Float[Array, "r d"]:
    hidden, d, init = int(x.shape[-1] * self.ratio), x.shape[-1], truncated_normal(self.init_std)
    x = gelu(nn.Dense(hidden, dtype=self.dtype, kernel_init=init, name="fc1")(x))
    x = nn.Dropout(self.dropout, name="drop1")(x, deterministic=not train)
    x = nn.Dense(d, dtype=self.dtype, kernel_init=init, name="fc2")(x)
    return nn.Dropout(self.dropout, name="drop2")(x, deterministic=not train)


class SwiGlu(nn.Module):
  """w3(silu(a) * b) with a, b the halves of w12(x) (Shazeer, 2020, arXiv:2002.05202): [r d] -> [r d].

  As DINOv2's `SwiGLUFFNFused`: two thirds of the usual hidden width, rounded up to a multiple of 8.
  """

  ratio: float = 4.0
  dropout: float = 0.0
  init_std: float = 0.02
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "r d"], *, train: bool) -> Float[Array, "r d"]:
    d, init = x.shape[-1], truncated_normal(self.init_std)
    hidden = (int(int(d * self.ratio) * 2 / 3) + 7) // 8 * 8
    x = nn.Dense(2 * hidden, dtype=self.dtype, kernel_init=init, name="w12")(x)
    gate, value = jnp.split(x, 2, axis=-1)
    x = nn.silu(gate.astype(jnp.float32)).astype(self.dtype) * value
    x = nn.Dense(d, dtype=self.dtype, kernel_init=init, name="w3")(x)
    return nn.Dropout(self.dropout, name="drop")(x, deterministic=not train)


class LayerScale(nn.Module):
  """A learned factor per channel (Touvron et al., 2021, arXiv:2103.17239): [r d] -> [r d]."""

  initial: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "r d"]) -> Float[Array, "r d"]:
    gamma = self.param("gamma", constant(self.initial), (x.shape[-1],))
    return x * gamma.astype(self.dtype)[None]


class Block(nn.Module):
  """Pre-norm transformer block: [b n d] -> [b n d], and the attention maps if they are asked for.

  Inside, the tokens of all images are rows, [b*n d]: where kernels see two leading axes, XLA on CPU copies each
  cotangent for the kernel's gradient and recomputes the residual stream's gradient of all later blocks in every
  copy (DeiT-Tiny's backward pass took 2.5 times as long).

  `layer_scale` is LayerScale's initial value; 0 builds none.
  """

  heads: int
  mlp_ratio: float = 4.0
  drop_path: float = 0.0
  dropout: float = 0.0
  implementation: str = "xla"
  init_std: float = 0.02
  layer_scale: float = 0.0
  swiglu: bool = False
  norm_epsilon: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b n d"], *, train: bool, maps: bool = False
  ) -> tuple[Float[Array, "b n d"], Float[Array, "b h n n"] | None]:
    b, n, _ = shape = x.shape
    attend = Attention(self.heads, self.implementation, self.dropout, self.init_std, self.dtype, name="attn")
    x = x.reshape(b * n, -1)
    y, weights = attend(self._norm(x, "norm1"), (b, n), train=train, maps=maps)
    x = self._add(x, y, 1, b, train)
    kind = SwiGlu if self.swiglu else Mlp
    mlp = kind(self.mlp_ratio, self.dropout, self.init_std, self.dtype, name="mlp")
    x = self._add(x, mlp(self._norm(x, "norm2"), train=train), 2, b, train)
    return x.reshape(shape), weights

  def _norm(self, x: jax.Array, name: str) -> jax.Array:
    return layer_norm(x, self.dtype, name, self.norm_epsilon)

  def _add(self, x: jax.Array, y: jax.Array, branch: int, samples: int, train: bool) -> jax.Array:
    """x plus the branch's output, scaled and, for whole samples, sometimes dropped."""
    if self.layer_scale:
      y = LayerScale(self.layer_scale, self.dtype, name=f"ls{branch}")(y)
    y = y.reshape(samples, -1, y.shape[-1])
    return x + DropPath(self.drop_path, name=f"drop_path{branch}")(y, train=train).reshape(x.shape)
