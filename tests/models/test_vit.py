"""ViT and DeiT: the whole forward pass against float64 numpy, positions, tokens, stochastic depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from jaxkd.models import create
from jaxkd.models.vit import resize_positions

from .jitted import evaluate, init, train, true_init

SMALL = {"width": 16, "depth": 2, "heads": 2, "mlp_ratio": 2.0, "image_size": 8, "num_classes": 3}
IMAGES = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))


def build(name="deit", *, images=IMAGES, **options):
  """A small model and variables of a size at which every part of it matters."""
  model = create(name, **SMALL | options)
  return model, init(model, images, deviation=0.2)


def erf_gelu(x):
  return x * (1 + erf(x / np.sqrt(2))) / 2


def tanh_gelu(x):
  return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def forward(params, images, *, gelu=erf_gelu, epsilon=1e-6):
  """DeiT in float64 numpy: (cls logits, dist logits, maps of the last block)."""
  p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  x = np.asarray(images, np.float64)

  def dense(y, name):
    return y @ name["kernel"] + name["bias"]

  def norm(y, name):
    mean, var = y.mean(-1, keepdims=True), y.var(-1, keepdims=True)
    return (y - mean) / np.sqrt(var + epsilon) * name["scale"] + name["bias"]

  kernel = p["patch_embed"]["proj"]["kernel"].reshape(48, 16)
  patches = [
    x[:, i : i + 4, j : j + 4].reshape(2, 48) @ kernel + p["patch_embed"]["proj"]["bias"]
    for i in (0, 4)
    for j in (0, 4)
  ]
  special = [np.tile(p[name][:, 0], (2, 1)) for name in ("cls_token", "dist_token")]
  x = np.stack([*special, *patches], axis=1) + p["pos_embed"]
  for i in range(2):
    block = p[f"block{i:02d}"]
    qkv = dense(norm(x, block["norm1"]), block["attn"]["qkv"])
    heads, maps = [], []
    for h in range(2):
      q, k, v = (qkv[..., 16 * part + 8 * h : 16 * part + 8 * h + 8] for part in range(3))
      weights = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(8))
      maps.append(weights / weights.sum(-1, keepdims=True))
      heads.append(maps[-1] @ v)
    x = x + dense(np.concatenate(heads, axis=-1), block["attn"]["proj"])
    x = x + dense(gelu(dense(norm(x, block["norm2"]), block["mlp"]["fc1"])), block["mlp"]["fc2"])
  x = norm(x, p["norm"])
  return dense(x[:, 0], p["head"]), dense(x[:, 1], p["head_dist"]), np.stack(maps, axis=1)


def test_whole_forward_against_float64():
  model, variables = build()
  logits, taps = evaluate(model, variables, IMAGES, want=("attn",))
  cls, dist, maps = forward(variables["params"], IMAGES)
  np.testing.assert_allclose(taps["logits/cls"], cls, atol=2e-5)
  np.testing.assert_allclose(taps["logits/dist"], dist, atol=2e-5)
  np.testing.assert_allclose(logits, (cls + dist) / 2, atol=2e-5)
  np.testing.assert_allclose(taps["block01/attn"], maps, atol=2e-6)
  for wrong in ({"gelu": tanh_gelu}, {"epsilon": 1e-3}):  # negative controls
    assert np.abs(forward(variables["params"], IMAGES, **wrong)[0] - cls).max() > 1e-4


def test_initial_values():
  model = create("deit", **SMALL | {"depth": 1, "width": 64, "image_size": 32})
  params = true_init(model, jnp.zeros((1, 32, 32, 3)))["params"]
  block = params["block00"]
  for weights in (params["pos_embed"], block["attn"]["qkv"]["kernel"], block["mlp"]["fc2"]["kernel"]):
    np.testing.assert_allclose(
      np.std(weights), 0.02 * 0.8796, rtol=0.05
    )  # a normal cut off at two deviations
    assert np.abs(weights).max() <= 0.04
  bound = 1 / np.sqrt(3 * 4 * 4)  # torch's Conv2d
  assert 0.95 * bound < np.abs(params["patch_embed"]["proj"]["kernel"]).max() <= bound
  assert np.all(block["norm1"]["scale"] == 1)
  assert not np.any(block["attn"]["qkv"]["bias"])


def test_attention_maps_agree_with_the_fused_path_and_sum_to_one():
  model, variables = build()
  logits, taps = evaluate(model, variables, IMAGES, want=("attn",))
  assert taps["block00/attn"].shape == (2, 2, 6, 6)
  np.testing.assert_allclose(np.sum(taps["block01/attn"], axis=-1), 1, atol=1e-6)
  plain, without = evaluate(model, variables, IMAGES)
  np.testing.assert_allclose(logits, plain, atol=1e-6)
  assert set(taps) - set(without) == {"block00/attn", "block01/attn"}


def test_attention_maps_are_float32_in_a_bfloat16_model():
  model, variables = build(dtype="bfloat16")
  maps = evaluate(model, variables, IMAGES, want=("attn",))[1]["block00/attn"]
  assert maps.dtype == jnp.float32
  np.testing.assert_allclose(np.sum(maps, axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize("inference", ["mean", "cls", "dist"])
def test_inference_logits(inference):
  model, variables = build(inference=inference)
  logits, taps = evaluate(model, variables, IMAGES)
  both = (taps["logits/cls"] + taps["logits/dist"]) / 2
  np.testing.assert_array_equal(logits, both if inference == "mean" else taps[f"logits/{inference}"])
  np.testing.assert_array_equal(logits, taps["logits"])
  assert np.abs(taps["logits/cls"] - taps["logits/dist"]).max() > 1e-2


def test_without_classes_the_logits_are_the_normalised_cls_token():
  model, variables = build("vit", num_classes=0)
  logits, taps = evaluate(model, variables, IMAGES)
  np.testing.assert_array_equal(logits, taps["norm/tokens"][:, 0])
  np.testing.assert_array_equal(logits, taps["features"])
  assert "head" not in variables["params"]


def test_parameter_paths_read_like_torch_names():
  _, variables = build()
  paths = {"/".join(k.key for k in path) for path, _ in jax.tree.leaves_with_path(variables["params"])}
  layers = [
    "norm1/scale",
    "attn/qkv/kernel",
    "attn/proj/bias",
    "norm2/bias",
    "mlp/fc1/kernel",
    "mlp/fc2/bias",
  ]
  expected = {f"block{i:02d}/{layer}" for i in range(2) for layer in layers}
  expected |= {"cls_token", "dist_token", "pos_embed", "patch_embed/proj/kernel", "norm/scale"}
  assert expected | {"head/kernel", "head_dist/bias"} <= paths
  assert variables["params"]["pos_embed"].shape == (1, 6, 16)


def cubic_matrix(new, old, a=-0.5, antialias=True):
  """Rows of cubic-convolution weights, half-pixel centres, the kernel widened when shrinking; float64."""
  scale = old / new
  stretch = max(scale, 1.0) if antialias else 1.0
  t = np.abs((np.arange(old)[None] + 0.5) - (np.arange(new)[:, None] + 0.5) * scale) / stretch
  near, far = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * (t**3 - 5 * t**2 + 8 * t - 4)
  weights = np.where(t < 1, near, np.where(t < 2, far, 0))
  return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(("old", "new"), [((8, 8), (6, 6)), ((4, 6), (7, 3)), ((2, 3), (5, 5))])
def test_positions_are_resampled_with_an_antialiased_cubic(old, new):
  table = jax.random.normal(jax.random.key(0), (1, 2 + old[0] * old[1], 5))
  got = resize_positions(table, 2, old, new)
  grid = np.asarray(table[0, 2:], np.float64).reshape(*old, 5)

  def resample(**options):
    rows, columns = (cubic_matrix(n, o, **options) for n, o in zip(new, old, strict=True))
    return np.einsum("ip,jq,pqd->ijd", rows, columns, grid).reshape(-1, 5)

  np.testing.assert_array_equal(got[:, :2], table[:, :2])
  np.testing.assert_allclose(got[0, 2:], resample(), atol=2e-6)
  assert np.abs(got[0, 2:] - resample(a=-0.75)).max() > 1e-2  # negative control: the other cubic
  if min(new[0] - old[0], new[1] - old[1]) < 0:
    assert np.abs(got[0, 2:] - resample(antialias=False)).max() > 1e-2


def test_positions_at_their_own_grid_are_unchanged():
  table = jax.random.normal(jax.random.key(0), (1, 1 + 12, 5))
  assert resize_positions(table, 1, (3, 4), (3, 4)) is table
  turned = resize_positions(table, 1, (3, 4), (4, 3))  # as many tokens, another grid
  assert np.abs(turned - table).max() > 0.1


def test_one_model_takes_several_resolutions():
  model, variables = build("vit", image_size=(16, 8), images=jnp.zeros((1, 16, 8, 3)))
  assert model.grid == (4, 2)
  for h, w in ((16, 8), (8, 8), (12, 20)):
    taps = jax.eval_shape(model.apply, variables, jnp.zeros((2, h, w, 3)))[1]
    assert taps["norm/tokens"].shape == (2, 1 + h * w // 16, 16)
  logits, taps = evaluate(model, variables, jax.random.normal(jax.random.key(2), (2, 12, 20, 3)))
  table = variables["params"]["pos_embed"]
  resized = variables["params"] | {"pos_embed": resize_positions(table, 1, (4, 2), (3, 5))}
  other = create("vit", **SMALL | {"image_size": (12, 20)})
  again = evaluate(other, {"params": resized}, jax.random.normal(jax.random.key(2), (2, 12, 20, 3)))[0]
  np.testing.assert_allclose(logits, again, atol=1e-5)
  with pytest.raises(ValueError, match="10x8 pixels: patch_size=4 does not divide"):
    evaluate(model, variables, jnp.zeros((1, 10, 8, 3)))


def test_without_positions_the_order_of_patches_does_not_matter():
  model, variables = build()
  order = [2, 0, 3, 1]
  patches = [IMAGES[:, i : i + 4, j : j + 4] for i in (0, 4) for j in (0, 4)]
  a, b, c, d = (patches[i] for i in order)
  shuffled = jnp.concatenate([jnp.concatenate([a, b], 2), jnp.concatenate([c, d], 2)], 1)
  logits, taps = evaluate(model, variables, IMAGES)
  assert np.abs(evaluate(model, variables, shuffled)[0] - logits).max() > 1e-3  # negative control
  params = variables["params"] | {"pos_embed": jnp.zeros_like(variables["params"]["pos_embed"])}
  logits, taps = evaluate(model, {"params": params}, IMAGES)
  moved, moved_taps = evaluate(model, {"params": params}, shuffled)
  np.testing.assert_allclose(moved, logits, atol=1e-5)
  np.testing.assert_allclose(
    moved_taps["norm/tokens"][:, 2:], taps["norm/tokens"][:, 2:][:, np.array(order)], atol=1e-5
  )


def test_drop_path_grows_linearly_from_zero():
  options = {"width": 4, "depth": 3, "heads": 1, "image_size": 4, "drop_path": 0.5, "num_classes": 2}
  model = create("vit", **options)
  images = jax.random.normal(jax.random.key(0), (2048, 4, 4, 3))
  variables = init(model, images)
  taps = train(model, variables, images, key=jax.random.key(2))[0][1]
  still = evaluate(model, variables, images)[1]
  np.testing.assert_allclose(taps["block00/tokens"], still["block00/tokens"], atol=1e-6)
  for i, rate in ((1, 0.25), (2, 0.5)):
    before, after = taps[f"block{i - 1:02d}/tokens"], taps[f"block{i:02d}/tokens"]
    skipped = np.all(before == after, axis=(1, 2)).mean()  # both branches of the block dropped
    assert abs(skipped - rate**2) < 4 * np.sqrt(rate**2 * (1 - rate**2) / 2048)


def test_a_single_block_never_drops():
  model, variables = build(depth=1, drop_path=0.5)
  trained = train(model, variables, IMAGES)[0][0]  # rate 0: not even a key is needed
  np.testing.assert_allclose(trained, evaluate(model, variables, IMAGES)[0], atol=1e-6)


def test_conv_stem():
  model, variables = build(stem="conv")
  stem = variables["params"]["patch_embed"]
  assert set(stem) == {"conv1", "bn1", "conv2", "bn2", "proj"}
  assert stem["proj"]["kernel"].shape == (4, 4, 4, 16)
  (_, taps), updates = train(model, variables, IMAGES, key=jax.random.key(0))
  assert taps["norm/tokens"].shape == (2, 6, 16)
  assert set(updates["batch_stats"]["patch_embed"]) == {"bn1", "bn2"}


def test_grayscale_is_repeated():
  gray = IMAGES[..., :1]
  model, variables = build(in_channels=1, grayscale_to_rgb=True, images=gray)
  colour, _ = build()
  assert variables["params"]["patch_embed"]["proj"]["kernel"].shape == (4, 4, 3, 16)
  same = evaluate(colour, variables, jnp.concatenate([gray] * 3, axis=-1))[0]
  np.testing.assert_array_equal(evaluate(model, variables, gray)[0], same)


@pytest.mark.parametrize("rate", ["dropout", "cls_dropout"])
def test_dropout_acts_in_training_only(rate):
  model, variables = build(**{rate: 0.5})
  plain, _ = build()
  np.testing.assert_array_equal(evaluate(model, variables, IMAGES)[0], evaluate(plain, variables, IMAGES)[0])
  noisy = train(model, variables, IMAGES, key=jax.random.key(0))[0][0]
  assert np.abs(noisy - evaluate(plain, variables, IMAGES)[0]).max() > 1e-2


def test_cls_dropout_touches_only_the_cls_token():
  model, variables = build(cls_dropout=0.5, depth=1, drop_path=0.0)
  attn = variables["params"]["block00"]["attn"]
  silent = attn | {"proj": jax.tree.map(jnp.zeros_like, attn["proj"])}  # tokens cannot exchange anything
  params = variables["params"] | {"block00": variables["params"]["block00"] | {"attn": silent}}
  moved = train(model, {"params": params}, IMAGES, key=jax.random.key(0))[0][1]
  still = evaluate(model, {"params": params}, IMAGES)[1]
  difference = np.abs(moved["block00/tokens"] - still["block00/tokens"]).max(axis=(0, 2))
  assert difference[0] > 1e-2
  np.testing.assert_allclose(difference[1:], 0, atol=1e-6)
