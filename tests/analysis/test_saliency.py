"""Heat maps against closed forms, finite differences and planted patches."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import models
from jaxkd.analysis.saliency import feature_maps, gradient_weighted_relevance, saliency
from jaxkd.models.transformer import Block


def made(name, images, **options):
  model = models.create(name, image_size=images.shape[1:3], **options)
  return model, jax.jit(model.init)(jax.random.key(0), images)


def noise(count=5, size=(8, 8), seed=0):
  return np.random.default_rng(seed).normal(size=(count, *size, 3)).astype(np.float32)


VIT = {"patch_size": 2, "width": 16, "heads": 2, "num_classes": 4, "init_std": 0.3}
CNN = {"widths": (8, 12), "depths": (1, 1), "num_classes": 4}


def stretch(heat):
  low, high = heat.min((1, 2), keepdims=True), heat.max((1, 2), keepdims=True)
  return (heat - low) / np.where(high > low, high - low, 1)  # a map without contrast is 0


def bilinear(heat, size):
  """Half-pixel bilinear interpolation with repeated edges, written out."""

  def weights(old, new):
    at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(old)[None]))

  return np.einsum("yi,bij,xj->byx", weights(heat.shape[1], size[0]), heat, weights(heat.shape[2], size[1]))


def test_grad_cam_before_a_linear_head_is_its_class_activation_map():
  """logit = w . mean(A), so the map is relu(sum_c w_c A_c) up to scale (Zhou et al., 2016)."""
  images = noise(size=(8, 12))
  model, variables = made("resnet18_cifar", images, **CNN)
  found = saliency(model, variables, images, method="grad_cam", target=2, batch_size=2)
  maps = np.asarray(jax.jit(model.apply)(variables, images)[1]["stage1"], np.float64)
  weights = np.asarray(variables["params"]["fc"]["kernel"], np.float64)
  expected = [bilinear(stretch(np.maximum(maps @ weights[:, c], 0)), (8, 12)) for c in (2, 3)]
  assert found.shape == (5, 8, 12)
  np.testing.assert_allclose(found, expected[0], atol=2e-5)
  assert np.abs(found - expected[1]).max() > 0.2  # negative control: another class


def test_target_is_the_predicted_class_unless_given():
  images = noise()
  model, variables = made("resnet18_cifar", images, **CNN)
  predicted = np.asarray(jax.jit(model.apply)(variables, images)[1]["logits/cls"]).argmax(1)
  default = saliency(model, variables, images, method="grad_cam")
  np.testing.assert_array_equal(
    saliency(model, variables, images, method="grad_cam", target=predicted), default
  )
  other = saliency(model, variables, images, method="grad_cam", target=(predicted + 1) % 4)
  assert np.abs(other - default).max() > 0.1


@pytest.mark.parametrize(
  ("name", "options"),
  [
    ("adaptive_cnn", {"variant": "cifar", **CNN, "head_width": 8}),
    ("convnextv2_atto", {"patch_size": 2, **CNN}),
  ],
)
def test_every_cnn_has_a_map_and_every_stage(name, options):
  images = noise(2)
  model, variables = made(name, images, **options)
  last, first = (saliency(model, variables, images, method="grad_cam", layer=n) for n in ("stage1", "stage0"))
  np.testing.assert_array_equal(saliency(model, variables, images, method="grad_cam"), last)
  assert np.abs(first - last).max() > 0.1


def rebuilt_logit(model, variables, tokens, target):
  """The logit from the tokens that enter the last block: that block, the final norm and the head by hand."""
  block = Block(model.heads)
  params = variables["params"]
  out, _ = block.apply({"params": params[f"block{model.depth - 1:02d}"]}, tokens, train=False)
  cls = out[:, 0] - out[:, 0].mean(-1, keepdims=True)
  cls = cls / jnp.sqrt((cls**2).mean(-1, keepdims=True) + 1e-6)
  cls = cls * params["norm"]["scale"][None] + params["norm"]["bias"][None]
  return (cls @ params["head"]["kernel"])[:, target].sum()


def test_grad_cam_of_a_transformer_uses_the_tokens_that_enter_the_last_block():
  images = noise(3, (8, 12))
  model, variables = made("deit", images, depth=3, registers=1, **VIT)
  found = saliency(model, variables, images, method="grad_cam", target=1)
  taps = jax.jit(model.apply)(variables, images)[1]
  tokens = taps["block01/tokens"]
  slopes = jax.jit(jax.grad(lambda t: rebuilt_logit(model, variables, t, 1)))(tokens)
  patches, slopes = (np.asarray(x, np.float64)[:, 3:].reshape(3, 4, 6, 16) for x in (tokens, slopes))
  heat = np.maximum(np.einsum("bhwd,bd->bhw", patches, slopes.mean((1, 2))), 0)
  np.testing.assert_allclose(found, bilinear(stretch(heat), (8, 12)), atol=1e-4)
  # Nothing depends on the patch tokens that leave the last block: a map without contrast.
  np.testing.assert_array_equal(
    saliency(model, variables, images, method="grad_cam", layer="block02/tokens"), 0
  )


def test_gradients_of_attention_maps_against_finite_differences():
  """Through the collection `perturbations`; without it the logits are those of the model as it is."""
  images = noise(2)
  model, variables = made("vit", images, depth=2, **VIT)
  run = jax.jit(lambda v: model.apply(v, images, want=("attn",)))
  plain, taps = run(variables)
  direction = jax.random.normal(jax.random.key(1), taps["block00/attn"].shape)

  def logit(step):
    added = {
      "block00": {"attn": {"maps": step * direction}},
      "block01": {"attn": {"maps": jnp.zeros_like(direction)}},
    }
    return model.apply({**variables, "perturbations": added}, images, want=("attn",))[0][:, 1].sum()

  slope = float(jax.jit(jax.grad(logit))(0.0))
  moved = [float(jax.jit(logit)(s)) for s in (8e-3, 4e-3, -4e-3, -8e-3)]
  difference = (8 * (moved[1] - moved[2]) - (moved[0] - moved[3])) / (12 * 4e-3)  # of fourth order
  assert slope == pytest.approx(difference, rel=1e-3)
  assert abs(slope) > 1e-2
  assert float(jax.jit(logit)(0.0)) == pytest.approx(float(plain[:, 1].sum()), rel=1e-5)
  assert "perturbations" not in variables


def test_gradient_attention_against_its_own_definition():
  images = noise(3)
  model, variables = made("deit", images, depth=2, **VIT)
  found = saliency(model, variables, images, method="gradient_attention", target=3)
  _, taps = jax.jit(lambda v: model.apply(v, images, want=("attn",)))(variables)
  maps = [np.asarray(taps[f"block{i:02d}/attn"], np.float64) for i in range(2)]

  def logit(maps):
    added = {f"block{i:02d}": {"attn": {"maps": x}} for i, x in enumerate(maps)}
    return model.apply({**variables, "perturbations": added}, images, want=("attn",))[1]["logits/cls"][
      :, 3
    ].sum()

  zeros = [jnp.zeros(x.shape) for x in maps]
  gradients = [np.asarray(g, np.float64) for g in jax.jit(jax.grad(logit))(zeros)]
  heat = np.zeros((3, 4, 4))
  for b in range(3):
    relevance = np.eye(18)
    for attention, gradient in zip(maps, gradients, strict=True):
      mean = sum(np.maximum(gradient[b, h] * attention[b, h], 0) for h in range(2)) / 2
      relevance = relevance + mean @ relevance
    heat[b] = relevance[0, 2:].reshape(4, 4)
  np.testing.assert_allclose(found, bilinear(stretch(heat), (8, 8)), atol=1e-4)


def test_relevance_of_one_layer_by_hand():
  attention, gradient = jnp.full((1, 2, 3, 3), 1 / 3), jnp.zeros((1, 2, 3, 3))
  gradient = gradient.at[0, 0, 0, 1].set(6.0).at[0, 1, 0, 2].set(-6.0)
  expected = np.eye(3)
  expected[0, 1] = 1.0  # half of 6 / 3, over two heads; the negative share is dropped
  np.testing.assert_allclose(gradient_weighted_relevance([attention], [gradient])[0], expected, rtol=1e-6)


class Looking(nn.Module):
  """A transformer of one layer whose cls token looks at the patch that the image marks."""

  special_tokens: int = 1
  num_layers: int = 1
  patch_size: int = 2
  num_classes: int = 2

  def __call__(self, images, *, train=False, want=()):
    marked = images.reshape(len(images), 4, 2, 4, 2, 3).mean(axis=(2, 4, 5)).reshape(len(images), 16)
    row = jax.nn.softmax(20 * marked, axis=-1)
    rest = jnp.full((len(images), 16, 17), 1 / 17)
    maps = jnp.concatenate([jnp.pad(row, ((0, 0), (1, 0)))[:, None], rest], axis=1)
    return row[:, :2], {"block00/attn": maps[:, None], "logits/cls": row[:, :2]}


def test_rollout_shows_where_the_cls_token_looks():
  place = np.arange(16)
  images = np.zeros((16, 4, 2, 4, 2, 3), np.float32)
  images[place, place // 4, :, place % 4] = 1
  heat = saliency(Looking(), {}, images.reshape(16, 8, 8, 3), method="rollout")
  cells = heat.reshape(16, 4, 2, 4, 2).mean((2, 4)).reshape(16, 16)
  np.testing.assert_array_equal(cells.argmax(1), place)
  blind = saliency(Looking(), {}, np.zeros((2, 8, 8, 3), np.float32), method="rollout")
  np.testing.assert_array_equal(blind, 0)  # uniform attention has no contrast


def planted(count, seed, size=8):
  """Noise with one 2x2 cell of one of two colours, on the grid of patches; its label and its place."""
  rng = np.random.default_rng(seed)
  images = rng.normal(scale=0.3, size=(count, size // 2, 2, size // 2, 2, 3))
  label, row, column = rng.integers(0, 2, count), *rng.integers(0, size // 2, (2, count))
  images[np.arange(count), row, :, column] += np.where(label[:, None, None] == 0, [2, -2, 0], [-2, 2, 0])[
    :, None
  ]
  return images.reshape(count, size, size, 3).astype(np.float32), label, row * (size // 2) + column


def trained(model, variables, steps):
  images, labels, _ = planted(512, 1)
  optimizer = optax.adam(3e-3)
  rest = {k: v for k, v in variables.items() if k != "params"}

  def loss(params, x, y):
    logits = model.apply({"params": params, **rest}, x)[1]["logits/cls"]
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, y).mean()

  def step(carry, i):
    params, state = carry
    x, y = (
      jax.lax.dynamic_slice_in_dim(jnp.asarray(z), i * 64, 64) for z in (images, labels.astype(np.int32))
    )
    updates, state = optimizer.update(jax.grad(loss)(params, x, y), state, params)
    return (optax.apply_updates(params, updates), state), None

  params = variables["params"]
  order = jnp.arange(steps) % 8
  (params, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, order))((params, optimizer.init(params)))
  return {"params": params, **rest}


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize(
  ("name", "options", "methods"),
  [
    ("vit", {"depth": 2, **VIT, "num_classes": 2}, ("grad_cam", "rollout", "gradient_attention")),
    ("resnet18_cifar", {**CNN, "widths": (8,), "depths": (1,), "num_classes": 2}, ("grad_cam",)),
  ],
)
def test_a_trained_model_is_explained_by_the_planted_patch(name, options, methods):
  images, labels, place = planted(64, 2)
  model, variables = made(name, images, **options)
  variables = trained(model, variables, 120)
  right = np.asarray(jax.jit(model.apply)(variables, images)[1]["logits/cls"]).argmax(1) == labels
  assert right.mean() > 0.95
  for method in methods:
    heat = saliency(model, variables, images, method=method)
    cells = heat.reshape(64, 4, 2, 4, 2).mean((2, 4)).reshape(64, 16)
    hits = np.mean(cells.argmax(1) == place)
    assert hits > 0.7, (method, hits)
    # Negative control: the maps of other images find nothing but by chance, 1 in 16.
    assert np.mean(np.roll(cells.argmax(1), 1) == place) < 0.25


class Scaled(nn.Module):
  """A map whose channels vary as much as the weights say."""

  weights: Any
  special_tokens: int = 0
  num_layers: int = 1

  def __call__(self, images, *, train=False, want=()):
    return images, {"stage0": images[..., :1] * jnp.asarray(self.weights)[None, None, None]}


def test_feature_maps_pick_the_channels_that_vary_most():
  images = noise(3)
  maps, channels = feature_maps(
    Scaled((0.5, 0.0, -3.0, 1.0)), {}, images, layer="stage0", count=3, batch_size=2
  )
  assert channels.tolist() == [2, 3, 0]
  assert maps.shape == (3, 3, 8, 8)
  one = images[..., 0]
  np.testing.assert_allclose(maps[:, 1], (one - one.min()) / (one.max() - one.min()), atol=1e-6)
  np.testing.assert_allclose(maps[:, 0], 1 - maps[:, 1], atol=1e-5)
  constant, _ = feature_maps(Scaled((0.0,)), {}, images, layer="stage0")
  np.testing.assert_array_equal(constant, 0)


@pytest.mark.parametrize(
  ("name", "change", "message"),
  [
    ("vit", {"method": "lime"}, "'lime'; known: grad_cam, rollout, gradient_attention"),
    ("cnn", {"method": "rollout"}, "rollout needs attention maps, and ResNet is convolutional"),
    ("cnn", {"method": "gradient_attention"}, "needs attention maps"),
    ("vit", {"method": "rollout", "target": 1}, "does not depend on a class"),
    ("vit", {"method": "rollout", "layer": "block00/tokens"}, "uses all layers"),
    ("vit", {"method": "grad_cam", "target": 4}, r"not a class in 0 .. 3"),
    ("vit", {"method": "grad_cam", "target": np.zeros(3, int)}, "all or each"),
    ("vit", {"method": "grad_cam", "layer": "stage1"}, "no tap 'stage1'"),
    ("vit", {"method": "grad_cam", "layer": "block00/normed"}, "no module of its own returns it"),
    ("headless", {"method": "grad_cam"}, "has no classifier"),
  ],
)
def test_refusals(name, change, message):
  images = noise(2)
  kind, options = {
    "vit": ("vit", {"depth": 2, **VIT}),
    "headless": ("vit", {"depth": 2, **VIT, "num_classes": 0}),
    "cnn": ("resnet18_cifar", CNN),
  }[name]
  model = models.create(kind, image_size=8, **options)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  with pytest.raises(ValueError, match=message):
    saliency(model, variables, images, **change)
