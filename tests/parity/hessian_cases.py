"""Curvature that torch computes too: converted models with their losses, and a twin in float64. No torch here."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd import models
from jaxkd.analysis import hessian_trace
from jaxkd.weights import from_torch

from .cases import CASES

FOLDER = Path(__file__).parent / "goldens"
FILE = FOLDER / "hessian.npz"
NAMES = ("deit_timm", "resnet18_cifar")
KEY = jax.random.key(5)
EQUAL, OWN = 3, 100  # probes with equal vectors, and probes of each library's own
LABELS = np.array([1, 3])
LEAVES = {"qkv": (6, 18), "proj": (6, 6), "scale": (6,), "up": (6, 10), "down": (10, 6), "head": (6, 4)}


def golden(name):
  """(torch's state dict, images as the models see them) of a stored model."""
  with np.load(FOLDER / f"{name}.npz") as stored:
    state = {k.removeprefix("state/"): stored[k] for k in stored.files if k.startswith("state/")}
    return state, stored["images"].astype(np.float32) / np.float32(127.5) - 1


def ours(name, state, images, labels=LABELS):
  """Loss, parameters and batches of the converted model."""
  case = CASES[name]
  model = models.create(case.name, attention="xla", **case.options) if "deit" in name else None
  model = model or models.create(case.name, **case.options)
  variables = from_torch(case.name, state, **case.options)

  def loss(params, batch):
    x, y, stats = batch
    _, taps = model.apply({"params": params, **stats}, x, train=False)
    return optax.losses.softmax_cross_entropy_with_integer_labels(taps["logits/cls"], y).mean()

  stats = {k: v for k, v in variables.items() if k != "params"}
  # Two batches here, one there.
  batches = [(images[i : i + 1], labels[i : i + 1], stats) for i in range(len(images))]
  return loss, variables["params"], batches


def block(key):
  """The block of a parameter in either library's names: `blocks.1.norm1.weight`, `block01/norm1/scale` -> `1`."""
  return "/".join(re.findall(r"\d+", re.split(r"attn|mlp|norm|conv|bn|downsample", key)[0])) or "rest"


def grouped(values, keys):
  """[probes keys] -> {block: (mean, stderr)}."""
  groups = {}
  for key, column in zip(keys, np.asarray(values).T, strict=True):
    groups[block(key)] = groups.get(block(key), 0) + column
  groups["all"] = np.sum(values, axis=1)
  return {k: (v.mean(), v.std(ddof=1) / np.sqrt(len(v))) for k, v in groups.items()}


def check(name, problem, forms, values, keys):
  """Torch's v'Hv with our first vectors, and its traces with its own vectors, against ours."""
  loss, params, batches = problem
  equal = hessian_trace(loss, params, batches, key=KEY, probes=EQUAL)
  np.testing.assert_allclose(equal.values, forms, rtol=1e-4)
  shifted = hessian_trace(loss, params, batches, key=jax.random.key(6), probes=EQUAL)
  assert np.abs(shifted.values / forms - 1).max() > 1e-2  # negative control: other vectors
  found = hessian_trace(loss, params, batches, key=jax.random.key(7), probes=OWN)
  mine = found.by(block) | {"all": (found.mean, found.stderr)}
  theirs = grouped(values, keys)
  assert set(mine) == set(theirs)
  for part, (mean, stderr) in theirs.items():
    combined = np.hypot(stderr, mine[part][1])
    assert abs(mine[part][0] - mean) < 4 * combined, (name, part, mine[part], (mean, stderr))
  mean, stderr = theirs["all"]
  assert abs(2 * found.mean - mean) > 4 * np.hypot(
    stderr, 2 * found.stderr
  )  # summed over the images, not averaged


def twin_arrays():
  """Parameters, tokens [b n d] and labels of a one-block transformer, and probe vectors, all float64."""
  rng = np.random.default_rng(0)
  params = {k: rng.normal(size=s) / s[0] ** 0.5 for k, s in LEAVES.items()}
  vectors = [{k: rng.choice([-1.0, 1.0], size=s) for k, s in LEAVES.items()} for _ in range(EQUAL)]
  return params, rng.normal(size=(4, 5, 6)), np.arange(4), vectors


def twin_loss(params, batch):
  """Pre-norm attention, then a GELU MLP, then the cross entropy of the first token."""
  x, y = batch
  y_in = _norm(x) * params["scale"][None, None]
  q, k, v = jnp.split(y_in @ params["qkv"], 3, axis=-1)
  maps = jax.nn.softmax(q @ k.swapaxes(1, 2) / 6**0.5, axis=-1)
  x = x + (maps @ v) @ params["proj"]
  x = x + jax.nn.gelu(_norm(x) @ params["up"], approximate=False) @ params["down"]
  z = jax.nn.log_softmax(_norm(x)[:, 0] @ params["head"], axis=-1)
  return -jnp.take_along_axis(z, y[:, None], axis=1).mean()


def _norm(x):
  centred = x - x.mean(-1, keepdims=True)
  return centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)
