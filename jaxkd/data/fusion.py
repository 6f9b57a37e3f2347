"""Where one loop ends and the next begins: XLA decides it well on a GPU, and has to be told on a CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["apart"]


def apart(compute: Callable[..., Any], *operands: Any) -> Any:
  """`compute(*operands)`, in programs for a CPU in loops of its own.

  XLA's CPU compiler fuses a chain of operations into the loop that reads its result and computes it again for every
  element read: the matrices behind each pixel of a gather, the table behind each pixel equalised. It removes
  optimisation barriers before that, but does not look into the branches of a conditional.
  """
  alone = functools.partial(_conditional, compute)
  return jax.lax.platform_dependent(*operands, cpu=alone, default=compute)


def _conditional(compute: Callable[..., Any], *operands: Any) -> Any:
  shapes = jax.eval_shape(compute, *operands)
  never = lambda *_: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)  # noqa: E731
  always = jax.lax.optimization_barrier(jnp.array(True))  # hides the constant from simplification
  return jax.lax.cond(always, compute, never, *operands)
