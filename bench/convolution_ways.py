"""Other formulations of a 3x3 convolution that were tried on CPU: its forward pass beside XLA's own.

  python -m bench.convolution_ways [--seconds 1.5]

Float32, stride 1, batch 64, shapes of ResNet-18 on 32 px images; all must agree before they are timed, in turns. Prints
a table in Markdown, milliseconds (medians). PyTorch's times for the same shapes are in `bench.convolutions`.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bench import interleave
from jaxkd.models.convolution import LAYOUT

BATCH = 64
SHAPES = {"64, 32 px": (32, 64), "128, 16 px": (16, 128), "256, 8 px": (8, 256), "512, 4 px": (4, 512)}
# F(2x2, 3x3) of Lavin and Gray (2015), arXiv:1509.09308: tiles, kernels and results are transformed by these.
TILE = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
RESULT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])


def native(x: jax.Array, w: jax.Array) -> jax.Array:
  return lax.conv_general_dilated(x, w, (1, 1), ((1, 1), (1, 1)), dimension_numbers=LAYOUT)


def patches(x: jax.Array, w: jax.Array) -> jax.Array:
  """One product of whole patches, [b*h*w 9c] times [9c o]."""
  b, h, k, c = x.shape
  rows = jnp.concatenate(_shifted(x), axis=-1).reshape(-1, 9 * c)
  return (rows @ w.reshape(9 * c, -1)).reshape(b, h, k, -1)


def shifted_products(x: jax.Array, w: jax.Array) -> jax.Array:
  """The sum of nine products of shifted maps."""
  taps = w.reshape(9, *w.shape[2:])
  products = [(a.reshape(-1, x.shape[-1]) @ k) for a, k in zip(_shifted(x), taps, strict=True)]
  return functools.reduce(jnp.add, products).reshape(*x.shape[:-1], -1)


def _shifted(x: jax.Array) -> list[jax.Array]:
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  h, w = x.shape[1:3]
  return [padded[:, i : i + h, j : j + w] for i, j in itertools.product(range(3), range(3))]


def winograd(x: jax.Array, w: jax.Array) -> jax.Array:
  """Sixteen products for each four results instead of 36."""
  b, h, k, c = x.shape
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  tile = [[padded[:, i : i + h - 1 : 2, j : j + k - 1 : 2] for j in range(4)] for i in range(4)]
  tiles = jnp.stack(list(itertools.chain(*_both_sides(TILE, tile)))).reshape(16, -1, c)
  kernels = jnp.stack(list(itertools.chain(*_both_sides(KERNEL, list(map(list, w))))))
  products = jnp.matmul(tiles, kernels).reshape(4, 4, b, h // 2, k // 2, -1)
  results = _both_sides(RESULT, list(map(list, products)))
  rows = jnp.stack([jnp.stack(row, axis=3) for row in results], axis=2)  # [b h/2 2 w/2 2 o]
  return rows.reshape(b, h, k, -1)


def _both_sides(matrix: np.ndarray, blocks: list[list[jax.Array]]) -> list[list[jax.Array]]:
  """matrix X matrix' for X of blocks, as sums: the entries of `matrix` are 0, halves and ones."""
  half = [[_combined(row, column) for column in zip(*blocks, strict=True)] for row in matrix]
  return [[_combined(row, line) for row in matrix] for line in half]


def _combined(weights: np.ndarray, blocks: Any) -> jax.Array:
  return functools.reduce(
    jnp.add, [b if s == 1 else jnp.float32(s) * b for s, b in zip(weights, blocks, strict=True) if s]
  )


WAYS = {"XLA": native, "patches": patches, "shifted products": shifted_products, "Winograd": winograd}


def timed(size: int, channels: int, seconds: float) -> dict[str, float]:
  """Milliseconds of each way. Raises AssertionError where they disagree."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((BATCH, size, size, channels)).astype(np.float32))
  w = jnp.asarray(rng.standard_normal((3, 3, channels, channels)).astype(np.float32) / (9 * channels) ** 0.5)
  compiled = {name: jax.jit(way) for name, way in WAYS.items()}
  for way in compiled.values():
    np.testing.assert_allclose(way(x, w), compiled["XLA"](x, w), atol=1e-4)
  runs = {name: lambda way=way: way(x, w).block_until_ready() for name, way in compiled.items()}
  return interleave.milliseconds(runs, seconds=seconds)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--seconds", type=float, default=1.5, help="for each shape")
  args = parser.parse_args()
  about = interleave.about()
  print(f"{about['hardware']}, {about['date']}; ms\n")
  print("| channels, map | " + " | ".join(WAYS) + " |\n|---|" + "---|" * len(WAYS))
  for name, (size, channels) in SHAPES.items():
    found = timed(size, channels, args.seconds)
    print(f"| {name} | " + " | ".join(f"{found[n]:.1f}" for n in WAYS) + " |", flush=True)


if __name__ == "__main__":
  main()
