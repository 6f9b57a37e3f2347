"""Fourier spectra of feature maps: whether a layer keeps or smooths away what changes from token to token."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxkd.analysis.streaming import map_batches, spatial_taps

# Amplitudes below this part of the largest one are rounding.
_FLOOR = 1e-6


def spectrum_frequencies(grid: tuple[int, int]) -> Float[np.ndarray, " r"]:
  """Centres of the rings of `fourier_spectrum`, from 0 to 1 = pi radians per cell (the finest pattern a row can hold).

  Raises:
    ValueError: a side below 2, which has no frequency but 0.
  """
  _check_grid(grid)
  rings = min(grid) // 2
  return np.arange(rings + 1) / rings


def fourier_spectrum(maps: Float[Array, "b h w d"]) -> Float[Array, "b r"]:
  """Log amplitude (natural) by spatial frequency, relative to frequency 0, per image, float32.

  The two-dimensional transform of every channel; amplitudes averaged over channels and over rings of frequencies
  `spectrum_frequencies` (corners beyond pi along the axes belong to none), then the logarithm, minus that of the
  constant part. 0 is flat, -4.6 a hundredth. Amplitudes below 1e-6 of the image's largest count as that.

  Raises:
    ValueError: not [b h w d], or a side below 2.

  Source: Park and Kim (ICLR 2022, arXiv:2202.06709), who average logarithms along the diagonal instead.
  """
  if maps.ndim != 4:
    raise ValueError(f"fourier_spectrum: maps have shape {maps.shape}; expected [b h w d]")
  _check_grid(maps.shape[1:3])
  return _spectrum(maps)


@jax.jit
def _spectrum(maps: Float[Array, "b h w d"]) -> Float[Array, "b r"]:
  amplitude = jnp.abs(jnp.fft.fft2(maps.astype(jnp.float32), axes=(1, 2))).mean(axis=-1)
  rings = jnp.einsum("bhw,rhw->br", amplitude, _rings((maps.shape[1], maps.shape[2])), precision="highest")
  # The largest ring: fine where the maps have no mean, as after a LayerNorm over positions.
  floor = _FLOOR * rings.max(axis=1, keepdims=True)
  log = jnp.log(jnp.maximum(rings, floor))
  return log - log[:, :1]


def _rings(grid: tuple[int, int]) -> Float[np.ndarray, "r h w"]:
  """Weights that average over the frequencies of each ring."""
  h, w = grid
  radius = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)[None]) * 2  # 1 = pi
  count = min(grid) // 2
  nearest = np.rint(radius * count).astype(int)
  member = (nearest == np.arange(count + 1)[:, None, None]) & (radius <= 1 + 1e-9)
  return (member / member.sum(axis=(1, 2), keepdims=True)).astype(np.float32)


def feature_spectra(
  model: nn.Module,
  variables: Any,
  images: Float[Array, "b h w c"],
  *,
  layers: tuple[str, ...] | None = None,
  batch_size: int = 128,
) -> dict[str, Float[np.ndarray, "b r"]]:
  """`fourier_spectrum` of every layer's patch tokens or map, per image: intervals by `bootstrap_mean`.

  A layer whose map has a side below 2 has no spectrum and is left out. Layers on one grid compare point by point.

  Args:
    images: normalised as the model expects.
    layers: taps, by default every layer's.

  Raises:
    ValueError: no images, or a tap that the model lacks.
  """
  return map_batches(partial(_model_spectra, model, variables, layers=layers), images, batch_size=batch_size)


@partial(jax.jit, static_argnames=("model", "layers"))
def _model_spectra(
  model: nn.Module, variables: Any, images: Array, *, layers: tuple[str, ...] | None
) -> dict[str, Array]:
  maps = spatial_taps(model, variables, images, layers)
  return {name: _spectrum(x) for name, x in maps.items() if min(x.shape[1:3]) >= 2}


def _check_grid(grid: tuple[int, ...]) -> None:
  if min(grid) < 2:
    raise ValueError(
      f"maps of {grid[0]}x{grid[1]} have no spatial frequency; both sides need at least 2 cells"
    )
