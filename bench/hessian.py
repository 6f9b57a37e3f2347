"""Hutchinson probes per second beside PyTorch's double backward, as PyHessian does it. Needs torch.

  python -m bench.hessian [--images 64] [--probes 10] [--rounds 3] [--chunk 16] [--brief] [--out FILE]

DeiT-Tiny with random weights on random 32 px images, cross entropy of the cls logits, all parameters, float32, the same
threads. The torch side is ours, after PyHessian: gradients with their graph once for all images, then
`torch.autograd.grad` against a random sign vector and the product with it for each probe; attention is written out,
because the fused kernels have no second derivative. Before timing, both must give the same v'Hv for equal v. A round
times the whole job on both sides, first gradient or linearisation included, in alternating order. Also reported: the
same with `jax.jvp` of `jax.grad` and with Hv of the linear map, to see what each step brought, and the peak memory of a
process that runs our side alone.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd import models, run_folder
from jaxkd.analysis import hessian_trace, rademacher_like
from jaxkd.analysis.curvature.products import linear_map

KEY = jax.random.key(1)


class Job:
  """Model, loss and batches on our side."""

  def __init__(self, images: int, chunk: int):
    self.model = models.create("deit_tiny", image_size=32, patch_size=4, num_classes=10, attention="xla")
    rng = np.random.default_rng(0)
    self.images = rng.normal(size=(images, 32, 32, 3)).astype(np.float32)
    self.labels = np.arange(images) % 10
    self.params = jax.jit(self.model.init)(jax.random.key(0), self.images[:1])["params"]
    parts = [slice(i, i + chunk) for i in range(0, images, chunk)]
    self.batches = [(self.images[p], self.labels[p]) for p in parts]
    self.weights = [len(labels) for _, labels in self.batches]

  @functools.cached_property
  def loss(self) -> Any:
    def loss(params: Any, batch: Any) -> jax.Array:
      _, taps = self.model.apply({"params": params}, batch[0], train=False)
      return optax.losses.softmax_cross_entropy_with_integer_labels(taps["logits/cls"], batch[1]).mean()

    return loss

  def probes(self, count: int) -> np.ndarray:
    found = hessian_trace(self.loss, self.params, self.batches, key=KEY, probes=count, weights=self.weights)
    return found.values


def whole_products(job: Job, count: int) -> np.ndarray:
  """v'Hv from Hv of the linear map: six products of matrices a layer instead of four."""

  @jax.jit
  def probe(hvp: Any, index: jax.Array) -> jax.Array:
    v = rademacher_like(jax.random.fold_in(KEY, index), job.params)
    return sum(jnp.sum(a * b) for a, b in zip(*map(jax.tree.leaves, (v, hvp(v))), strict=True))

  job.whole = probe = getattr(job, "whole", probe)
  return _streamed(job, count, lambda batch: linear_map(job.loss, job.params, batch), probe)


def repeated_jvp(job: Job, count: int) -> np.ndarray:
  """v'Hv by `jax.jvp` of `jax.grad`, which computes the gradient again for every probe."""

  @jax.jit
  def probe(batch: Any, index: jax.Array) -> jax.Array:
    v = rademacher_like(jax.random.fold_in(KEY, index), job.params)
    _, product = jax.jvp(jax.grad(lambda p: job.loss(p, batch)), (job.params,), (v,))
    return sum(jnp.sum(a * b) for a, b in zip(*map(jax.tree.leaves, (v, product)), strict=True))

  job.jvp = probe = getattr(job, "jvp", probe)
  return _streamed(job, count, lambda batch: batch, probe)


def _streamed(job: Job, count: int, prepare: Any, probe: Any) -> np.ndarray:
  total = np.zeros(count)
  with jax.default_matmul_precision("highest"):
    for batch, weight in zip(job.batches, job.weights, strict=True):
      prepared = prepare(batch)
      total += weight * np.array(jax.device_get([probe(prepared, jnp.uint32(i)) for i in range(count)]))
  return total / sum(job.weights)


