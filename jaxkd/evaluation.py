"""Logits of a model over a split; `jaxkd.classification` measures them."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from scipy.special import softmax

from jaxkd import sharding
from jaxkd.data import Split, make_views
from jaxkd.data.augment import changes_images
from jaxkd.teachers import normalize

HEADS = {"cls": "logits/cls", "mean": "logits", "dist": "logits/dist"}
# What test-time augmentation leaves out of a training config.
NO_MIXING = {"mixup": 0.0, "cutmix": 0.0}
ONE_VIEW = {"global_count": 1, "local_count": 0}


@functools.partial(jax.jit, static_argnames=("model", "names", "mean", "std", "everywhere"))
def _taps(
  model: nn.Module, variables, images, names: tuple[str, ...], mean, std, everywhere=None
) -> dict[str, jax.Array]:
  levels = images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images
  x = normalize(levels, mean, std)
  _, taps = model.apply(variables, x, train=False)
  found = {name: taps[name] for name in names if name in taps}
  return found if everywhere is None else jax.lax.with_sharding_constraint(found, everywhere)


def collect(
  model: nn.Module,
  variables,
  images: np.ndarray,
  *,
  names: tuple[str, ...],
  mean,
  std,
  batch_size: int,
  mesh: Mesh | None = None,
) -> dict[str, np.ndarray]:
  """Taps `names` over uint8 `images` [n h w c] as numpy [n ...]; names the model lacks are left out.

  Every call runs one compiled shape: the last batch is padded and cut. With a `mesh` each of its devices takes a part
  of every batch; in several processes all of them must call this, and all get everything.
  """
  size = min(batch_size, len(images))
  everywhere = None if mesh is None else sharding.replicated(mesh)
  if mesh is not None:  # once, not in every call
    variables = jax.tree.map(
      lambda v: v if isinstance(v, jax.Array) else sharding.put(v, everywhere), variables
    )
  parts = []
  for i in range(0, len(images), size):
    batch: np.ndarray | jax.Array
    if mesh is None:
      batch = images[np.minimum(np.arange(i, i + size), len(images) - 1)]
    else:
      batch = sharding.shard_rows(images, sharding.padded(i, size, len(images), mesh), mesh)
    taps = jax.device_get(_taps(model, variables, batch, names, tuple(mean), tuple(std), everywhere))
    parts.append({k: v[: min(size, len(images) - i)] for k, v in taps.items()})
  return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


def head_logits(
  model: nn.Module, variables, split: Split, *, mean, std, batch_size: int, mesh: Mesh | None = None
) -> dict[str, np.ndarray]:
  """`{"cls": [n c], "mean": ..., "dist": ...}`: cls always, the others for a model with a distillation head."""
  options = {"mean": mean, "std": std, "batch_size": batch_size, "mesh": mesh}
  taps = collect(model, variables, split.images, names=tuple(HEADS.values()), **options)
  return _heads(taps)


def _heads(taps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  heads = HEADS if "logits/dist" in taps else {"cls": "logits/cls"}
  logits = {head: taps[name] for head, name in heads.items()}
  if "mean" in logits:
    logits["mean"] = (taps["logits/cls"] + taps["logits/dist"]) / 2
  return logits


@functools.partial(jax.jit, static_argnames=("mean", "augment", "views"))
def _seeded_views(images, index, view, key, mean, augment, views) -> jax.Array:
  """One augmented view of each uint8 image [b h w c], levels in [0, 1], drawn from its index in the split alone."""
  unmixed, single = dict(augment) | NO_MIXING, dict(views) | ONE_VIEW

  def one(image, i):
    k = jax.random.fold_in(jax.random.fold_in(key, i), view)
    return make_views(image[None], k, mean=mean, augment=unmixed, views=single)["student"][0]

  return jax.vmap(one)(images, index)


def augmented_probabilities(
  model: nn.Module,
  variables,
  images: np.ndarray,
  *,
  count: int,
  augment: dict,
  views: dict,
  mean,
  std,
  batch_size: int,
  seed: int = 0,
) -> dict[str, np.ndarray]:
  """Class probabilities [n c] by head, averaged over the original and `count` augmented views of each image.

  The views are those of training (geometry and photometry, one full-size view, no mixing). What an image's views are
  depends on `seed` and its place in `images` only, not on the batches.

  Args:
    images: uint8 [n h w c]. augment, views: `config.data.augment` and `config.data.views` as dicts.

  Raises:
    ValueError: `count` below 1, or options that change nothing, so that all views are the original.
  """
  static = tuple(augment.items()), tuple(views.items())
  if count < 1 or not changes_images(augment, views):
    raise ValueError(f"{count} augmented views of {augment}: needs a view, and an option that changes images")
  split = Split(images, np.zeros(len(images), np.int64))
  options: dict[str, Any] = {"mean": tuple(mean), "std": tuple(std), "batch_size": batch_size}
  total = {h: softmax(z, axis=1) for h, z in head_logits(model, variables, split, **options).items()}
  key, size = jax.random.key(seed), min(batch_size, len(images))
  names = tuple(HEADS.values())
  for i in range(0, len(images), size):
    # The last batch is moved back, so that every call runs one compiled shape.
    index = np.arange(i, i + size) - max(0, i + size - len(images))
    new = slice(i - index[0], None)
    for view in range(count):
      seen = _seeded_views(images[index], index, view, key, tuple(mean), *static)
      taps = jax.device_get(_taps(model, variables, seen, names, tuple(mean), tuple(std)))
      for head, logits in _heads(taps).items():
        total[head][index[new]] += softmax(logits[new], axis=1)
  return {head: p / (count + 1) for head, p in total.items()}


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
  """Share of rows whose largest logit is the label's."""
  return float((logits.argmax(1) == labels).mean())


def log_likelihood_loss(logits: np.ndarray, labels: np.ndarray) -> float:
  """Mean cross entropy in nats."""
  log_p = logits - np.logaddexp.reduce(logits.astype(np.float64), axis=1, keepdims=True)
  return float(-log_p[np.arange(len(labels)), labels].mean())


def log_probabilities(p: np.ndarray) -> np.ndarray:
  """Probabilities as logits; 0 becomes log of the smallest float32, so that a loss stays finite."""
  return np.log(np.maximum(p, 1e-38))
