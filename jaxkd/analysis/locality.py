"""Where a model's attention looks, over a set of images: per head, layer and class, with bootstrap intervals."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxkd.analysis import attention
from jaxkd.analysis.bootstrap import (
  Estimate,
  Method,
  bootstrap_class_means,
  bootstrap_mean,
  resampled_means,
)
from jaxkd.analysis.streaming import check_attends, map_batches, patch_grid, taps_of

ROLLOUT = "rollout_"


def attention_per_image(
  model: nn.Module, variables: Any, images: Float[Array, "b h w c"], *, batch_size: int = 64
) -> dict[str, Float[np.ndarray, "l b h"] | Float[np.ndarray, "l b"]]:
  """Attention statistics of every image: `attention_statistics` by layer and head [l b h], and those of the rollout
  under `rollout_<name>` by layer [l b]. `collapsed` is left out: it is a property of means over images.

  Memory is that of a batch's maps, `2 l b h n^2` floats.

  Args:
    images: normalised as the model expects.

  Raises:
    ValueError: a convolutional model, or no images.
  """
  check_attends(model, "attention_per_image")
  found = map_batches(partial(_statistics, model, variables), images, batch_size=batch_size)
  return {name: np.moveaxis(value, 0, 1) for name, value in found.items()}


@partial(jax.jit, static_argnames="model")
def _statistics(model: nn.Module, variables: Any, images: Array) -> dict[str, Array]:
  taps = taps_of(model, variables, images, ("attn",))
  maps = jnp.stack([taps[f"block{i:02d}/attn"] for i in range(model.num_layers)])
  place = patch_grid(model, images), model.special_tokens
  found = attention.attention_statistics(maps, *place, reduce=None)
  rolled = attention.rollout_statistics(maps, *place, reduce=None)
  found |= {ROLLOUT + name: value for name, value in rolled.items()}
  return {name: value.swapaxes(0, 1) for name, value in found.items() if not name.endswith("collapsed")}


def summarize_attention(
  per_image: dict[str, Float[np.ndarray, "l b *h"]],
  *,
  key: Array,
  resamples: int = 2000,
  confidence: float = 0.95,
  method: Method = "percentile",
) -> dict[str, dict[str, Estimate]]:
  """Means over images with bootstrap intervals, all from the same resamples.

  Returns `heads` (name -> [l h]), `layers` (name -> [l], the mean over heads first) and `model` (name -> scalar, the
  mean over layers too), each with every name of `per_image`; `model` also has `collapsed_heads`, the number of heads
  whose mean distance is below 0.3626 of uniform attention's. A count has no smooth distribution: its interval is the
  percentile one whatever the method.

  Args:
    per_image: from `attention_per_image`.

  Raises:
    ValueError: fewer than 2 images, or options out of range.
  """
  options: dict[str, Any] = {
    "key": key,
    "resamples": resamples,
    "confidence": confidence,
    "method": method,
  }
  by_image = {name: np.moveaxis(np.asarray(x, np.float64), 1, 0) for name, x in per_image.items()}  # [b l *h]
  heads = {name: bootstrap_mean(x, **options) for name, x in by_image.items() if x.ndim == 3}
  by_layer = {name: x.mean(2) if x.ndim == 3 else x for name, x in by_image.items()}
  layers = {name: bootstrap_mean(x, **options) for name, x in by_layer.items()}
  whole = {name: bootstrap_mean(x.mean(1), **options) for name, x in by_layer.items()}
  whole["collapsed_heads"] = _collapsed_heads(by_image["distance_to_uniform"], key, resamples, confidence)
  return {"heads": heads, "layers": layers, "model": whole}


def _collapsed_heads(
  ratio: Float[np.ndarray, "b l h"], key: Array, resamples: int, confidence: float
) -> Estimate:
  draws = (resampled_means(ratio, key=key, resamples=resamples) < attention.COLLAPSED).sum((1, 2))
  tails = [(1 - confidence) / 2, (1 + confidence) / 2]
  low, high = np.quantile(draws, tails, method="inverted_cdf")  # a count is a whole number
  count = (ratio.mean(0) < attention.COLLAPSED).sum()
  return Estimate(*(np.asarray(x, np.float64) for x in (count, low, high)))


def attention_by_class(
  per_image: dict[str, Float[np.ndarray, "l b *h"]],
  labels: Int[np.ndarray, " b"],
  *,
  classes: int,
  key: Array,
  resamples: int = 2000,
  confidence: float = 0.95,
  method: Method = "percentile",
) -> dict[str, dict[str, Estimate]]:
  """The same by class, resampled within each: `layers` (name -> [c l], means over heads) and `model` (name -> [c]).

  A class with one image has infinite bounds, one without images is NaN.

  Raises:
    ValueError: labels that do not fit, or options out of range.
  """
  options: dict[str, Any] = {
    "classes": classes,
    "key": key,
    "resamples": resamples,
    "confidence": confidence,
    "method": method,
  }
  layers, whole = {}, {}
  for name, x in per_image.items():
    by_layer = (x.mean(2) if x.ndim == 3 else x).T
    layers[name] = bootstrap_class_means(by_layer, labels, **options)
    whole[name] = bootstrap_class_means(by_layer.mean(1), labels, **options)
  return {"layers": layers, "model": whole}
