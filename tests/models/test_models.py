"""The registry and the contract every model keeps: shapes and names of taps, dtypes, gradients, replicas."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkd.models as models

from .jitted import QUICK, evaluate, init, train

CNN = {"widths": (4, 8), "depths": (1, 1), "image_size": 8, "in_channels": 2, "num_classes": 3}
VIT = {"width": 16, "depth": 2, "heads": 2, "image_size": 8, "in_channels": 2, "num_classes": 3}
VIT_NAMES = ("deit", "vit", "dinov2")
SMALL = {name: VIT if name.startswith(VIT_NAMES) else CNN for name in models.names()}
SMALL |= {name: VIT | {"patch_size": 4} for name in models.names() if name.startswith("dinov2")}
# Side of the first stage's map for 8 px images.
SIDES = {"adaptive_cnn": 4, "resnet18_cifar": 8} | {"resnet18": 2}
KINDS = {
  "adaptive_cnn": CNN,
  "resnet18_cifar": CNN,
  "convnextv2_tiny": {**CNN, "drop_path": 0.1},
  "dinov2_vitg14_reg": {**VIT, "patch_size": 4, "drop_path": 0.1},
  "deit": {**VIT, "drop_path": 0.1, "dropout": 0.1, "stem": "conv"},
}
IMAGES = jax.random.normal(jax.random.key(0), (4, 8, 8, 2))


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shapes(name, **options):
  model = models.create(name, **options)
  images = jnp.zeros((1, *model.image_size, model.in_channels))
  return jax.eval_shape(model.init, jax.random.key(0), images)


def logits_in_training(model, variables, key):
  options = {"train": True, "rngs": {"dropout": key}, "mutable": ["batch_stats"]}
  return model.apply(variables, IMAGES, **options)[0][0]


@pytest.mark.parametrize(
  ("name", "options", "expected"),
  [
    ("adaptive_cnn", {"variant": "mnist"}, 709_034),
    ("adaptive_cnn", {"variant": "cifar"}, 17_629_514),
    ("resnet18_cifar", {}, 11_173_962),
    ("resnet18_cifar", {"num_classes": 0}, 11_173_962 - 5_130),
    ("deit_tiny", {}, 5_365_076),
    ("vit_tiny", {}, 5_365_076 - 2 * 192 - 1_930),  # without the token, its position and its head
    ("vit_tiny", {"num_classes": 0}, 5_365_076 - 2 * 192 - 2 * 1_930),
    ("resnet18", {}, 11_689_512),  # torchvision's
    ("convnextv2_tiny", {"num_classes": 1000}, 28_635_496),
    ("convnextv2_tiny", {}, 27_874_186),
    ("convnextv2_tiny", {"patch_size": 2}, 27_870_730),
    ("convnextv2_atto", {"num_classes": 1000}, 3_708_400),  # timm's, as the next ones
    ("deit_tiny", {"image_size": 224, "patch_size": 16, "num_classes": 1000}, 5_910_800),
    ("dinov2_vits14", {}, 22_056_192),
    ("dinov2_vits14_reg", {}, 22_056_192 + 4 * 384),
    ("dinov2_vitg14", {}, 1_136_479_232),
  ],
)
def test_parameter_counts(name, options, expected):
  assert count(shapes(name, **options)["params"]) == expected


@pytest.mark.parametrize("name", models.names())
def test_tap_contract(name):
  model = models.create(name, **SMALL[name])
  variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
  logits, taps = jax.eval_shape(model.apply, variables, IMAGES)
  b, n, d = 4, 4 + model.special_tokens, 16
  assert model.num_layers == 2
  if name.startswith(VIT_NAMES):
    taps_of_block = {"tokens": (b, n, d), "normed": (b, n, d), "cls": (b, d)}
    expected = {f"block{i:02d}/{k}": shape for i in range(2) for k, shape in taps_of_block.items()}
    expected |= {"embed/tokens": (b, n, d), "norm/tokens": (b, n, d)}
    expected |= {"logits/dist": (b, 3)} if name.startswith("deit") else {}
    assert (model.grid, model.patch_size) == ((2, 2), 4)
    assert model.special_tokens == 1 + name.startswith("deit") + 4 * name.endswith("reg")
  else:
    side, d = SIDES.get(name, 2), 8  # the mnist variant pools after its stem, ConvNeXt divides by 4
    expected = {"stage0": (b, side, side, 4), "stage1": (b, side // 2, side // 2, 8)}
    expected |= {} if name == "adaptive_cnn" else {"stem": (b, side, side, 4)}
    assert model.special_tokens == 0
  expected |= {"features": (b, d), "logits": (b, 3), "logits/cls": (b, 3)}
  assert {key: tap.shape for key, tap in taps.items()} == expected
  assert {tap.dtype for tap in [logits, *taps.values()]} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("name", KINDS)
def test_training_gradient_is_finite_and_reaches_every_parameter(name):
  model = models.create(name, **KINDS[name])
  variables = init(model, IMAGES)

  def loss(params):
    logits = logits_in_training(model, variables | {"params": params}, jax.random.key(2))
    return jnp.sum(jax.nn.logsumexp(logits, axis=-1) - logits[:, 0])

  grads = jax.jit(jax.grad(loss), compiler_options=QUICK)(variables["params"])
  norms = [np.linalg.norm(g) for g in jax.tree.leaves(grads)]
  assert np.all(np.isfinite(norms))
  # Of a 4-sample batch a ReLU or the squeezed gate may be silent; nothing else may.
  assert sum(norm == 0 for norm in norms) <= (2 if name == "adaptive_cnn" else 0)


@pytest.mark.parametrize("name", ["adaptive_cnn", "deit"])
def test_training_differs_from_evaluation_and_moves_the_statistics(name):
  model = models.create(name, **KINDS[name])
  variables = init(model, IMAGES)
  (logits, _), updates = train(model, variables, IMAGES, key=jax.random.key(2))
  evaluated = evaluate(model, variables, IMAGES)[0]
  assert np.abs(logits - evaluated).max() > 1e-3
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), updates["batch_stats"], variables["batch_stats"])
  assert min(jax.tree.leaves(moved)) > 0

  again = train(model, variables, IMAGES, key=jax.random.key(2))[0][0]
  np.testing.assert_array_equal(logits, again)


@pytest.mark.parametrize("name", ["adaptive_cnn", "deit"])
def test_replicas_under_vmap_equal_single_runs(name):
  model = models.create(name, **KINDS[name])
  keys = jax.random.split(jax.random.key(2), 2)
  singles = [init(model, IMAGES, seed=seed) for seed in (1, 2)]
  variables = jax.tree.map(lambda *leaves: np.stack(leaves), *singles)

  together = jax.jit(jax.vmap(partial(logits_in_training, model)), compiler_options=QUICK)(variables, keys)
  for i in range(2):
    np.testing.assert_allclose(
      together[i], train(model, singles[i], IMAGES, key=keys[i])[0][0], atol=2e-6, rtol=2e-6
    )
  assert np.abs(together[0] - together[1]).max() > 1e-3


@pytest.mark.parametrize("name", ["adaptive_cnn", "deit"])
def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32(name):
  exact = models.create(name, **KINDS[name])
  model = models.create(name, **KINDS[name], dtype="bfloat16")
  variables = init(model, IMAGES)
  (logits, taps), updates = train(model, variables, IMAGES, key=jax.random.key(2))
  leaves = [*jax.tree.leaves((variables, updates)), logits, taps["features"]]
  assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}
  assert taps["block00/tokens" if name == "deit" else "stage0"].dtype == jnp.bfloat16
  exact_logits = train(exact, variables, IMAGES, key=jax.random.key(2))[0][0]
  difference = np.abs(logits - exact_logits).max()
  assert 0 < difference < 0.03


def test_options_are_the_accepted_ones_with_their_defaults():
  for name in models.names():
    given = models.options(name)
    assert {"num_classes", "in_channels", "image_size", "dtype"} <= set(given)
    assert models.create(name, **given) == models.create(name)
  assert models.options("deit_small")["width"] == 384
  assert models.options("deit")["inference"] == "mean"


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("deit_tinny", {}, "unknown model 'deit_tinny'.*deit_small.*did you mean 'deit_tiny'"),
    ("deit", {"widht": 3}, "no option 'widht'.*did you mean 'width'"),
    ("deit", {"patch_size": 5}, "patch_size=5 does not divide image_size=32x32.*: 2, 4; .*: 30 or 35"),
    ("vit", {"image_size": (28, 32), "patch_size": 7}, "28x32.*: 2, 4; .*: 28 or 35 and 28 or 35"),
    ("deit", {"heads": 5}, "heads=5 do not divide width=192; nearest: 4, 6"),
    ("deit", {"dtype": "bf16"}, "unknown dtype 'bf16'; known: float32, bfloat16"),
    ("deit", {"stem": "cnov"}, "unknown stem 'cnov'.*did you mean 'conv'"),
    ("deit", {"inference": "avg"}, "unknown inference 'avg'; known: mean, cls, dist"),
    ("vit", {"inference": "mean"}, "inference='mean' needs a distillation head"),
    ("deit", {"drop_path": 1.0}, "drop_path=1.0 is not a rate"),
    ("deit", {"grayscale_to_rgb": True}, "in_channels is 3; use in_channels=1"),
    ("deit", {"attention": "cudnn", "dtype": "bfloat16"}, "it needs a CUDA GPU.*use attention='xla'"),
    ("deit", {"mlp_ratio": 0}, "mlp_ratio=0 must be positive"),
    ("deit", {"image_size": (8, 8, 3)}, "must be one side or"),
    ("adaptive_cnn", {"variant": "imagenet"}, "unknown variant 'imagenet'; known: mnist, cifar"),
    ("adaptive_cnn", {"widths": (8, 16)}, "must have one entry per stage"),
    ("resnet18_cifar", {"widths": (8, 0)}, "widths=.8, 0. must be positive"),
    ("resnet18_cifar", {"num_classes": -1}, "num_classes=-1 is negative"),
  ],
)
def test_messages_name_the_value_and_the_fix(name, options, message):
  with pytest.raises(ValueError, match=message):
    models.create(name, **options)


@pytest.mark.parametrize("name", KINDS)
def test_images_and_taps_that_do_not_fit_are_refused(name):
  model = models.create(name, **KINDS[name])
  with pytest.raises(ValueError, match=r"expected \[b, h, w, 2\]"):
    init(model, jnp.zeros((1, 8, 8, 3)))
  with pytest.raises(ValueError, match=r"unknown tap to want.* 'atn'"):
    init(model, IMAGES, want=("atn",))
