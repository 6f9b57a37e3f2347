"""MixUp and CutMix: every image is mixed with its mirror image in the batch, and its label in the same proportion.

The partner of example i is example b - 1 - i: no random permutation has to be agreed on between devices, and the batch
is in random order already.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

CUTMIX_SHARE = 0.5  # how often CutMix is chosen when both are on


class Mixed(NamedTuple):
  """Mixed images [b h w c] (dtype of the input), each one's partner in the batch, and its own share in [0, 1]."""

  images: Shaped[Array, "b h w c"]
  partner: Int[Array, " b"]
  weight: Float[Array, " b"]


def mix(
  images: Shaped[Array, "b h w c"],
  key: Array,
  *,
  mixup_alpha: float = 0.0,
  cutmix_alpha: float = 0.0,
  per_sample: bool = False,
) -> Mixed:
  """MixUp (Zhang et al., ICLR 2018, arXiv:1710.09412) or CutMix (Yun et al., ICCV 2019, arXiv:1905.04899).

  Args:
    images: the global batch, uint8 or float. MixUp of uint8 is rounded to the nearest level.
    key: PRNG key of this step.
    mixup_alpha: share ~ Beta(a, a) of the image; 0 is no MixUp.
    cutmix_alpha: 1 - share ~ Beta(a, a) of the area comes from the partner, as one box with the image's aspect ratio,
      centred anywhere and cut at the border; the weight is recomputed from its pixels. 0 is no CutMix.
    per_sample: one draw for each image instead of one for the batch. With both alphas each draw picks one at random.

  Raises:
    ValueError: a negative alpha, or both 0.
  """
  if min(mixup_alpha, cutmix_alpha) < 0 or max(mixup_alpha, cutmix_alpha) == 0:
    raise ValueError(
      f"mixup_alpha={mixup_alpha}, cutmix_alpha={cutmix_alpha}: both must be >= 0, and one above 0"
    )
  b, h, w, _ = images.shape
  k_mix, k_cut, k_choice, k_box = jax.random.split(key, 4)
  draws = b if per_sample else 1
  partner = jnp.arange(b - 1, -1, -1, dtype=jnp.int32)
  both = mixup_alpha > 0 and cutmix_alpha > 0
  cut = (
    jax.random.bernoulli(k_choice, CUTMIX_SHARE, (draws,)) if both else jnp.full((draws,), cutmix_alpha > 0)
  )
  own = jnp.ones((draws, h, w), jnp.float32)
  if mixup_alpha:
    share = _beta(k_mix, mixup_alpha, draws)
    own = jnp.where(cut[:, None, None], own, share[:, None, None])
  if cutmix_alpha:
    share = _beta(k_cut, cutmix_alpha, draws)
    own = jnp.where(cut[:, None, None] & _boxes(k_box, share, h, w), 0.0, own)
  weight = jnp.where(cut, own.sum(axis=(1, 2)) / (h * w), own[:, 0, 0])
  return Mixed(_blend(images, own), partner, jnp.broadcast_to(weight, (b,)))


def _beta(key: Array, alpha: float, draws: int) -> Float[Array, " draws"]:
  if alpha == 1:  # the usual one is uniform: no rejection sampler to compile
    return jax.random.uniform(key, (draws,))
  return jax.random.beta(key, alpha, alpha, (draws,))


def _boxes(key: Array, share, h: int, w: int) -> Bool[Array, "draws h w"]:
  """True in a box of (1 - share) of the image, sides cut to whole pixels, around a random pixel."""
  k_row, k_column = jax.random.split(key)
  side = jnp.sqrt(1 - share)

  def inside(k, length):
    cut = jnp.floor(length * side).astype(jnp.int32)
    start = jax.random.randint(k, share.shape, 0, length, jnp.int32) - cut // 2
    place = jnp.arange(length, dtype=jnp.int32)[None]
    return (place >= start[:, None]) & (place < (start + cut)[:, None])

  return inside(k_row, h)[:, :, None] & inside(k_column, w)[:, None, :]


def _blend(images, own) -> Shaped[Array, "b h w c"]:
  """`own` [b or 1, h, w] of each image and the rest of its partner; where it is 1 or 0 the pixels are copies."""
  share = own[..., None]
  x = images.astype(jnp.float32)
  mixed = share * x + (1 - share) * x[::-1]
  mixed = jnp.round(mixed) if images.dtype == jnp.uint8 else mixed
  return mixed.astype(images.dtype)


def mix_targets(
  targets: Float[Array, "b c"], partner: Int[Array, " b"], weight: Float[Array, " b"]
) -> Float[Array, "b c"]:
  """weight * own + (1 - weight) * partner's: label distributions or a teacher's probabilities, float32."""
  targets = targets.astype(jnp.float32)
  return weight[:, None] * targets + (1 - weight[:, None]) * targets[partner]


def soft_labels(
  labels: Int[Array, " b"], partner: Int[Array, " b"], weight: Float[Array, " b"], classes: int
) -> Float[Array, "b c"]:
  """The mixed one-hot labels over `classes`, float32; rows sum to 1."""
  return mix_targets(jax.nn.one_hot(labels, classes), partner, weight)
