"""The parts of the augmentation of `bench.data`, each compiled and timed alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import schema
from jaxkd.data import augment, packing, photometry, policies
from jaxkd.teachers import normalize

RUNS = 20  # of a part in one round


def parts(images: np.ndarray, options: dict, *, mean, std, rounds: int) -> dict[str, float]:
  """Median milliseconds for one batch; of the policy also each operation, on as many images as its slices have."""
  made = jobs(images, options, mean=mean, std=std)
  taken: dict[str, list[float]] = {name: [] for name in made}
  for _ in range(rounds + 1):  # the first compiles
    for name, (compute, arguments) in made.items():
      start = time.perf_counter()
      for _ in range(RUNS):
        jax.block_until_ready(compute(*arguments))
      taken[name].append(1e3 * (time.perf_counter() - start) / RUNS)
  return {name: float(np.median(values[1:])) for name, values in taken.items()}


def jobs(images: np.ndarray, options: dict, *, mean, std) -> dict[str, tuple[Callable, tuple]]:
  views: dict[str, Any] = {name: field.default for name, field in schema.DATA["views"].items()}  # type: ignore[attr-defined]
  complete = augment.completed(options)

  def draw(key):
    return augment.draw_views(key, images.shape, augment=complete, views=views)[0]

  def move(images, drawn):
    return augment._geometry(images, images, drawn, complete, views)

  def finish(levels, drawn):
    return normalize(photometry.apply_photometry(levels, drawn.photometry, mean=mean), std=std, mean=mean)

  drawn = jax.jit(draw)(jax.random.key(0))
  levels = packing.pack(jnp.asarray(images))
  return {
    "draws": (jax.jit(draw), (jax.random.key(0),)),
    "crop, flip and the policy's geometry": (jax.jit(move), (images, drawn)),
    "the policy's photometry": (jax.jit(policies.apply_photometry), (levels, drawn.plan)),
    **operations(levels, drawn.plan),
    "Cutout, floats, normalise": (jax.jit(finish), (levels, drawn)),
  }


def operations(levels: jax.Array, plan: policies.Plan) -> dict[str, tuple[Callable, tuple]]:
  found = {}
  for name, operation in policies.OPERATIONS.items():
    slots = sum(capacity[policies.ID[name]] for capacity in plan.capacity) * (len(levels) // policies.SHARD)
    if slots:
      found[f"- {name}, {slots} images"] = (jax.jit(operation), (levels[:slots], jnp.full(slots, 0.5)))
  return found
