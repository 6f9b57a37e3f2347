"""Compiled init and apply for the tests: op-by-op dispatch compiles every primitive alone, far slower."""

from functools import cache
from typing import Any

import jax
from flax import linen as nn


def init(module: nn.Module, *arguments: Any, seed: int = 1, **options: Any) -> dict[str, Any]:
  """The variables of a module."""
  return jax.jit(lambda key, *args: module.init(key, *args, **options))(jax.random.key(seed), *arguments)


@cache
def _apply(module: nn.Module, mutable: bool, options: tuple[tuple[str, Any], ...]) -> Any:
  statistics = {"mutable": ("batch_stats",)} if mutable else {}

  def run(variables: Any, rngs: Any, *arguments: Any) -> Any:
    return module.apply(variables, *arguments, rngs=rngs, **statistics, **dict(options))

  return jax.jit(run)


def evaluate(module: nn.Module, variables: Any, *arguments: Any, **options: Any) -> Any:
  """`module.apply(variables, *arguments, **options)`, compiled once per module and options."""
  return _apply(module, False, tuple(options.items()))(variables, {}, *arguments)


def train(module: nn.Module, variables: Any, images: Any, key: Any) -> Any:
  """((logits, taps), updated collections) of a training pass."""
  return _apply(module, True, (("train", True),))(variables, {"dropout": key}, images)
