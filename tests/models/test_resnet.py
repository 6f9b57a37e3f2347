"""ResNet-18 for CIFAR: the layout torch's model of that name has."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.models import create

from .jitted import evaluate, init


def test_layout_is_resnet18():
  model = create("resnet18_cifar")
  images = jnp.zeros((1, 32, 32, 3))
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  params = variables["params"]
  assert set(params) == {"conv1", "bn1", "fc"} | {f"layer{i}_{j}" for i in (1, 2, 3, 4) for j in (0, 1)}
  assert [f"layer{i}_0" for i in (1, 2, 3, 4) if "downsample_conv" in params[f"layer{i}_0"]] == [
    "layer2_0",
    "layer3_0",
    "layer4_0",
  ]
  assert not any(
    "bias" in layer for block in params.values() for name, layer in block.items() if "conv" in name
  )
  taps = jax.eval_shape(model.apply, variables, images)[1]
  assert [taps[f"stage{i}"].shape[1:] for i in range(4)] == [
    (32, 32, 64),
    (16, 16, 128),
    (8, 8, 256),
    (4, 4, 512),
  ]


def test_other_resolutions_and_no_classifier():
  model = create("resnet18_cifar", widths=(4, 8), depths=(1, 1), image_size=8, num_classes=0)
  images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
  variables = init(model, images)
  logits, taps = evaluate(model, variables, jnp.tile(images, (1, 2, 1, 1)))
  assert taps["stage1"].shape == (2, 8, 4, 8)
  np.testing.assert_array_equal(logits, taps["features"])
  np.testing.assert_allclose(taps["features"], np.mean(taps["stage1"], axis=(1, 2)), atol=1e-6)
