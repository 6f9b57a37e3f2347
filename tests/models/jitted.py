"""Variables and compiled calls for the tests, cheap to come by.

Op-by-op dispatch compiles every primitive alone, and compiling an initialisation costs ten times the
model's forward pass: so variables are drawn with numpy into the model's own shapes, and calls are compiled
with little optimisation.
"""

import zlib
from functools import cache
from typing import Any

import jax
import numpy as np
from flax import linen as nn

QUICK = {"xla_backend_optimization_level": 0}
AROUND = {"scale": 1.0, "var": 1.0}


def init(module: nn.Module, *arguments: Any, seed: int = 1, deviation: float = 0.1, **options: Any) -> Any:
  """Variables in the shapes of `module.init`, all normal around 0, or around 1 for scales and variances."""
  shapes = jax.eval_shape(
    lambda key, *args: module.init(key, *args, **options), jax.random.key(0), *arguments
  )

  def draw(path: Any, leaf: Any) -> np.ndarray:
    name = "/".join(part.key for part in path)
    rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
    return AROUND.get(path[-1].key, 0.0) + deviation * rng.standard_normal(leaf.shape, np.float32)

  return jax.tree.map_with_path(draw, shapes)


def true_init(module: nn.Module, *arguments: Any) -> Any:
  """The variables that the model's own initialisers draw."""
  return jax.jit(module.init, compiler_options=QUICK)(jax.random.key(1), *arguments)


@cache
def _apply(module: nn.Module, mutable: bool, options: tuple[tuple[str, Any], ...]) -> Any:
  statistics = {"mutable": ("batch_stats",)} if mutable else {}

  def run(variables: Any, rngs: Any, *arguments: Any) -> Any:
    return module.apply(variables, *arguments, rngs=rngs, **statistics, **dict(options))

  return jax.jit(run, compiler_options=QUICK)


def evaluate(module: nn.Module, variables: Any, *arguments: Any, **options: Any) -> Any:
  """`module.apply(variables, *arguments, **options)`, compiled once per module and options."""
  return _apply(module, False, tuple(options.items()))(variables, {}, *arguments)


def train(module: nn.Module, variables: Any, *arguments: Any, key: Any = None) -> Any:
  """(output, updated collections) of a training pass."""
  return _apply(module, True, (("train", True),))(
    variables, {} if key is None else {"dropout": key}, *arguments
  )
