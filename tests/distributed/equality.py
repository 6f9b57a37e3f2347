"""Loss, gradient and BatchNorm statistics of one batch on one device, and how far those of a mesh are from them.

Run as a module in a process of its own with eight fake devices: `python -m tests.distributed.equality float64`, for
some of the meshes with their names as further arguments. In float64 the word float32 means float64 from here on, so
that every cast of the code under test is one to float64.
"""

import json
import sys

import jax
import jax.numpy as jnp

DTYPE = sys.argv[1]
if DTYPE == "float64":
  jax.config.update("jax_enable_x64", True)
  jnp.float32 = jnp.float64

import numpy as np  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from jaxkd import feed, sharding, step  # noqa: E402
from jaxkd.experiment import build  # noqa: E402
from tests import tiny  # noqa: E402

MESHES = {"data 8": 1, "fsdp 8": 8, "2 x 4": 4}  # of eight devices, so many over which parameters are split
CNN = {"name": "adaptive_cnn", "widths": (8, 16), "depths": (1, 1), "stem_pool": False, "head_width": 8}
VIT = {"name": "vit", "patch_size": 4, "width": 16, "depth": 2, "heads": 2, "mlp_ratio": 2.0}
AUGMENT = {"augment": {"crop": 1, "flip": True, "brightness": 0.3}}


def teacher(model):
  return {"teacher": {"weights": "random", "model": model}}


def pair(kind, **options):
  return {
    "kind": kind,
    "teacher": "teacher",
    "student_taps": ("block01/tokens",),
    "teacher_taps": ("block01/tokens",),
    **options,
  }


def configs():
  """By objective; convolutions with BatchNorm in the first two, dropout and DropPath in the first three."""
  yield "supervised", tiny.config(model=CNN, data=AUGMENT)
  yield (
    "kd",
    tiny.config(
      model={**tiny.MODEL, "stem": "conv", "drop_path": 0.2},
      data=AUGMENT,
      teachers=teacher(CNN),
      terms={
        "ce": tiny.CE,
        "kd": {"kind": "soft_kd", "teacher": "teacher", "student_taps": ("logits/dist",)},
      },
    ),
  )
  yield (
    "ss",
    tiny.config(
      model={**tiny.MODEL, "dropout": 0.1},
      data=AUGMENT,
      teachers=teacher(VIT),
      terms={
        "ce": tiny.CE,
        "tokens": pair("token_cosine"),
        "relation": pair("correlation", over="samples"),
        "cka": pair("cka", over="samples"),
        "cka_tokens": pair("cka"),
      },
    ),
  )
  yield "dino", tiny.dino_config()


def measure(config, devices, fsdp):
  """(loss, gradient, new statistics, parameters) of the first batch, the first three as numpy."""
  mesh = sharding.make_mesh(fsdp=fsdp, devices=jax.devices()[:devices])
  experiment = build(config, mesh)
  state, frozen = step.place(experiment, step.init_state(experiment)), step.frozen_inputs(experiment)
  batch = feed.make_batch(experiment, 0)

  def gradient(state, batch, frozen):
    loss, aux, grads = step._gradient(
      experiment, step.loss_function(experiment, state, batch, frozen), state.params
    )
    return loss, grads, aux["stats"]

  found = jax.jit(gradient, compiler_options={"xla_backend_optimization_level": 0})(state, batch, frozen)
  return (*jax.device_get(found), state.params)


def paths(tree):
  return {
    jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x, np.float64)
    for p, x in jax.tree_util.tree_leaves_with_path(tree)
  }


def deviations(reference, tree):
  """||a - b|| / ||b|| of each leaf; of leaves that are no more than rounding, in shares of the whole norm."""
  a, b = paths(tree), paths(reference)
  whole = np.sqrt(sum(np.sum(x**2) for x in b.values()))
  return {k: float(np.linalg.norm(a[k] - b[k]) / max(np.linalg.norm(b[k]), 1e-6 * whole)) for k in b}


def worst(reference, tree):
  found = deviations(reference, tree)
  name = max(found, key=found.get) if found else "nothing"
  return {"leaf": name, "deviation": found.get(name, 0.0), "leaves": len(found)}


def split_share(params):
  """Of the parameters' bytes, those that are split over devices."""
  leaves = jax.tree.leaves(params)
  split = sum(x.nbytes for x in leaves if not x.is_fully_replicated)
  return split / sum(x.nbytes for x in leaves)


def unreduced(config):
  """Deviations of a gradient made of the devices' parts: with their mean, and where that was forgotten."""
  mesh = sharding.make_mesh()
  experiment = build(config, sharding.make_mesh(devices=jax.devices()[:1]))
  state, frozen = step.init_state(experiment), step.frozen_inputs(experiment)
  batch = feed.make_batch(experiment, 0)

  def views(batch, frozen):
    seen, labels = step._views(experiment, batch, frozen, step._keys(frozen, state.step)[0])
    return seen["student"], labels

  def gradient(params, images, labels):
    def loss(params):
      logits, _ = experiment.model.apply({"params": params}, images, train=False)
      return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None].astype(int), 1).mean()

    return jax.grad(loss)(params)

  params = state.params["model"]
  images, labels = jax.device_get(jax.jit(views)(batch, frozen))
  whole = jax.jit(gradient)(params, images, labels)
  axes = ("data", "fsdp")
  found = {}
  for name, reduce in (
    ("reduced", lambda g: jax.lax.pmean(g, axes)),
    ("unreduced", lambda g: g),
  ):
    local = jax.shard_map(
      lambda p, x, y, reduce=reduce: jax.tree.map(reduce, gradient(p, x, y)),
      mesh=mesh,
      in_specs=(P(), P(axes), P(axes)),
      out_specs=P(),
      check_vma=False,
    )
    found[name] = worst(jax.device_get(whole), jax.device_get(jax.jit(local)(params, images, labels)))
  return found


def main():
  out = {"devices": jax.device_count(), "cases": {}}
  with jax.numpy_dtype_promotion("standard"):
    for name, config in configs():
      loss, grads, stats, _ = measure(config, 1, 1)
      dtypes = {str(x.dtype) for x in jax.tree.leaves((loss, grads, stats))}
      for mesh, fsdp in MESHES.items():
        if sys.argv[2:] and mesh not in sys.argv[2:]:
          continue
        other = measure(config, 8, fsdp)
        out["cases"][f"{name}, {mesh}"] = {
          "loss": abs(float(other[0]) - float(loss)) / abs(float(loss)),
          "gradient": worst(grads, other[1]),
          "statistics": worst(stats, other[2]),
          "split": split_share(other[3]),
          "dtypes": sorted(dtypes),
        }
    if DTYPE == "float64":
      out["control"] = unreduced(tiny.config(model={**tiny.MODEL, "name": "vit"}))
  print(json.dumps(out))


if __name__ == "__main__":
  main()
