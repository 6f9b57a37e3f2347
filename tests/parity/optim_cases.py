"""Optimisers that torch has too: configs, parameters and gradients. No torch here."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import config as configs
from jaxkd.optim import make_optimizer, make_schedule

STEPS, STEPS_PER_EPOCH = 20, 5
SHAPES = {
  "model/block00/attn/qkv/kernel": (4, 6),
  "model/block00/attn/qkv/bias": (6,),
  "model/block00/norm1/scale": (4,),
  "model/block01/mlp/fc2/kernel": (6, 3),
  "model/head/kernel": (4, 3),
  "model/patch_embed/proj/kernel": (2, 2, 1, 4),
  "model/pos_embed": (1, 5, 4),
  "heads/tokens/proj/kernel": (3, 3),
}
DECAYED = tuple(name for name in SHAPES if name.endswith("kernel"))
ORTHOGONALISED = ("model/block00/attn/qkv/kernel", "model/block01/mlp/fc2/kernel")
# The large eps shows where it is added.
CASES = {
  "adamw": {"name": "adamw"},
  "adamw_eps": {"name": "adamw", "eps": 1e-2, "beta1": 0.8, "beta2": 0.95},
  "adam": {"name": "adam", "eps": 1e-2},
  "sgd": {"name": "sgd", "momentum": 0.0},
  "sgd_momentum": {"name": "sgd", "nesterov": False},
  "sgd_nesterov": {"name": "sgd"},
  "rmsprop": {"name": "rmsprop", "eps": 1e-2},
  "rmsprop_momentum": {"name": "rmsprop", "eps": 1e-2, "rmsprop_momentum": 0.9},
  "muon": {"name": "muon"},
}


def config(**optim):
  """A complete and typed `config.optim`; unlike the schema's default, weights decay by 0.1 at lr 0.01."""
  raw = {"optim": {"lr": 0.01, "weight_decay": 0.1, **optim}}
  return configs.complete({**raw, "terms": {"ce": {"kind": "cross_entropy"}}}).optim


def numbers(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
  """float32 arrays by path, the same for every library."""
  r = np.random.default_rng(seed)
  return {name: np.float32(scale * r.standard_normal(shape)) for name, shape in SHAPES.items()}


def parameters() -> dict[str, np.ndarray]:
  return numbers(0, 0.5)


def gradients() -> list[dict[str, np.ndarray]]:
  """One for each step; norms on both sides of the default clip of 1."""
  return [numbers(1 + t, 0.5 if t % 3 else 0.03) for t in range(STEPS)]


def tree(arrays: dict[str, np.ndarray]) -> dict:
  """Nested as a run's parameters are."""
  out: dict = {}
  for name, value in arrays.items():
    *parents, leaf = name.split("/")
    node = out
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = jnp.asarray(value)
  return out


def flat(nested) -> dict[str, np.ndarray]:
  leaves = jax.tree_util.tree_leaves_with_path(nested)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def schedule_of(optim, **changes):
  return make_schedule(optim, **{"steps": STEPS, "steps_per_epoch": STEPS_PER_EPOCH, **changes})


def train(optim, schedule=None) -> dict[str, np.ndarray]:
  """The parameters after the gradients, by path."""
  tx = make_optimizer(optim, schedule or schedule_of(optim))

  @jax.jit
  def update(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return jax.tree.map(jnp.add, params, updates), state

  params = tree(parameters())
  state = tx.init(params)
  for grads in gradients():
    params, state = update(params, state, tree(grads))
  return flat(params)


def distance(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
  assert a.keys() == b.keys()
  return max(float(np.abs(a[name] - b[name]).max()) for name in a)
