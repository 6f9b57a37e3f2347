"""All analyses of one model, and the similarities between models, on the same images, as plain dicts.

The dicts follow the schema `jaxkd.forensics/1` that `jaxkd.report` documents and draws.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd import evaluation
from jaxkd.analysis import attention, hessian, similarity, statistics
from jaxkd.data import Split
from jaxkd.errors import is_out_of_memory
from jaxkd.teachers import normalize

log = logging.getLogger("jaxkd")
SCHEMA = "jaxkd.forensics/1"
CHUNK = 50  # images whose gradient is linearised at once; the residuals stay in memory


@dataclasses.dataclass(frozen=True)
class Subject:
  """A model under examination, built in float32 with XLA attention. `about` is copied into its entry."""

  name: str
  model: nn.Module
  variables: Any
  mean: tuple[float, ...]
  std: tuple[float, ...]
  about: dict[str, Any]


def examine(
  subject: Subject,
  test: Split,
  sample: Split,
  *,
  images: int,
  probes: int,
  key: jax.Array,
  batch_size: int = 256,
) -> dict[str, Any]:
  """The entry of one model: accuracy on `test`, curvature on `sample`, attention on the first `images` of `test`.

  Curvature and accuracy are None for a model without a classifier, attention for one without attention.
  """
  classifies = bool(subject.about["num_classes"])
  return {
    "name": subject.name,
    **{k: v for k, v in subject.about.items() if k != "num_classes"},
    "parameters": sum(x.size for x in jax.tree.leaves(subject.variables["params"])),
    "special_tokens": subject.model.special_tokens,
    "grid": list(subject.model.grid) if _attends(subject.model) else None,
    "accuracy": _accuracy(subject, test, batch_size) if classifies else {},
    "hessian": _hessian(subject, sample, probes, key) if classifies else None,
    "attention": _attention(subject, test.images[:images], batch_size) if _attends(subject.model) else None,
  }


def _attends(model: nn.Module) -> bool:
  return model.special_tokens > 0


def _accuracy(subject: Subject, test: Split, batch_size: int) -> dict[str, dict[str, float]]:
  logits = evaluation.head_logits(
    subject.model, subject.variables, test, mean=subject.mean, std=subject.std, batch_size=batch_size
  )
  out = {}
  for head, z in logits.items():
    interval = statistics.wilson(int((z.argmax(1) == test.labels).sum()), len(test))
    out[head] = {"value": interval.mean, "low": interval.low, "high": interval.high}
  return out


@functools.cache
def _cls_loss(model: nn.Module):
  """Cross entropy of the cls logits on hard labels, no smoothing, evaluation mode (spec 6)."""

  def loss(params, batch):
    _, taps = model.apply({"params": params, **batch["stats"]}, batch["images"], train=False)
    return optax.losses.softmax_cross_entropy_with_integer_labels(taps["logits/cls"], batch["labels"]).mean()

  return loss


def _hessian(subject: Subject, sample: Split, probes: int, key: jax.Array) -> dict[str, Any]:
  params = subject.variables["params"]
  stats = {k: v for k, v in subject.variables.items() if k != "params"}
  images = normalize(sample.images.astype(np.float32) / 255, subject.mean, subject.std)
  loss = _cls_loss(subject.model)
  for size in _chunks(len(sample)):
    batches = [
      {"images": images[i : i + size], "labels": sample.labels[i : i + size], "stats": stats}
      for i in range(0, len(sample), size)
    ]
    try:
      estimate = hessian.hessian_trace(loss, params, batches, key=key, probes=probes)
      break
    except RuntimeError as e:
      if size == 1 or not is_out_of_memory(e):
        raise
      log.warning("%s: out of device memory with %d images at once; trying fewer", subject.name, size)
  return {
    "trace": estimate.mean,
    "stderr": estimate.stderr,
    "probes": estimate.probes,
    "images": len(sample),
    "loss": float(np.mean([jax.jit(loss)(params, b) for b in batches])),
    "per_block": {name: list(pair) for name, pair in estimate.per_block.items()},
  }


def _chunks(images: int) -> list[int]:
  """Numbers of images to linearise at once: the largest divisor of `images` up to CHUNK, then at most half of the one
  before, down to 1. Equal chunks make the mean over chunks the mean over images."""
  sizes = [max(d for d in range(1, min(CHUNK, images) + 1) if images % d == 0)]
  while sizes[-1] > 1:
    sizes.append(max(d for d in range(1, sizes[-1] // 2 + 1) if images % d == 0))
  return sizes


@functools.partial(jax.jit, static_argnames=("model", "mean", "std"))
def _attention_statistics(model: nn.Module, variables, images, mean, std) -> dict[str, jax.Array]:
  x = normalize(images.astype(jnp.float32) / 255, mean, std)
  _, taps = model.apply(variables, x, train=False, want=("attn",))
  maps = jnp.stack([taps[f"block{i:02d}/attn"] for i in range(model.num_layers)])
  return attention.attention_statistics(maps, model.grid, model.special_tokens, reduce=None)


def _attention(subject: Subject, images: np.ndarray, batch_size: int) -> dict[str, Any]:
  parts = [
    jax.device_get(_attention_statistics(subject.model, subject.variables, part, subject.mean, subject.std))
    for part in np.array_split(images, -(-len(images) // batch_size))
  ]
  per_image = {k: np.concatenate([p[k] for p in parts], axis=1) for k in parts[0]}  # [l b h]
  uniform = attention.uniform_distance(subject.model.grid)
  distance = per_image["mean_distance"]
  collapsed = distance.mean(1) < attention.COLLAPSED * uniform
  layer = distance.mean(2)  # [l b]
  return {
    "images": len(images),
    "uniform_distance": uniform,
    **{k: v.mean(1).tolist() for k, v in per_image.items() if k != "collapsed"},
    "collapsed": collapsed.tolist(),
    "layer_distance": {
      "mean": layer.mean(1).tolist(),
      "stderr": (layer.std(1, ddof=1) / np.sqrt(layer.shape[1])).tolist(),
    },
  }


def layer_features(subject: Subject, images: np.ndarray, batch_size: int = 256) -> dict[str, np.ndarray]:
  """Patch tokens or maps of every layer, flattened per image: {layer: [n d] float32}."""
  prefix, count = (
    ("block{:02d}/tokens", "num_layers") if _attends(subject.model) else ("stage{}", "num_layers")
  )
  names = tuple(prefix.format(i) for i in range(getattr(subject.model, count)))
  taps = evaluation.collect(
    subject.model,
    subject.variables,
    images,
    names=names,
    mean=subject.mean,
    std=subject.std,
    batch_size=batch_size,
  )
  special = subject.model.special_tokens
  return {
    n: (x[:, special:] if x.ndim == 3 else x).reshape(len(x), -1).astype(np.float32) for n, x in taps.items()
  }


def similarities(subjects: list[Subject], images: np.ndarray) -> list[dict[str, Any]]:
  """Debiased linear CKA, layer by layer, of every model with itself and with every other one."""
  features = {s.name: layer_features(s, images) for s in subjects}
  names = list(features)
  return [_similarity(a, b, features, len(images)) for i, a in enumerate(names) for b in names[i:]]


def _similarity(a: str, b: str, features: dict[str, dict[str, np.ndarray]], images: int) -> dict[str, Any]:
  first, second = list(features[a].values()), list(features[b].values())
  matrix = similarity.cka_matrix(first, first if a == b else second)
  return {
    "a": a,
    "b": b,
    "layers_a": [n.removesuffix("/tokens") for n in features[a]],
    "layers_b": [n.removesuffix("/tokens") for n in features[b]],
    "matrix": np.asarray(matrix).tolist(),
    "images": images,
    "estimator": "debiased linear, flattened patch tokens, one row per image",
  }
