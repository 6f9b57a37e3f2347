"""Vision transformers: DeiT (Touvron et al., 2021, arXiv:2012.12877) and its body without distillation token.

The reference implementation is timm's (`VisionTransformer`, `VisionTransformerDistilled`): pre-norm blocks,
one matrix for q, k and v, erf GELU, LayerNorm epsilon 1e-6, learned positions. Parameter paths read like its
names: `block07/attn/qkv/kernel` is `blocks.7.attn.qkv.weight` transposed.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import truncated_normal
from jaxtyping import Array, Float

from jaxkd.models.attention import resolve_implementation
from jaxkd.models.layers import (
  DTYPES,
  LayerNorm,
  check_classes,
  check_images,
  check_rates,
  check_sizes,
  choose,
  classify,
  image_pair,
  run_block,
)
from jaxkd.models.positions import grid_of, resize_positions
from jaxkd.models.transformer import Block, PatchEmbed

INFERENCE = ("mean", "cls", "dist")
STEMS = ("patch", "conv")
# The reference implementation whose kernel resamples the position table.
INTERPOLATION = {"timm": "antialias", "transformers": "plain"}


class ViT(nn.Module):
  """Vision transformer with a cls token and, if `distilled`, a distillation token with its own head.

  `apply(variables, images [b h w c] float32 normalised, train=False, want=()) -> (logits [b c] float32,
  taps)`. Tokens are cls, dist, registers, then patches row-major. Taps: `embed/tokens` [b n d] (with
  positions), `blockNN/tokens` [b n d] (raw residual stream), `blockNN/normed` (the same after the final norm),
  `blockNN/cls` [b d], `norm/tokens` [b n d], `features` [b d] (normalised cls token, float32), `logits/cls`,
  `logits/dist`, `logits`; with `want=("attn",)` also `blockNN/attn` [b h n n] float32. Training draws from the
  rng `dropout` where a rate is above 0, and updates `batch_stats` where there is a conv stem. Images of any
  size that the patch divides are accepted: positions are resampled from the grid of the table that is given,
  the model's own or a square one. `num_classes=0` builds no classifier: logits are the normalised cls token.
  Raises ValueError for images that do not fit and for an unknown tap in `want`.
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
  registers: int = 0
  layer_scale: float = 0.0
  swiglu: bool = False
  position_kernel: str = "antialias"
  norm_epsilon: float = 1e-6
  attention: str = "xla"
  init_std: float = 0.02
  dtype: Any = jnp.float32
  remat: bool = False

  @property
  def special_tokens(self) -> int:
    return self.positioned_tokens + self.registers

  @property
  def positioned_tokens(self) -> int:
    """Leading tokens with a row in the position table: cls, and dist where there is one."""
    return 2 if self.distilled else 1

  @property
  def num_layers(self) -> int:
    return self.depth

  @property
  def grid(self) -> tuple[int, int]:
    """Rows and columns of patches at `image_size`."""
    return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

  @nn.compact
  def __call__(
    self, images: Float[Array, "b h w c"], *, train: bool = False, want: tuple[str, ...] = ()
  ) -> tuple[Float[Array, "b c"], dict[str, Array]]:
    maps = "attn" in [choose("tap to want", name, ("attn",)) for name in want]
    norm = LayerNorm(self.norm_epsilon, name="norm")
    x = self._embed(images, train)
    taps = {"embed/tokens": x}
    for i in range(self.depth):
      x, weights = run_block(self._block(i), x, remat=self.remat, train=train, maps=maps)
      normed = norm(x.astype(jnp.float32)).astype(self.dtype)
      taps |= {f"block{i:02d}/tokens": x, f"block{i:02d}/normed": normed, f"block{i:02d}/cls": x[:, 0]}
      if weights is not None:
        taps[f"block{i:02d}/attn"] = weights
    taps["norm/tokens"] = normed
    return self._classify(normed, taps)

  def _block(self, i: int) -> Block:
    return Block(
      self.heads,
      self.mlp_ratio,
      drop_path=self.drop_path * i / max(self.depth - 1, 1),
      dropout=self.dropout,
      implementation=self.attention,
      init_std=self.init_std,
      layer_scale=self.layer_scale,
      swiglu=self.swiglu,
      norm_epsilon=self.norm_epsilon,
      dtype=self.dtype,
      name=f"block{i:02d}",
    )

  def _embed(self, images: Array, train: bool) -> Array:
    """Checked images to tokens with positions: [b h w c] -> [b n d]."""
    check_images(images, self.in_channels)
    (_, h, w, _), size = images.shape, self.patch_size
    if h % size or w % size:
      raise ValueError(f"images of {h}x{w} pixels: patch_size={size} does not divide both sides")
    if self.grayscale_to_rgb:
      images = jnp.repeat(images, 3, axis=-1)
    patches = PatchEmbed(self.width, size, self.stem, self.dtype, name="patch_embed")(images, train=train)
    tokens = [self._token(name, images.shape[0]) for name in self._names()]
    tokens[0] = nn.Dropout(self.cls_dropout, name="cls_drop")(tokens[0], deterministic=not train)
    x = jnp.concatenate([*tokens, patches], axis=1) + self._positions((h // size, w // size))
    if self.registers:
      known, after = self.positioned_tokens, self._token("register_tokens", images.shape[0])
      x = jnp.concatenate([x[:, :known], after, x[:, known:]], axis=1)
    return nn.Dropout(self.dropout, name="pos_drop")(x, deterministic=not train)

  def _names(self) -> tuple[str, ...]:
    return ("cls_token", "dist_token")[: self.positioned_tokens]

  def _token(self, name: str, batch: int) -> Array:
    """A learned token, or all registers, for every image: [b k d]."""
    count = self.registers if name == "register_tokens" else 1
    token = self.param(name, truncated_normal(self.init_std), (1, count, self.width))
    return jnp.broadcast_to(token.astype(self.dtype), (batch, count, self.width))

  def _positions(self, grid: tuple[int, int]) -> Array:
    """The position table at `grid`: [1 n d]. A table that is given says its own grid by its length."""
    special = self.positioned_tokens
    if self.has_variable("params", "pos_embed"):
      table: Array = self.get_variable("params", "pos_embed")
    else:
      shape = (1, special + self.grid[0] * self.grid[1], self.width)
      table = self.param("pos_embed", truncated_normal(self.init_std), shape)
    own = grid_of(table.shape[1] - special, self.grid)
    return resize_positions(table, special, own, grid, kernel=self.position_kernel).astype(self.dtype)

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
  registers: int = 0,
  layer_scale: float = 0.0,
  swiglu: bool = False,
  interpolation: str = "timm",
  norm_epsilon: float = 1e-6,
  init_std: float = 0.02,
  dtype: str = "float32",
) -> ViT:
  """Builds a ViT, or with `distilled` a DeiT; `attention="auto"` is resolved here, once, for this machine.

  `inference` says which logits a DeiT answers with: the "mean" of both heads, "cls" or "dist". `drop_path` is
  the last block's rate, growing linearly from 0; `dropout` follows positions, attention and both MLP layers;
  `cls_dropout` falls on the cls token as it enters; `grayscale_to_rgb` repeats one channel three times.
  `registers` learned tokens without position follow cls and dist (arXiv:2309.16588); `layer_scale` is the
  initial LayerScale factor, 0 for none; `swiglu` replaces the GELU MLP. `interpolation` names the reference
  whose kernel resamples positions, "timm" or "transformers"; `norm_epsilon` is that of every LayerNorm
  (timm and the official code: 1e-6; transformers' DeiT and ViT: 1e-12).
  Raises ValueError for sizes that do not divide, rates outside [0, 1) and unknown names, saying what would
  do.
  """
  size = image_pair(image_size)
  check_sizes(patch_size=patch_size, width=width, depth=depth, heads=heads, in_channels=in_channels)
  check_classes(num_classes)
  check_rates(drop_path=drop_path, dropout=dropout, cls_dropout=cls_dropout)
  _check_numbers(init_std, mlp_ratio, registers, layer_scale, norm_epsilon)
  if choose("inference", inference, INFERENCE) != "cls" and not distilled:
    raise ValueError(
      f"inference={inference!r} needs a distillation head; use distilled=True or inference='cls'"
    )
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
    registers=registers,
    layer_scale=layer_scale,
    swiglu=swiglu,
    position_kernel=INTERPOLATION[choose("interpolation", interpolation, INTERPOLATION)],
    norm_epsilon=norm_epsilon,
    attention=resolve_implementation(attention, compute, head_dim=width // heads),
    init_std=init_std,
    dtype=compute,
  )


def _check_numbers(
  init_std: float, mlp_ratio: float, registers: int, layer_scale: float, norm_epsilon: float
) -> None:
  if init_std <= 0:
    raise ValueError(
      f"init_std={init_std} must be positive; 0.02 is DeiT's, narrow models (64) learn faster with 0.1"
    )
  if mlp_ratio <= 0:
    raise ValueError(f"mlp_ratio={mlp_ratio} must be positive; 4 is usual")
  if registers < 0:
    raise ValueError(f"registers={registers} is negative; 0 is none, DINOv2 has 4")
  if layer_scale < 0:
    raise ValueError(f"layer_scale={layer_scale} is negative; 0 is none, DINOv2 starts at 1e-5")
  if norm_epsilon <= 0:
    raise ValueError(f"norm_epsilon={norm_epsilon} must be positive; 1e-6 is usual")


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
