"""How long forensics will take, before anything is compiled: operations counted, the machine's speed measured."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.analysis.examination import ERF_IMAGES, PICTURES, PROBE_IMAGES, SHARES, Subject
from jaxkd.analysis.flatness import ITERATIONS, POINTS, STARTS, TOP
from jaxkd.analysis.streaming import attends

# What one analysis costs in forward passes of an image (a Hessian probe is 4, a linearisation too), and what share of
# the speed of a large matrix product such programs reach on a CPU; both measured with DeiT-Tiny at 32 pixels.
PROBE, LINEARISATION = 4.0, 4.0
EFFICIENCY = 0.35
COMPILATION = {  # seconds per architecture of 12 layers, without a compilation cache; they grow with the depth
  "accuracy": 3.0,
  "hessian": 25.0,
  "heads": 6.0,
  "eigenvalues": 12.0,
  "landscape": 20.0,
  "attention": 6.0,
  "cka": 5.0,
  "rbf": 5.0,
  "alignment": 6.0,
  "probes": 4.0,
  "locality": 25.0,
  "robustness": 12.0,
  "saliency": 12.0,
  "features": 4.0,
}


@dataclasses.dataclass(frozen=True)
class Prediction:
  """Seconds of computing and of compiling; the latter is small when the programs are cached from an earlier run."""

  computing: float
  compiling: float

  @property
  def words(self) -> str:
    total = self.computing + self.compiling
    return f"predicted time: about {span(total)}, of which up to {span(self.compiling)} compiling"


def span(seconds: float) -> str:
  """`45 s`, `3 min 20 s`, `2 h 5 min`."""
  whole = max(round(seconds), 1)
  if whole < 90:
    return f"{whole} s"
  if whole < 90 * 60:
    return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
  return f"{whole // 3600} h {whole % 3600 // 60} min"


def predict(
  subjects: Sequence[Subject],
  metrics: Collection[str],
  *,
  test_images: int,
  images: int,
  hessian_images: int,
  probes: int,
  speed: float | None = None,
) -> Prediction:
  """Seconds for `metrics` of `subjects`.

  Args:
    speed: floating-point operations per second of a large matrix product; None measures it (a tenth of a second).
  """
  speed = EFFICIENCY * (speed or matmul_speed())
  work = 0.0
  for s in subjects:
    forward = forward_operations(s)
    passes = float(test_images) if s.classifies else 0.0
    passes += _passes(s, metrics, images=images, hessian_images=hessian_images, probes=probes)
    work += passes * forward
  pairs = len(subjects) * (len(subjects) + 1) / 2
  work += (
    sum(m in metrics for m in ("cka", "rbf")) * pairs * 2 * images * max(map(forward_operations, subjects))
  )
  depths = {s.model: s.model.num_layers for s in subjects}
  each = sum(v for k, v in COMPILATION.items() if k in metrics or k == "accuracy")
  compiling = each * sum(0.25 + 0.75 * depth / 12 for depth in depths.values())
  return Prediction(work / speed, compiling)


def _passes(s: Subject, metrics: Collection[str], *, images: int, hessian_images: int, probes: int) -> float:
  """Forward passes of one image that the analyses of one model amount to."""
  depth = s.model.num_layers
  cost = {
    "hessian": hessian_images * (LINEARISATION + PROBE * probes) if s.classifies else 0.0,
    "heads": hessian_images * 2.0 * probes if s.classifies else 0.0,
    "eigenvalues": hessian_images * PROBE * (TOP + ITERATIONS * (1 + STARTS)) if s.classifies else 0.0,
    "landscape": hessian_images * (POINTS**2 + 2.0 * probes + 9.0) if s.classifies else 0.0,
    "attention": 1.5 * images if attends(s.model) else 0.0,
    "alignment": float(images),
    "probes": 2.0 * PROBE_IMAGES,
    "locality": images + ERF_IMAGES * 1.5 * depth,
    "robustness": 4.0 * len(SHARES) * images if s.classifies else 0.0,
    "saliency": 9.0 * PICTURES,
    "features": 3.0 * PICTURES,
  }
  return sum(v for k, v in cost.items() if k in metrics)


def forward_operations(subject: Subject) -> float:
  """Floating-point operations of one image's forward pass, from the lowered program (nothing is compiled)."""
  model = subject.model
  shape = (1, *subject.side, model.in_channels)
  lowered = jax.jit(lambda v, x: model.apply(v, x, train=False)[0]).lower(
    jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), subject.variables),
    jax.ShapeDtypeStruct(shape, jnp.float32),
  )
  counted = lowered.cost_analysis()
  assert counted is not None, "XLA counts operations on CPU, GPU and TPU"
  return float(counted["flops"])


def matmul_speed(size: int = 768, rounds: int = 6) -> float:
  """Operations per second of a float32 matrix product of this size: the best of some rounds."""
  x = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)), jnp.float32)
  product = jax.jit(lambda a: a @ a)
  product(x).block_until_ready()
  best = np.inf
  for _ in range(rounds):
    start = time.perf_counter()
    product(x).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 2 * size**3 / best
