"""Convolutions on this machine: XLA's own, ours, and PyTorch's; forward, input gradient, kernel gradient.

  python -m bench.convolutions [--seconds 1.5]

Float32, in turns. The shapes are those of ResNet-18 and ConvNeXtV2-Tiny on 32 px images, batch 64. Prints a table in
Markdown, milliseconds (medians).
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax

from bench import interleave
from jaxkd.models.convolution import LAYOUT, convolve

BATCH = 64
# px, channels in and out, kernel, stride, padding, depthwise
SHAPES = {
  "3x3, 3 to 64, 32 px": (32, 3, 64, 3, 1, 1, False),
  "3x3, 64 to 64, 32 px": (32, 64, 64, 3, 1, 1, False),
  "3x3 /2, 64 to 128, 32 px": (32, 64, 128, 3, 2, 1, False),
  "1x1 /2, 64 to 128, 32 px": (32, 64, 128, 1, 2, 0, False),
  "3x3, 128 to 128, 16 px": (16, 128, 128, 3, 1, 1, False),
  "3x3, 256 to 256, 8 px": (8, 256, 256, 3, 1, 1, False),
  "3x3, 512 to 512, 4 px": (4, 512, 512, 3, 1, 1, False),
  "2x2 /2, 96 to 192, 16 px": (16, 96, 192, 2, 2, 0, False),
  "depthwise 7x7, 96, 16 px": (16, 96, 96, 7, 1, 3, True),
  "depthwise 7x7, 384, 4 px": (4, 384, 384, 7, 1, 3, True),
}
PASSES = ("forward", "input gradient", "kernel gradient")


def ways(shape: tuple[int, int, int, int, int, int, bool]) -> dict[str, Any]:
  """{"pass/library": call} of one shape."""
  size, c, o, k, stride, pad, depthwise = shape
  groups, rng = (c if depthwise else 1), np.random.default_rng(0)
  x = rng.standard_normal((BATCH, size, size, c)).astype(np.float32)
  w = rng.standard_normal((k, k, c // groups, o)).astype(np.float32)
  runs: dict[str, Any] = {}
  for name, function in (("XLA", lax.conv_general_dilated), ("ours", convolve)):

    def forward(x, w, function=function):
      pads = ((pad, pad), (pad, pad))
      return function(x, w, (stride, stride), pads, dimension_numbers=LAYOUT, feature_group_count=groups)

    def to_input(x, w, dy, forward=forward):
      return jax.vjp(lambda x: forward(x, w), x)[1](dy)

    def to_kernel(x, w, dy, forward=forward):
      return jax.vjp(lambda w: forward(x, w), w)[1](dy)

    dy = jnp.asarray(rng.standard_normal(jax.eval_shape(forward, x, w).shape).astype(np.float32))
    given = jax.device_put((x, w))
    for key, call, arguments in zip(
      PASSES, (forward, to_input, to_kernel), (given, (*given, dy), (*given, dy)), strict=True
    ):
      compiled = jax.jit(call)
      runs[f"{key}/{name}"] = lambda compiled=compiled, arguments=arguments: jax.block_until_ready(
        compiled(*arguments)
      )

  def channels_last(a, order):
    return torch.from_numpy(np.ascontiguousarray(np.transpose(a, order))).to(
      memory_format=torch.channels_last
    )

  tx, tw, td = (
    channels_last(x, (0, 3, 1, 2)),
    channels_last(w, (3, 2, 0, 1)),
    channels_last(np.asarray(dy), (0, 3, 1, 2)),
  )
  back = torch.ops.aten.convolution_backward
  options = ([stride] * 2, [pad] * 2, [1, 1], False, [0, 0], groups)
  runs["forward/torch"] = lambda: torch.conv2d(tx, tw, stride=stride, padding=pad, groups=groups)
  runs["input gradient/torch"] = lambda: back(td, tx, tw, None, *options, [True, False, False])
  runs["kernel gradient/torch"] = lambda: back(td, tx, tw, None, *options, [False, True, False])
  return runs


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--seconds", type=float, default=1.5, help="for each shape")
  args = parser.parse_args()
  about = interleave.about()
  print(f"{about['hardware']}, {about['date']}; ms: XLA / ours / torch\n")
  print("| convolution | " + " | ".join(PASSES) + " |\n|---|" + "---|" * len(PASSES))
  for name, shape in SHAPES.items():
    found = interleave.milliseconds(ways(shape), seconds=args.seconds)
    ms = {key: f"{t:.1f}" for key, t in found.items()}
    cells = [" / ".join(ms[f"{key}/{library}"] for library in ("XLA", "ours", "torch")) for key in PASSES]
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
  main()
