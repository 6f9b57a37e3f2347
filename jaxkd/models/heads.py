"""Trainable heads on the student's side: projections into another feature space, DINO's prototypes."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxkd.models.layers import choose, dense, gelu, layer_norm, trunc_normal

PROJECTORS = ("linear", "mlp")


class Projector(nn.Module):
  """Features of width p into a space of width q: [... p] -> [... q] float32.

  `linear` is one matrix with bias; `mlp` is p -> 2q, erf GELU, 2q -> q, LayerNorm.
  Raises ValueError for another kind.
  """

  kind: str
  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "... p"]) -> Float[Array, "... q"]:
    choose("projector", self.kind, PROJECTORS)
    x = x.astype(self.dtype)
    if self.kind == "mlp":
      x = gelu(dense(x, 2 * self.features, dtype=self.dtype, kernel_init=trunc_normal, name="fc1"))
    name = "fc2" if self.kind == "mlp" else "proj"
    x = dense(x, self.features, dtype=self.dtype, kernel_init=trunc_normal, name=name)
    return layer_norm(x, jnp.float32, "norm") if self.kind == "mlp" else x.astype(jnp.float32)


class PrototypeHead(nn.Module):
  """DINO's projection head (Caron et al., 2021, arXiv:2104.14294): [b d] -> [b p] float32 scores in [-1, 1].

  Three linear layers with GELU between, an L2-normalised bottleneck, then a last layer without bias whose
  columns are held at unit norm (weight normalisation with its gain fixed to 1), so that every score is a
  cosine.
  """

  prototypes: int
  hidden: int = 256
  bottleneck: int = 64
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b p"]:
    x = x.astype(self.dtype)
    for i, width in enumerate((self.hidden, self.hidden, self.bottleneck)):
      x = gelu(x) if i else x
      x = dense(x, width, dtype=self.dtype, kernel_init=trunc_normal, name=f"fc{i + 1}")
    directions = self.param("prototypes", trunc_normal, (self.bottleneck, self.prototypes))
    # float32 from here: scores are divided by temperatures near 0.04, where bfloat16's rounding would show.
    return jnp.matmul(_unit(x.astype(jnp.float32), axis=-1), _unit(directions, axis=0))


def _unit(x: Array, axis: int) -> Array:
  """x / ||x||, with gradient 0 instead of NaN at x = 0."""
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=axis, keepdims=True), 1e-12))
