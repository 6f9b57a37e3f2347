"""Losses small enough to have an exact Hessian: a tiny DeiT, a tiny CNN in evaluation mode, any symmetric matrix."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd import models
from jaxkd.analysis.curvature.products import flat, unflat

VIT = {"width": 8, "depth": 2, "heads": 2, "mlp_ratio": 1.0, "patch_size": 4, "init_std": 0.3}
CNN = {"widths": (4, 6), "depths": (1, 1)}
SHAPE = {"image_size": 8, "in_channels": 1, "num_classes": 3}


@dataclasses.dataclass(frozen=True, eq=False)
class Curved:
  """A loss with its exact Hessian [n n] float64, and the ends of the parameters in flattening order."""

  loss: object
  logits: object
  params: dict
  batches: list
  hessian: np.ndarray

  @property
  def ends(self) -> np.ndarray:
    return np.cumsum([x.size for x in jax.tree.leaves(self.params)])

  def diagonal_sums(self, of_path) -> dict[str, float]:
    """The exact traces of the blocks that `of_path` makes."""
    sums: dict[str, float] = {}
    leaves = jax.tree_util.tree_leaves_with_path(self.params)
    for (path, leaf), end in zip(leaves, self.ends, strict=True):
      name = of_path(jax.tree_util.keystr(path, simple=True, separator="/"))
      sums[name] = sums.get(name, 0.0) + np.diag(self.hessian)[end - leaf.size : end].sum()
    return sums


@functools.cache
def curved(kind: str) -> Curved:
  """The loss of 12 images in two batches: kind "deit" or "cnn"."""
  if kind == "deit":
    model = models.create("deit_tiny", attention="xla", **SHAPE, **VIT)
  else:
    model = models.create("resnet18_cifar", **SHAPE, **CNN)
  rng = np.random.default_rng(0)
  images = rng.normal(size=(12, 8, 8, 1)).astype(np.float32)
  variables = jax.device_get(jax.jit(model.init)(jax.random.key(3), images[:1]))
  # Biases and statistics that are not those of the start, so that all of the network is in the derivative.
  variables = jax.tree.map(lambda x: x + rng.uniform(0, 0.2, x.shape).astype(np.float32), variables)
  params, stats = variables["params"], {k: v for k, v in variables.items() if k != "params"}

  def logits(params, batch):
    return model.apply({"params": params, **batch["stats"]}, batch["images"], train=False)[1]["logits/cls"]

  def loss(params, batch):
    z = logits(params, batch)
    return optax.losses.softmax_cross_entropy_with_integer_labels(z, batch["labels"]).mean()

  # As after some training: labels that the model gives, without being sure of them.
  z = np.asarray(jax.jit(logits)(params, {"images": images, "stats": stats}))
  head, scale = params["head" if kind == "deit" else "fc"], 1.5 / z.std(axis=0).mean()
  head["kernel"], head["bias"] = head["kernel"] * scale, (head["bias"] - z.mean(axis=0)) * scale
  labels = np.asarray((z - z.mean(axis=0)).argmax(axis=1))
  batches = [{"images": images[i::2], "labels": labels[i::2], "stats": stats} for i in (0, 1)]
  return Curved(loss, logits, params, batches, exact(loss, params, batches))


def exact(loss, params, batches) -> np.ndarray:
  """`jax.hessian` of the mean over batches."""

  def whole(vector):
    return sum(loss(unflat(vector, params), b) for b in batches) / len(batches)

  with jax.default_matmul_precision("highest"):
    found = np.asarray(jax.jit(jax.hessian(whole))(flat(params)), np.float64)
  return (found + found.T) / 2


def quadratic_loss(params, batch):
  """w'Aw / 2: its Hessian is the symmetric matrix in the batch."""
  w = params["w"]
  return 0.5 * w @ (batch["matrix"] @ w)


def quadratic(matrix: np.ndarray) -> dict:
  """Loss, params and batches of a loss with this Hessian."""
  matrix = matrix.astype(np.float32)
  return {
    "loss_fn": quadratic_loss,
    "params": {"w": jnp.ones(len(matrix), jnp.float32)},
    "batches": [{"matrix": matrix}],
  }
