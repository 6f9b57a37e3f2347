"""Writes tests/parity/goldens/hessian.npz: v'Hv and traces by torch's double backward, and a twin in float64.

pip install torch==2.13.0
python -m tests.parity.make_hessian_goldens
"""

import jax
import numpy as np
import torch
from torch.nn import functional as F

from jaxkd import models
from jaxkd.analysis import rademacher_like
from jaxkd.weights import reference, to_torch

from . import hessian_cases as cases
from .cases import CASES


def products(loss, params, vectors):
  """[vectors params] of v . Hv by parameter: the gradients with their graph once, then one backward each."""
  names = list(params)
  gradients = torch.autograd.grad(loss, [params[n] for n in names], create_graph=True)
  found = []
  for vector in vectors:
    v = [vector[n] for n in names]
    product = torch.autograd.grad(gradients, [params[n] for n in names], v, retain_graph=True)
    found.append([float((a * b).sum()) for a, b in zip(v, product, strict=True)])
  return np.array(found)


def build(name, state):
  module = reference.build(models.create(CASES[name].name, **CASES[name].options), CASES[name].style)
  return reference.load(module, state)


def loss_of(module, images, labels):
  images = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
  return F.cross_entropy(module(images)["logits/cls"], torch.from_numpy(labels))


def parameters(module):
  return {k: p for k, p in module.named_parameters() if not k.startswith("head_dist")}


def measure(name, module, params, images, labels=cases.LABELS):
  """(v'Hv with our vectors, values of torch's own vectors [probes keys], keys)."""
  used = parameters(module)
  equal = []
  for i in range(cases.EQUAL):
    vector = jax.jit(rademacher_like)(jax.random.fold_in(cases.KEY, i), params)
    state = to_torch(CASES[name].name, {"params": jax.device_get(vector)}, style=CASES[name].style)
    equal.append({k: torch.from_numpy(state[k]) for k in used})
  torch.manual_seed(0)
  own = [{k: torch.randint_like(p, high=2) * 2 - 1 for k, p in used.items()} for _ in range(cases.OWN)]
  values = products(loss_of(module, images, labels), used, [*equal, *own])
  return values[: cases.EQUAL].sum(axis=1), values[cases.EQUAL :], list(used)


def twin_loss(params, x, y):
  """`hessian_cases.twin_loss`, by torch's own layers."""
  width = x.shape[-1]
  norm = lambda z: F.layer_norm(z, (width,), eps=1e-6)  # noqa: E731
  q, k, v = (norm(x) * params["scale"] @ params["qkv"]).chunk(3, dim=-1)
  x = x + (q @ k.transpose(1, 2) / width**0.5).softmax(-1) @ v @ params["proj"]
  x = x + F.gelu(norm(x) @ params["up"]) @ params["down"]
  return F.cross_entropy(norm(x)[:, 0] @ params["head"], y)


def twin():
  """v . Hv of the twin by parameter, [vectors params], float64."""
  params, x, y, vectors = cases.twin_arrays()
  params = {k: torch.from_numpy(p).requires_grad_() for k, p in params.items()}
  vectors = [{k: torch.from_numpy(p) for k, p in v.items()} for v in vectors]
  return products(twin_loss(params, torch.from_numpy(x), torch.from_numpy(y)), params, vectors)


def main() -> None:
  arrays = {"twin": twin()}
  for name in cases.NAMES:
    state, images = cases.golden(name)
    _, params, _ = cases.ours(name, state, images)
    forms, values, keys = measure(name, build(name, state), params, images)
    arrays |= {f"{name}/forms": forms, f"{name}/values": values, f"{name}/keys": np.array(keys)}
  np.savez_compressed(cases.FILE, **arrays)
  print(f"hessian: {cases.FILE.stat().st_size:,} bytes, torch {torch.__version__}")


if __name__ == "__main__":
  main()
