"""Effective receptive field: which input pixels the token in the middle of a layer depends on."""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxkd.analysis.streaming import layer_names, map_batches, spatial_taps


class ReceptiveField(NamedTuple):
  """Of each layer, in the order of `layers`; distances in pixels from the centre of the token's own cell.

  Attributes:
    energy: [l h w], mean over images of the squared gradient per pixel, each image's sum being 1.
    mean_distance: [l b], the energy's mean distance, per image: intervals by `bootstrap_mean` over images.
    radius: share -> [l], the smallest radius that holds this share of `energy`.
    uniform_distance, uniform_radius: [l] and share -> [l], what equal energy everywhere would have.
  """

  layers: tuple[str, ...]
  energy: Float[np.ndarray, "l h w"]
  mean_distance: Float[np.ndarray, "l b"]
  radius: dict[float, Float[np.ndarray, " l"]]
  uniform_distance: Float[np.ndarray, " l"]
  uniform_radius: dict[float, Float[np.ndarray, " l"]]


def effective_receptive_field(
  model: nn.Module,
  variables: Any,
  images: Float[Array, "b h w c"],
  *,
  key: Array,
  layers: tuple[str, ...] | None = None,
  shares: tuple[float, ...] = (0.5, 0.9),
  batch_size: int = 16,
) -> ReceptiveField:
  """How far the centre token (row h // 2, column w // 2 of the layer's map) looks, by its gradient.

  The energy of a pixel is the squared Frobenius norm of d token / d pixel. It is not computed channel by channel:
  for a random sign per channel, drawn anew for every image, the squared gradient of the signed sum has that
  expectation (Hutchinson's argument), so one backward pass per layer and image is enough.

  Args:
    images: normalised as the model expects; 64 of them give a smooth map.
    layers: taps, by default every layer's tokens or map.
    shares: of the energy, for `radius`.

  Raises:
    ValueError: no images, a tap that the model lacks, or a share outside (0, 1].

  Source: Luo, Li, Urtasun and Zemel (NeurIPS 2016, arXiv:1701.04128), who take the plain gradient of one channel;
    for transformers Raghu et al. (NeurIPS 2021, arXiv:2108.08810).
  """
  if not shares or not all(0 < s <= 1 for s in shares):
    raise ValueError(f"shares {shares} must lie in (0, 1]")
  names = layers or layer_names(model)
  offsets = jnp.asarray(np.stack(list(_distances(model, variables, images, names).values())), jnp.float32)
  function = partial(_energies, model, variables, offsets, key, layers=names)
  found = map_batches(function, images, np.arange(len(images)), batch_size=batch_size)
  energy = found["energy"].mean(axis=0, dtype=np.float64)
  distances = np.asarray(offsets, np.float64)
  flat = np.full_like(energy, 1 / energy[0].size)
  return ReceptiveField(
    names,
    energy,
    found["distance"].T,
    {s: _radii(energy, distances, s) for s in shares},
    (flat * distances).sum((1, 2)),
    {s: _radii(flat, distances, s) for s in shares},
  )


def mass_radius(energy: Float[np.ndarray, "h w"], distances: Float[np.ndarray, "h w"], share: float) -> float:
  """The smallest distance r such that the pixels within r hold `share` of the energy."""
  order = np.argsort(distances, axis=None, kind="stable")
  held = np.cumsum(energy.ravel()[order])
  # Rounding must not push a share of 1 past the last pixel.
  place = np.searchsorted(held, share * held[-1] * (1 - 1e-12))
  return float(distances.ravel()[order][min(place, held.size - 1)])


def _radii(energy: np.ndarray, distances: np.ndarray, share: float) -> np.ndarray:
  return np.array([mass_radius(e, d, share) for e, d in zip(energy, distances, strict=True)])


def _distances(
  model: nn.Module, variables: Any, images: Array, names: tuple[str, ...]
) -> dict[str, np.ndarray]:
  """Distance of every pixel from the centre of the token's cell, by layer."""

  def maps(variables: Any, images: Array) -> dict[str, Array]:
    return spatial_taps(model, variables, images, names)

  h, w = images.shape[1:3]
  shapes = jax.eval_shape(maps, variables, jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32))
  y, x = np.mgrid[:h, :w]
  found = {}
  for name in names:
    rows, columns = shapes[name].shape[1:3]
    centre = ((rows // 2 + 0.5) * h / rows - 0.5, (columns // 2 + 0.5) * w / columns - 0.5)
    found[name] = np.hypot(y - centre[0], x - centre[1])
  return found


@partial(jax.jit, static_argnames=("model", "layers"))
def _energies(
  model: nn.Module,
  variables: Any,
  distances: Float[Array, "l h w"],
  key: Array,
  images: Float[Array, "b h w c"],
  index: Array,
  *,
  layers: tuple[str, ...],
) -> dict[str, Array]:
  def centres(x: Array) -> list[Float[Array, "b d"]]:
    maps = spatial_taps(model, variables, x, layers)
    return [maps[n][:, maps[n].shape[1] // 2, maps[n].shape[2] // 2].astype(jnp.float32) for n in layers]

  tokens, pull = jax.vjp(centres, images)
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
  signs = [
    jax.vmap(lambda k, d=t.shape[1]: jax.random.rademacher(k, (d,), jnp.float32))(keys) for t in tokens
  ]

  def one(chosen: Float[Array, " l"]) -> Float[Array, "b h w"]:
    (gradient,) = pull([s * c for s, c in zip(signs, chosen, strict=True)])
    energy = (gradient.astype(jnp.float32) ** 2).sum(axis=-1)
    return energy / energy.sum(axis=(1, 2), keepdims=True)

  energy = jax.lax.map(one, jnp.eye(len(layers))).swapaxes(0, 1)
  return {"energy": energy, "distance": jnp.einsum("blhw,lhw->bl", energy, distances, precision="highest")}
