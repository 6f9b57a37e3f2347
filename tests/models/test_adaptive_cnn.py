"""AdaptiveCNN: what its two variants and the small one are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.models import create

from .jitted import evaluate, init, train


def trace(**options):
  model = create("adaptive_cnn", **options)
  images = jnp.zeros((2, *model.image_size, model.in_channels))
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  return variables, jax.eval_shape(model.apply, variables, images)[1]


@pytest.mark.parametrize(
  ("variant", "maps", "blocks", "hidden"),
  [
    ("mnist", [(14, 32), (7, 64), (4, 128)], (2, 2, 2), 64),
    ("cifar", [(32, 64), (16, 128), (8, 256), (4, 512)], (2, 3, 3, 3), 256),
  ],
)
def test_variants(variant, maps, blocks, hidden):
  variables, taps = trace(variant=variant)
  assert [taps[f"stage{i}"].shape[2:] for i in range(len(maps))] == maps
  names = [f"stage{i}_block{j}" for i, depth in enumerate(blocks) for j in range(depth)]
  assert sorted(names) == sorted(name for name in variables["params"] if name.startswith("stage"))
  assert variables["params"]["fc1"]["kernel"].shape == (maps[-1][1], hidden)
  gate = variables["params"][names[-1]]["se"]
  assert {k: v["kernel"].shape for k, v in gate.items()} == {
    "fc1": (maps[-1][1], maps[-1][1] // 16),
    "fc2": (maps[-1][1] // 16, maps[-1][1]),
  }
  assert all(list(layer) == ["kernel"] for layer in gate.values())  # no biases


def test_small_images_without_stem_pool():
  _, taps = trace(widths=[16, 32, 64], depths=[2, 2, 2], stem_pool=False, image_size=16)
  assert [taps[f"stage{i}"].shape for i in range(3)] == [(2, 16, 16, 16), (2, 8, 8, 32), (2, 4, 4, 64)]


def test_head_width_follows_the_last_width_unless_given():
  assert create("adaptive_cnn", widths=(4, 8), depths=(1, 1)).head_width == 4
  assert create("adaptive_cnn", widths=(4, 8), depths=(1, 1), head_width=5).head_width == 5


def test_features_are_the_mean_of_the_last_stage_and_dropout_is_only_in_the_head():
  model = create("adaptive_cnn", widths=(8,), depths=(1,), image_size=4, dropout=0.5, num_classes=4)
  images = jax.random.normal(jax.random.key(0), (16, 4, 4, 1))
  variables = init(model, images)
  taps = evaluate(model, variables, images)[1]
  np.testing.assert_allclose(taps["features"], np.mean(taps["stage0"], axis=(1, 2)), atol=1e-6)
  first, second = (train(model, variables, images, key=jax.random.key(i))[0][1] for i in range(2))
  np.testing.assert_array_equal(first["features"], second["features"])
  assert np.abs(first["logits"] - second["logits"]).max() > 1e-3


def test_without_classes_the_logits_are_the_features():
  model = create("adaptive_cnn", widths=(8,), depths=(1,), image_size=4, num_classes=0)
  images = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
  variables = init(model, images)
  logits, taps = evaluate(model, variables, images)
  np.testing.assert_array_equal(logits, taps["features"])
  assert not {"fc1", "fc2"} & set(variables["params"])