class DoubleBackward:
  """The torch side."""

  def __init__(self, job: Job):
    import torch

    from jaxkd.weights import reference, to_torch

    self.torch, self.job = torch, job
    self.layout = lambda params: to_torch("deit_tiny", {"params": params}, style="timm")
    self.module = reference.load(reference.build(job.model, "timm"), self.layout(job.params))
    self.params = {k: p for k, p in self.module.named_parameters() if not k.startswith("head_dist")}
    self.images = torch.from_numpy(np.ascontiguousarray(job.images.transpose(0, 3, 1, 2)))
    self.labels = torch.from_numpy(job.labels)

  def probes(self, count: int, vectors: Any = None) -> np.ndarray:
    """v'Hv of `count` random sign vectors, or of the given ones."""
    torch, params = self.torch, list(self.params.values())
    loss = torch.nn.functional.cross_entropy(self.module(self.images)["logits/cls"], self.labels)
    gradients = torch.autograd.grad(loss, params, create_graph=True)
    out = []
    for i in range(count):
      v = vectors[i] if vectors else [torch.randint_like(p, high=2) * 2 - 1 for p in params]
      product = torch.autograd.grad(gradients, params, grad_outputs=v, retain_graph=True)
      out.append(sum((a * b).sum() for a, b in zip(v, product, strict=True)).item())
    return np.array(out)

  def as_ours(self, index: int) -> list[Any]:
    """The vector of our probe of this index."""
    vector = rademacher_like(jax.random.fold_in(KEY, index), self.job.params)
    state = self.layout(jax.device_get(vector))
    return [self.torch.from_numpy(state[name]) for name in self.params]


def seconds(run: Any, count: int) -> float:
  time.sleep(0.3)  # the other side's threads spin for a while
  start = time.perf_counter()
  run(count)
  return time.perf_counter() - start


def measure(images: int, probes: int, rounds: int, chunk: int, *, brief: bool) -> dict[str, Any]:
  job = Job(images, chunk)
  theirs = DoubleBackward(job)
  ours, expected = job.probes(2), theirs.probes(2, [theirs.as_ours(i) for i in range(2)])
  error = float(np.max(np.abs(ours / expected - 1)))
  if error > 1e-3:
    raise SystemExit(f"v'Hv differ: {ours} here, {expected} by torch; not the same work")
  steps = {
    "whole Hv": lambda n: whole_products(job, n),
    "jvp of grad": lambda n: repeated_jvp(job, n),
  }
  steps = {} if brief else steps
  for run in steps.values():
    run(1)  # compiles
  sides = {"jaxkd": job.probes, **steps, "torch double backward": theirs.probes}
  times: dict[str, list[float]] = {}
  for i in range(rounds):
    for name in list(sides)[:: 1 if i % 2 else -1]:
      times.setdefault(name, []).append(seconds(sides[name], probes))
  rates = {name: [probes / t for t in s] for name, s in times.items()}
  medians = {name: float(np.median(r)) for name, r in rates.items()}
  return {
    "images": images,
    "probes": probes,
    "images_linearised_at_once": chunk,
    "largest relative difference of v'Hv": error,
    "probes_per_s": {
      n: {"median": medians[n], "low": min(r), "high": max(r), "n": rounds} for n, r in rates.items()
    },
    "jaxkd / torch": medians["jaxkd"] / medians["torch double backward"],
    "jaxkd / torch by round": [
      a / b for a, b in zip(rates["jaxkd"], rates["torch double backward"], strict=True)
    ],
    "torch_threads": theirs.torch.get_num_threads(),
    "torch": theirs.torch.__version__,
    "jax": jax.__version__,
    "hardware": run_folder.hardware(),
  }


def alone(images: int, probes: int, chunk: int) -> dict[str, float]:
  """Our side in a process of its own: wall time with and without compilation, and peak resident memory."""
  job = Job(images, chunk)
  first = seconds(job.probes, probes)
  again = seconds(job.probes, probes)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return {"first_call_s": first, "second_call_s": again, "peak_memory_mb": peak / 1024, "probes": probes}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--images", type=int, default=64)
  parser.add_argument("--probes", type=int, default=10)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--chunk", type=int, default=16)
  parser.add_argument("--out", type=Path, help="adds this run to a JSON file")
  parser.add_argument("--brief", action="store_true", help="leave out jvp of grad and the whole Hv")
  parser.add_argument("--alone", action="store_true", help="our side only, 10 probes: time and memory")
  args = parser.parse_args()
  if args.alone:
    result = alone(args.images, 10, args.chunk)
  else:
    result = measure(args.images, args.probes, args.rounds, args.chunk, brief=args.brief)
  print(json.dumps(result, indent=2))
  if args.out:
    command = " ".join(["python -m bench.hessian", *sys.argv[1:]])
    _record(args.out, {"command": command, "date": str(datetime.date.today()), **result})


def _record(path: Path, run: dict[str, Any]) -> None:
  runs = json.loads(path.read_text())["runs"] if path.exists() else []
  path.write_text(json.dumps({"runs": [*runs, run]}, indent=2) + "\n")


if __name__ == "__main__":
  main()
