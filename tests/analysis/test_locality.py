"""Attention statistics of models over images: batches, summaries with intervals, classes."""

import jax
import numpy as np
import pytest

from jaxkd import models
from jaxkd.analysis.attention import attention_rollout, attention_statistics, rollout_statistics
from jaxkd.analysis.locality import attention_by_class, attention_per_image, summarize_attention

KEY = jax.random.key(0)


def random_maps(seed, tokens, *, layers=3, images=4, heads=2):
  weights = np.exp(2 * np.random.default_rng(seed).normal(size=(layers, images, heads, tokens, tokens)))
  return np.float32(weights / weights.sum(-1, keepdims=True))


@pytest.mark.parametrize(("special", "grid"), [(0, (3, 5)), (1, (4, 4)), (2, (4, 9)), (6, (3, 2))])
def test_rollout_statistics_are_those_of_the_rollout_up_to_each_layer(special, grid):
  attn = random_maps(special, special + grid[0] * grid[1])
  found = rollout_statistics(attn, grid, special, reduce=None)
  for layer in range(3):
    rollout = attention_rollout(attn[: layer + 1])[None, :, None]
    for name, value in attention_statistics(rollout, grid, special, reduce=None).items():
      np.testing.assert_allclose(found[name][layer], value[0, :, 0], rtol=2e-6, err_msg=name)
  mean = rollout_statistics(attn, grid, special)
  assert mean["entropy"].shape == (3,)
  np.testing.assert_allclose(mean["entropy"], found["entropy"].mean(1), rtol=1e-6)


def test_rollout_of_uniform_attention_closes_in_on_uniform():
  attn = np.full((4, 1, 2, 36, 36), 1 / 36, np.float32)
  found = rollout_statistics(attn, (4, 9), 0)
  np.testing.assert_allclose(found["distance_to_uniform"], 1 - 0.5 ** np.arange(1, 5), rtol=1e-6)
  assert found["collapsed"].tolist() == [False] * 4


@pytest.mark.parametrize(
  ("name", "options", "special"),
  [("vit", {}, 1), ("deit", {}, 2), ("vit", {"registers": 5}, 6)],
)
def test_a_model_on_a_rectangular_grid_in_any_batches(name, options, special):
  images = np.random.default_rng(1).normal(size=(5, 8, 12, 3)).astype(np.float32)
  model = models.create(name, patch_size=2, width=16, depth=2, heads=2, image_size=(8, 12), **options)
  variables = jax.jit(model.init)(jax.random.key(0), images)
  assert model.special_tokens == special
  found = attention_per_image(model, variables, images, batch_size=2)
  taps = jax.jit(lambda v, x: model.apply(v, x, want=("attn",)))(variables, images)[1]
  maps = np.stack([taps[f"block{i:02d}/attn"] for i in range(2)])
  expected = attention_statistics(maps, (4, 6), special, reduce=None)
  rolled = rollout_statistics(maps, (4, 6), special, reduce=None)
  expected |= {f"rollout_{k}": v for k, v in rolled.items()}
  assert set(found) == {k for k in expected if not k.endswith("collapsed")}
  for key, value in found.items():
    np.testing.assert_allclose(value, expected[key], rtol=2e-5, err_msg=key)


def statistics(images=80, seed=2):
  """Two layers of three heads around planted values; head (0, 0) is collapsed, (1, 2) undecided."""
  rng = np.random.default_rng(seed)
  centre = np.array([[0.2, 0.9, 0.8], [0.7, 0.6, 0.3626]])
  ratio = centre[:, None] + 0.05 * rng.normal(size=(2, images, 3))
  return {"distance_to_uniform": ratio, "rollout_entropy": rng.normal(size=(2, images))}


def test_summary_by_head_layer_and_model():
  per_image = statistics()
  found = summarize_attention(per_image, key=KEY, resamples=500)
  ratio, rollout = per_image["distance_to_uniform"], per_image["rollout_entropy"]
  for part, values in (("heads", ratio), ("layers", ratio.mean(2)), ("model", ratio.mean((0, 2))[None])):
    estimate = found[part]["distance_to_uniform"]
    value = values.mean(1) if part != "model" else values.mean()
    np.testing.assert_allclose(estimate.value, value, rtol=1e-12)
    width = 2 * 1.96 * values.std(1) / 80**0.5
    np.testing.assert_allclose(estimate.high - estimate.low, width.reshape(value.shape), rtol=0.2)
    assert ((estimate.low < value) & (value < estimate.high)).all()
  assert "rollout_entropy" not in found["heads"]
  np.testing.assert_allclose(found["layers"]["rollout_entropy"].value, rollout.mean(1))
  # Heads of one image go together: the interval of the mean is that of image means, not of pooled heads.
  shared = ratio[:, :, :1] + np.zeros((1, 1, 3))
  together = summarize_attention({"distance_to_uniform": shared}, key=KEY, resamples=500)
  layer, head = (together[k]["distance_to_uniform"] for k in ("layers", "heads"))
  np.testing.assert_allclose(layer.high - layer.low, (head.high - head.low)[:, 0], rtol=1e-6)


def test_number_of_collapsed_heads_has_an_interval():
  per_image = statistics()
  counted = summarize_attention(per_image, key=KEY, resamples=500)["model"]["collapsed_heads"]
  assert (counted.low, counted.high) == (1, 2)  # one for sure, and one on the edge
  assert counted.value in (1, 2)
  certain = {"distance_to_uniform": per_image["distance_to_uniform"][:1]}
  assert summarize_attention(certain, key=KEY, resamples=500)["model"]["collapsed_heads"] == (1, 1, 1)


def test_classes_that_differ_are_told_apart_and_equal_ones_are_not():
  labels = np.arange(80) % 4
  per_image = statistics()
  per_image["distance_to_uniform"] = per_image["distance_to_uniform"] + 0.1 * (labels == 3)[None, :, None]
  found = attention_by_class(per_image, labels, classes=5, key=KEY, resamples=500)
  model = found["model"]["distance_to_uniform"]
  assert model.value.shape == (5,)
  assert found["layers"]["distance_to_uniform"].value.shape == (5, 2)
  for c in range(4):
    own = per_image["distance_to_uniform"][:, labels == c]
    np.testing.assert_allclose(model.value[c], own.mean(), rtol=1e-12)
    np.testing.assert_allclose(found["layers"]["distance_to_uniform"].value[c], own.mean((1, 2)), rtol=1e-12)
  assert model.low[3] > model.high[:3].max()
  assert model.low[:3].max() < model.high[:3].min()
  assert np.isnan(model.value[4])


def test_models_without_attention_are_refused():
  model = models.create("resnet18_cifar", widths=(4,), depths=(1,), image_size=8)
  with pytest.raises(ValueError, match="needs attention maps, and ResNet is convolutional"):
    attention_per_image(model, {}, np.zeros((2, 8, 8, 3), np.float32))
