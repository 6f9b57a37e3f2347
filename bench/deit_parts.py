"""The parts of a DeiT-Tiny training step on this machine: XLA's time beside PyTorch's, and other ways to write them.

  python -m bench.deit_parts [--batch 128] [--seconds 1.5]

Float32, in turns: the four kernels of a block times the rows of a batch (66 tokens an image), attention's products for
each image and head, what lies between the products, and AdamW on all parameters. Prints tables in Markdown,
milliseconds (medians). Needs torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from jax import lax
from torch.nn import functional as F

from bench import interleave
from jaxkd import models
from jaxkd.models.attention import attention
from jaxkd.models.layers import gelu, standardize

TOKENS, HEADS, WIDTH = 66, 3, 64  # of DeiT-Tiny at 32 px, patch 4; the width of a head
KERNELS = {"qkv": (192, 576), "proj": (192, 192), "fc1": (192, 768), "fc2": (768, 192)}
LAYERS = 12


def _product(a: jax.Array, b: jax.Array, over: tuple[int, int], batch: tuple[int, ...] = ()) -> jax.Array:
  return lax.dot_general(a, b, (((over[0],), (over[1],)), (batch, batch)))


def _halves(x: jax.Array, dy: jax.Array) -> jax.Array:
  x, dy = (a.reshape(2, -1, a.shape[-1]) for a in (x, dy))
  return _product(x, dy, (1, 1), (0,)).sum(0)


# dw [p q] from x [r p] and dy [r q]
KERNEL_GRADIENTS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
  "XLA": lambda x, dy: _product(x, dy, (0, 0)),
  "transposed copy": lambda x, dy: _product(lax.optimization_barrier(x.T), dy, (1, 0)),
  "two halves": _halves,
}


def _finished(function: Callable, *arguments: Any) -> Callable[[], Any]:
  compiled = jax.jit(function)
  return lambda: jax.block_until_ready(compiled(*arguments))


def kernel_ways(rows: int, p: int, q: int) -> dict[str, Any]:
  """{"pass/way": call} for rows [r p] and a kernel [p q]."""
  rng = np.random.default_rng(0)
  x, w, dy = (rng.standard_normal(s).astype(np.float32) for s in ((rows, p), (p, q), (rows, q)))
  jx, jw, jdy = jax.device_put((x, w, dy))
  tx, tw, tdy = (torch.from_numpy(a) for a in (x, np.ascontiguousarray(w.T), dy))  # nn.Linear's layout
  return {
    "forward/XLA": _finished(jnp.matmul, jx, jw),
    "forward/torch": lambda: tx @ tw.t(),
    "input gradient/XLA": _finished(lambda dy, w: _product(dy, w, (1, 1)), jdy, jw),
    "input gradient/torch": lambda: tdy @ tw,
    **{f"kernel gradient/{name}": _finished(way, jx, jdy) for name, way in KERNEL_GRADIENTS.items()},
    "kernel gradient/torch": lambda: tdy.t() @ tx,
  }


def attention_ways(images: int) -> dict[str, Any]:
  """Queries times keys, maps times values, and the product whose first operand is transposed, as in their gradients."""
  rng = np.random.default_rng(0)
  q, k, maps = (
    rng.standard_normal((images * HEADS, *s)).astype(np.float32)
    for s in ((TOKENS, WIDTH), (TOKENS, WIDTH), (TOKENS, TOKENS))
  )
  jq, jk, jm = jax.device_put((q, k, maps))
  tq, tk, tm = (torch.from_numpy(a) for a in (q, k, maps))
  return {
    "q k'/XLA": _finished(lambda a, b: _product(a, b, (2, 2), (0,)), jq, jk),
    "q k'/torch": lambda: tq @ tk.mT,
    "maps v/XLA": _finished(lambda a, b: _product(a, b, (2, 1), (0,)), jm, jk),
    "maps v/torch": lambda: tm @ tk,
    "maps' dy/XLA": _finished(lambda a, b: _product(a, b, (1, 1), (0,)), jm, jk),
    "maps' dy/torch": lambda: tm.mT @ tk,
  }


def between_ways(images: int) -> dict[str, Any]:
  """Forward and backward pass of what lies between the products of a block, and of its whole attention."""
  rng = np.random.default_rng(0)
  rows = images * TOKENS
  wide, narrow = (
    rng.standard_normal((rows, n)).astype(np.float32) for n in (4 * HEADS * WIDTH, HEADS * WIDTH)
  )
  q = rng.standard_normal((images, TOKENS, HEADS, WIDTH)).astype(np.float32)
  ours: dict[str, tuple[Callable, np.ndarray]] = {
    "GELU": (gelu, wide),
    "LayerNorm": (lambda x: standardize(x, 1e-6), narrow),
    "attention": (lambda x: attention(x, x, x, implementation="xla"), q),
  }
  theirs: dict[str, tuple[Callable, np.ndarray]] = {
    "GELU": (F.gelu, wide),
    "LayerNorm": (lambda x: F.layer_norm(x, x.shape[-1:], eps=1e-6), narrow),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x), np.ascontiguousarray(q.swapaxes(1, 2))),
  }
  ways = {}
  for name, (function, x) in ours.items():
    pull = lambda x, dy, function=function: (lambda y, back: (y, back(dy)))(*jax.vjp(function, x))  # noqa: E731
    ways[f"{name}/XLA"] = _finished(pull, jnp.asarray(x), jnp.asarray(x))
  for name, (function, x) in theirs.items():
    ways[f"{name}/torch"] = _pulled(function, torch.from_numpy(x))
  return ways


def _pulled(function: Callable, x: torch.Tensor) -> Callable[[], Any]:
  leaf = x.clone().requires_grad_()

  def run() -> Any:
    return torch.autograd.grad(function(leaf), leaf, x)

  return run


def _updated(tx: optax.GradientTransformation, params: Any) -> Callable[[], Any]:
  def update(params: Any, state: Any) -> Any:
    updates, state = tx.update(params, state, params)  # the parameters serve as gradients
    return optax.apply_updates(params, updates), state

  return _finished(update, params, tx.init(params))


def adamw_ways() -> dict[str, Any]:
  """AdamW on DeiT-Tiny's parameters: leaf by leaf, over one flat buffer, and PyTorch's fused one."""
  model = models.create("deit_tiny", num_classes=10)
  images = jnp.zeros((1, *model.image_size, 3))
  quick = {"xla_backend_optimization_level": 0}
  params = jax.jit(model.init, compiler_options=quick)(jax.random.key(0), images)["params"]
  tx = optax.adamw(1e-4, weight_decay=0.05)
  ways = {"AdamW/XLA": _updated(tx, params), "AdamW/XLA, flat buffer": _updated(optax.flatten(tx), params)}
  leaves = [torch.nn.Parameter(torch.from_numpy(np.array(x))) for x in jax.tree.leaves(params)]
  for leaf in leaves:
    leaf.grad = leaf.detach().clone()
  optimizer = torch.optim.AdamW(leaves, lr=1e-4, weight_decay=0.05, fused=True)
  return ways | {"AdamW/torch": optimizer.step}


def _table(title: str, rows: dict[str, dict[str, float]]) -> None:
  columns = list(next(iter(rows.values())))
  print(f"\n| {title} | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
  for name, found in rows.items():
    print(f"| {name} | " + " | ".join(f"{found[c]:.2f}" for c in columns) + " |")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--batch", type=int, default=128)
  parser.add_argument("--seconds", type=float, default=1.5, help="for each kernel")
  args = parser.parse_args()
  about = interleave.about()
  print(f"{about['hardware']}, {about['date']}, batch {args.batch}; ms")
  rows = args.batch * TOKENS
  kernels = {
    n: interleave.milliseconds(kernel_ways(rows, p, q), seconds=args.seconds) for n, (p, q) in KERNELS.items()
  }
  whole = {c: LAYERS * sum(k[c] for k in kernels.values()) for c in kernels["qkv"]}
  _table("kernel", kernels | {f"{LAYERS} blocks": whole})
  _table(
    "products of attention",
    {"one block": interleave.milliseconds(attention_ways(args.batch), seconds=args.seconds)},
  )
  _table(
    "forward and backward",
    {"one block": interleave.milliseconds(between_ways(args.batch), seconds=3 * args.seconds)},
  )
  _table("optimiser", {"all parameters": interleave.milliseconds(adamw_ways(), seconds=args.seconds)})


if __name__ == "__main__":
  main()
