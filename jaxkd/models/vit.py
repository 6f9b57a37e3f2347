"""Vision transformers: DeiT (Touvron et al., 2021, arXiv:2012.12877) and its body without distillation token.

The reference implementation is timm's (`VisionTransformer`, `VisionTransformerDistilled`): pre-norm blocks,
one matrix for q, k and v, erf GELU, LayerNorm epsilon 1e-6, learned positions. Parameter paths read like its
names: `block07/attn/qkv/kernel` is `blocks.7.attn.qkv.weight` transposed.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import truncated_normal
from jaxtyping import Array, Float

from jaxkd.models.attention import attention, attention_with_maps, resolve_implementation
from jaxkd.models.layers import (
  DTYPES,
  DropPath,
  batch_norm,
  check_classes,
  check_images,
  check_rates,
  check_sizes,
  choose,
  classify,
  conv3x3,
  gelu,
  image_pair,
  layer_norm,
  torch_uniform,
)

INFERENCE = ("mean", "cls", "dist")
STEMS = ("patch", "conv")


def resize_positions(
  table: Float[Array, "1 n d"], special_tokens: int, old: tuple[int, int], new: tuple[int, int]
) -> Float[Array, "1 m d"]:
  """Bicubic, antialiased resampling of the patch positions to another grid; special tokens keep theirs.

  As timm's `resample_abs_pos_embed` (torch's bicubic with antialias). The table's own grid returns it
  unchanged.
  """
  if old == new:
    return table
  special, patches = table[:, :special_tokens], table[:, special_tokens:]
  width = table.shape[-1]
  patches = jax.image.resize(patches.reshape(*old, width), (*new, width), "cubic", antialias=True)
  return jnp.concatenate([special, patches.reshape(1, -1, width)], axis=1)


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
  """Multi-head self-attention: [b n d] -> [b n d], and the maps [b h n n] float32 if they are asked for."""

  heads: int
  implementation: str = "xla"
  dropout: float = 0.0
  init_std: float = 0.02
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b n d"], *, train: bool, maps: bool
  ) -> tuple[Float[Array, "b n d"], Float[Array, "b h n n"] | None]:
    b, n, d = x.shape
    init = truncated_normal(self.init_std)
    qkv = nn.Dense(3 * d, dtype=self.dtype, kernel_init=init, name="qkv")(x)
    qkv = qkv.reshape(b, n, 3, self.heads, d // self.heads)
    q, k, v = (qkv[:, :, i] for i in range(3))
    weights = None
    if maps:
      y, weights = attention_with_maps(q, k, v)
    else:
      y = attention(q, k, v, implementation=self.implementation)
    y = nn.Dense(d, dtype=self.dtype, kernel_init=init, name="proj")(y.reshape(b, n, d))
    return nn.Dropout(self.dropout, name="drop")(y, deterministic=not train), weights


class Mlp(nn.Module):
  """Linear, erf GELU, linear: [b n d] -> [b n d]."""

  ratio: float = 4.0
  dropout: float = 0.0
  init_std: float = 0.02
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b n d"], *, train: bool) -> Float[Array, "b n d"]:
    hidden, d, init = int(x.shape[-1] * self.ratio), x.shape[-1], truncated_normal(self.init_std)
    x = gelu(nn.Dense(hidden, dtype=self.dtype, kernel_init=init, name="fc1")(x))
    x = nn.Dropout(self.dropout, name="drop1")(x, deterministic=not train)
    x = nn.Dense(d, dtype=self.dtype, kernel_init=init, name="fc2")(x)
    return nn.Dropout(self.dropout, name="drop2")(x, deterministic=not train)


class Block(nn.Module):
  """Pre-norm transformer block: [b n d] -> [b n d], and the attention maps if they are asked for."""

  heads: int
  mlp_ratio: float = 4.0
  drop_path: float = 0.0
  dropout: float = 0.0
  implementation: str = "xla"
  init_std: float = 0.02
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b n d"], *, train: bool, maps: bool = False
  ) -> tuple[Float[Array, "b n d"], Float[Array, "b h n n"] | None]:
    attend = Attention(self.heads, self.implementation, self.dropout, self.init_std, self.dtype, name="attn")
    y, weights = attend(layer_norm(x, self.dtype, "norm1"), train=train, maps=maps)
    x = x + DropPath(self.drop_path, name="drop_path1")(y, train=train)
    mlp = Mlp(self.mlp_ratio, self.dropout, self.init_std, self.dtype, name="mlp")
    y = mlp(layer_norm(x, self.dtype, "norm2"), train=train)
    return x + DropPath(self.drop_path, name="drop_path2")(y, train=train), weights


class ViT(nn.Module):
  """Vision transformer with a cls token and, if `distilled`, a distillation token with its own head.

  `apply(variables, images [b h w c] float32 normalised, train=False, want=()) -> (logits [b c] float32,
  taps)`. Taps: `blockNN/tokens` [b n d] (raw residual stream; cls, then dist, then patches row-major),
  `norm/tokens`, `features` [b d] (normalised cls token, float32), `logits/cls`, `logits/dist`, `logits`; with
  `want=("attn",)` also `blockNN/attn` [b h n n] float32. Training draws from the rng `dropout` where a rate
  is above 0, and updates `batch_stats` where there is a conv stem. Images of any size that the patch divides
  are accepted: positions are resampled from the table's grid. `num_classes=0` builds no classifier: logits
  are the normalised tokens. Raises ValueError for images that do not fit and for an unknown tap in `want`.
  """

  num_classes: int
  in_channels: int
  image_size: tuple[int, int]
  patch_size: int
  width: int
  depth: int
  heads: int
  mlp_ratio: float = 4.0
  drop_path: float = 0.0
  dropout: float = 0.0
  cls_dropout: float = 0.0
  stem: str = "patch"
  grayscale_to_rgb: bool = False
  distilled: bool = False
  inference: str = "cls"
  attention: str = "xla"
  init_std: float = 0.02
  dtype: Any = jnp.float32

  @property
  def special_tokens(self) -> int:
    return 2 if self.distilled else 1

  @property
  def num_layers(self) -> int:
    return self.depth

  @property
  def grid(self) -> tuple[int, int]:
    """Rows and columns of the position table."""
    return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

  @nn.compact
  def __call__(
    self, images: Float[Array, "b h w c"], *, train: bool = False, want: tuple[str, ...] = ()
  ) -> tuple[Float[Array, "b c"], dict[str, Array]]:
    maps = "attn" in [choose("tap to want", name, ("attn",)) for name in want]
    x, taps = self._embed(images, train), {}
    for i in range(self.depth):
      x, weights = self._block(i)(x, train=train, maps=maps)
      taps[f"block{i:02d}/tokens"] = x
      if weights is not None:
        taps[f"block{i:02d}/attn"] = weights
    taps["norm/tokens"] = x = layer_norm(x, self.dtype, "norm")
    return self._classify(x, taps)

  def _block(self, i: int) -> Block:
    rate = self.drop_path * i / max(self.depth - 1, 1)
    options = (self.heads, self.mlp_ratio, rate, self.dropout, self.attention, self.init_std, self.dtype)
    return Block(*options, name=f"block{i:02d}")

  def _embed(self, images: Array, train: bool) -> Array:
    """Checked images to tokens with positions: [b h w c] -> [b n d]."""
    check_images(images, self.in_channels)
    (b, h, w, _), size = images.shape, self.patch_size
    if h % size or w % size:
      raise ValueError(f"images of {h}x{w} pixels: patch_size={size} does not divide both sides")
    if self.grayscale_to_rgb:
      images = jnp.repeat(images, 3, axis=-1)
    patches = PatchEmbed(self.width, size, self.stem, self.dtype, name="patch_embed")(images, train=train)
    tokens = [jnp.broadcast_to(t.astype(self.dtype), (b, 1, self.width)) for t in self._special()]
    tokens[0] = nn.Dropout(self.cls_dropout, name="cls_drop")(tokens[0], deterministic=not train)
    rows, columns = self.grid
    init = truncated_normal(self.init_std)
    table = self.param("pos_embed", init, (1, self.special_tokens + rows * columns, self.width))
    table = resize_positions(table, self.special_tokens, self.grid, (h // size, w // size))
    x = jnp.concatenate([*tokens, patches], axis=1) + table.astype(self.dtype)
    return nn.Dropout(self.dropout, name="pos_drop")(x, deterministic=not train)

  def _special(self) -> list[Array]:
    names = ("cls_token", "dist_token")[: self.special_tokens]
    return [self.param(name, truncated_normal(self.init_std), (1, 1, self.width)) for name in names]

  def _classify(self, x: Array, taps: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    taps["features"] = x[:, 0].astype(jnp.float32)
    taps["logits/cls"] = taps["logits"] = self._head("head", x[:, 0])
    if self.distilled:
      taps["logits/dist"] = self._head("head_dist", x[:, 1])
      mean = (taps["logits/cls"] + taps["logits/dist"]) / 2
      taps["logits"] = mean if self.inference == "mean" else taps[f"logits/{self.inference}"]
    return taps["logits"], taps

  def _head(self, name: str, token: Array) -> Array:
    return classify(token, self.num_classes, self.dtype, name, truncated_normal(self.init_std))


def vit(
  *,
  num_classes: int = 10,
  in_channels: int = 3,
  image_size: int | Sequence[int] = 32,
  patch_size: int = 4,
  width: int = 192,
  depth: int = 12,
  heads: int = 3,
  mlp_ratio: float = 4.0,
  drop_path: float = 0.0,
  dropout: float = 0.0,
  cls_dropout: float = 0.0,
  stem: str = "patch",
  grayscale_to_rgb: bool = False,
  distilled: bool = False,
  inference: str = "cls",
  attention: str = "auto",
  init_std: float = 0.02,
  dtype: str = "float32",
) -> ViT:
  """Builds a ViT, or with `distilled` a DeiT; `attention="auto"` is resolved here, once, for this machine.

  `inference` says which logits a DeiT answers with: the "mean" of both heads, "cls" or "dist". `drop_path` is
  the last block's rate, growing linearly from 0; `dropout` follows positions, attention and both MLP layers;
  `cls_dropout` falls on the cls token as it enters; `grayscale_to_rgb` repeats one channel three times.
  Raises ValueError for sizes that do not divide, rates outside [0, 1) and unknown names, saying what would
  do.
  """
  size = image_pair(image_size)
  check_sizes(patch_size=patch_size, width=width, depth=depth, heads=heads, in_channels=in_channels)
  check_classes(num_classes)
  if init_std <= 0:
    raise ValueError(
      f"init_std={init_std} must be positive; 0.02 is DeiT's, narrow models (64) learn faster with 0.1"
    )
  if mlp_ratio <= 0:
    raise ValueError(f"mlp_ratio={mlp_ratio} must be positive; 4 is usual")
  if choose("inference", inference, INFERENCE) != "cls" and not distilled:
    raise ValueError(
      f"inference={inference!r} needs a distillation head; use distilled=True or inference='cls'"
    )
  check_rates(drop_path=drop_path, dropout=dropout, cls_dropout=cls_dropout)
  _check_patch(size, patch_size)
  _check_heads(width, heads)
  if grayscale_to_rgb and in_channels != 1:
    raise ValueError(
      f"grayscale_to_rgb=True repeats one channel, and in_channels is {in_channels}; use in_channels=1"
    )
  compute = DTYPES[choose("dtype", dtype, DTYPES)]
  return ViT(
    num_classes=num_classes,
    in_channels=in_channels,
    image_size=size,
    patch_size=patch_size,
    width=width,
    depth=depth,
    heads=heads,
    mlp_ratio=mlp_ratio,
    drop_path=drop_path,
    dropout=dropout,
    cls_dropout=cls_dropout,
    stem=choose("stem", stem, STEMS),
    grayscale_to_rgb=grayscale_to_rgb,
    distilled=distilled,
    inference=inference,
    attention=resolve_implementation(attention, compute, head_dim=width // heads),
    init_std=init_std,
    dtype=compute,
  )


def _check_patch(size: tuple[int, int], patch: int) -> None:
  if not (size[0] % patch or size[1] % patch):
    return
  fits = [p for p in range(1, min(size) + 1) if not (size[0] % p or size[1] % p)]
  near = sorted(sorted(fits, key=lambda p: abs(p - patch))[:2])
  sides = [f"{max(s // patch, 1) * patch} or {(s // patch + 1) * patch}" for s in dict.fromkeys(size)]
  raise ValueError(
    f"patch_size={patch} does not divide image_size={size[0]}x{size[1]}; nearest patch sizes: "
    f"{', '.join(map(str, near))}; nearest image sides: {' and '.join(sides)}"
  )


def _check_heads(width: int, heads: int) -> None:
  if width % heads:
    fits = [h for h in range(1, width + 1) if width % h == 0]
    near = sorted(sorted(fits, key=lambda h: abs(h - heads))[:2])
    raise ValueError(f"heads={heads} do not divide width={width}; nearest: {', '.join(map(str, near))}")
