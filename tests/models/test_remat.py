"""`remat`: the same loss and gradients, with less kept between the forward and the backward pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models

SMALL = {"image_size": 8, "in_channels": 3, "num_classes": 4}
CASES = {
  "deit": {"patch_size": 4, "width": 16, "depth": 2, "heads": 2, "dropout": 0.1},
  "resnet18_cifar": {"widths": (4,), "depths": (2,)},
  "convnextv2_atto": {"patch_size": 2, "widths": (4,), "depths": (2,), "drop_path": 0.2},
  "adaptive_cnn": {"widths": (4,), "depths": (2,), "stem_pool": False},
}


def loss(model, variables, images, params):
  """Loss and new statistics in training mode."""
  (logits, taps), stats = model.apply(
    {**variables, "params": params},
    images,
    train=True,
    rngs={"dropout": jax.random.key(1)},
    mutable=[k for k in variables if k != "params"],
  )
  features = taps.get("block00/tokens", taps.get("stage0"))
  return jnp.square(logits).mean() + jnp.square(features).mean(), stats


def kept_bytes(model, variables, images):
  """Of the arrays that the backward pass needs from the forward pass, parameters included."""

  def pull(params):
    return jax.vjp(functools.partial(loss, model, variables, images), params, has_aux=True)[1]

  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(pull, variables["params"])))


def made(name):
  model = models.create(name, **SMALL, **CASES[name])
  images = jax.random.normal(jax.random.key(0), (16, 8, 8, 3))
  return model, model.clone(remat=True), jax.jit(model.init)(jax.random.key(2), images[:1]), images


@pytest.mark.parametrize("name", CASES)
def test_less_is_kept(name):
  model, remat, variables, images = made(name)
  assert kept_bytes(remat, variables, images) < 0.6 * kept_bytes(model, variables, images)


@pytest.mark.parametrize("name", ["deit", "adaptive_cnn"])
def test_same_loss_and_gradients(name):
  *both, variables, images = made(name)
  found = [
    jax.jit(jax.value_and_grad(functools.partial(loss, m, variables, images), has_aux=True))(
      variables["params"]
    )
    for m in both
  ]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *found)


def test_evaluation_and_parameters_do_not_change():
  model = models.create("deit", **SMALL, **CASES["deit"])
  images = jnp.ones((1, 8, 8, 3))
  variables = jax.jit(model.init)(jax.random.key(0), images)
  again = jax.jit(model.clone(remat=True).init)(jax.random.key(0), images)
  jax.tree.map(np.testing.assert_array_equal, again, variables)
  wanted = model.clone(remat=True).apply(variables, images, want=("attn",))[1]
  assert wanted["block01/attn"].shape == (1, 2, 6, 6)
