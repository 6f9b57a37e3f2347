"""Curvature of a model's evaluation loss as plain data: trace by part, eigenvalues, slices of the landscape, sharpness.

The loss is the cross entropy of the cls logits on hard labels, no smoothing, in evaluation mode, over a fixed sample
that goes through in equal chunks. A chunk that does not fit into the device's memory is halved.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from jaxkd.analysis import hessian
from jaxkd.analysis.curvature.ggn import ggn_trace
from jaxkd.analysis.curvature.groups import layer_type
from jaxkd.analysis.curvature.lanczos import spectral_density, top_eigenvalues
from jaxkd.analysis.curvature.landscape import filter_normalized, loss_slice
from jaxkd.analysis.curvature.sharpness import sharpness
from jaxkd.analysis.examination import Subject
from jaxkd.analysis.plain import plain
from jaxkd.analysis.streaming import attends, spread
from jaxkd.data import Split
from jaxkd.errors import is_out_of_memory

log = logging.getLogger("jaxkd")
PARTS = ("hessian", "heads", "eigenvalues", "landscape")
CHUNK = 16  # images whose gradient is linearised at once; the residuals stay in memory
TOP, ITERATIONS, STARTS = 5, 20, 3  # eigenvalues, Lanczos steps for them and for each start of the density
POINTS = 11  # of a slice, from -REACH to REACH
REACH = 1.0  # in filter norms
RHO = {"plain": 0.05, "adaptive": 0.5}  # radii of the balls of SAM and ASAM

Batches = list[dict[str, Any]]


@functools.cache
def cls_loss(model: nn.Module) -> Callable[[Any, dict[str, Any]], jax.Array]:
  """Mean cross entropy of a batch {images (normalised), labels, stats}; the same object for the same model."""

  def loss(params, batch):
    logits = _cls_logits(model)(params, batch)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()

  return loss


@functools.cache
def _cls_logits(model: nn.Module):
  def logits(params, batch):
    _, taps = model.apply({"params": params, **batch["stats"]}, batch["images"], train=False)
    return taps["logits/cls"]

  return logits


def examined(
  subject: Subject, sample: Split, metrics: Collection[str], *, probes: int, key: jax.Array
) -> dict[str, Any]:
  """What `metrics` names of PARTS: `hessian`, `eigenvalues`, `landscape`, and `probe_values` [p] for pairing."""
  images, params = subject.shown(sample.images).images, subject.variables["params"]
  stats = {k: v for k, v in subject.variables.items() if k != "params"}
  for size in chunks(len(sample)):
    batches = [
      spread({"images": images[i : i + size], "labels": np.asarray(sample.labels[i : i + size])})
      | {"stats": stats}
      for i in range(0, len(sample), size)
    ]
    try:
      return _parts(subject, params, batches, len(sample), metrics, probes=probes, key=key)
    except RuntimeError as e:
      if size == 1 or not is_out_of_memory(e):
        raise
      log.warning("%s: out of device memory with %d images at once; trying fewer", subject.name, size)
  raise AssertionError("chunks end at 1")


def chunks(images: int) -> list[int]:
  """Numbers of images to linearise at once: the largest divisor of `images` up to CHUNK, then at most half of the one
  before, down to 1. Equal chunks make the mean over chunks the mean over images."""
  sizes = [max(d for d in range(1, min(CHUNK, images) + 1) if images % d == 0)]
  while sizes[-1] > 1:
    sizes.append(max(d for d in range(1, sizes[-1] // 2 + 1) if images % d == 0))
  return sizes


def _parts(
  subject: Subject,
  params,
  batches: Batches,
  images: int,
  metrics: Collection[str],
  *,
  probes: int,
  key: jax.Array,
) -> dict[str, Any]:
  out: dict[str, Any] = {}
  if {"hessian", "heads"} & set(metrics):
    heads = subject.model.heads if "heads" in metrics and attends(subject.model) else None
    out["hessian"], out["probe_values"] = _trace(subject, params, batches, images, probes, key, heads)
  if "eigenvalues" in metrics:
    out["eigenvalues"] = _eigenvalues(subject, params, batches, key)
  if "landscape" in metrics:
    out["landscape"] = _landscape(subject, params, batches, probes, key)
  return out


def _trace(
  subject: Subject, params, batches: Batches, images: int, probes: int, key: jax.Array, heads: int | None
) -> tuple[dict[str, Any], np.ndarray]:
  """Hutchinson's trace with standard error and t interval over probes, whole and by part."""
  loss = cls_loss(subject.model)
  found = hessian.hessian_trace(loss, params, batches, key=key, probes=probes, heads=heads)
  low, high = found.interval
  entry = {
    "trace": found.mean,
    "stderr": found.stderr,
    "low": low,
    "high": high,
    "probes": found.probes,
    "images": images,
    "loss": float(np.mean([jax.jit(loss)(params, b) for b in batches])),
    "per_block": {name: list(pair) for name, pair in found.per_block.items()},
    "per_type": {name: list(pair) for name, pair in found.by(layer_type).items()},
  }
  if heads:
    entry["per_head"] = {name: list(pair) for name, pair in found.per_head.items()}
  return entry, found.values


def _eigenvalues(subject: Subject, params, batches: Batches, key: jax.Array) -> dict[str, Any]:
  """The largest eigenvalues with error bounds, and the density of all on a grid."""
  loss = cls_loss(subject.model)
  top = top_eigenvalues(loss, params, batches, key=key, k=TOP, iterations=ITERATIONS)
  density = spectral_density(loss, params, batches, key=key, starts=STARTS, iterations=ITERATIONS)
  low, high = float(density.nodes.min()), float(density.nodes.max())
  width = max(high - low, 1e-6)
  points = np.linspace(low - 0.05 * width, high + 0.05 * width, 200)
  value, stderr = density.on(points, 0.01 * width)
  return plain(
    {
      "values": top.values,
      "errors": top.errors,
      "iterations": ITERATIONS,
      "starts": STARTS,
      "negative_share": density.share_between(-np.inf, -1e-3 * width),
      "density": {"points": points, "value": value, "stderr": stderr},
    }
  )


def _landscape(subject: Subject, params, batches: Batches, probes: int, key: jax.Array) -> dict[str, Any]:
  """The loss on a plane of two filter-normalised random directions, sharpness, and the Gauss-Newton trace."""
  loss, steps = cls_loss(subject.model), np.linspace(-REACH, REACH, POINTS)
  random = [filter_normalized(jax.random.fold_in(key, 100 + i), params) for i in range(2)]
  plane = loss_slice(loss, params, batches, random, steps, steps)
  balls = {
    name: sharpness(loss, params, batches, rho=rho, adaptive=name == "adaptive") for name, rho in RHO.items()
  }
  gauss_newton = ggn_trace(_cls_logits(subject.model), params, batches, key=key, probes=probes)
  return plain(
    {
      "steps": steps,
      "plane": plane,
      "sharpness": {
        name: {"rho": RHO[name], "value": s.value, "one_step": s.one_step} for name, s in balls.items()
      },
      "ggn": {"trace": gauss_newton.mean, "stderr": gauss_newton.stderr, "probes": gauss_newton.probes},
    }
  )
