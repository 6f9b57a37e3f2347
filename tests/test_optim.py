"""Optimisers and parameter groups: hard numbers of the first release, float64 references, decay, freezing, depth."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization

from jaxkd import models
from jaxkd import parameter_groups as groups
from jaxkd.errors import UserError
from jaxkd.muon import COEFFICIENTS, ITERATIONS, orthogonalize
from jaxkd.optim import decay_mask, make_optimizer

from .parity import optim_cases as cases
from .parity.optim_cases import config, distance, flat, tree

pytestmark = pytest.mark.usefixtures("optax_promotion")

# --- the first release ---

# float32 parameters after 5 steps at lr 0.1 of the tree and gradients below, before the other optimisers came.
# Two entries each of heads/h/kernel, block00/fc1/bias and block00/fc1/kernel.
FIRST = {
  "adamw": (
    {"name": "adamw"},
    ["-0x1.1e292ep-1", "-0x1.1e3a54p+0", "0x1.7add5ep+0", "0x1.8f5d6p-1", "-0x1.a13911p-4", "-0x1.82a5acp-2"],
  ),
  "nesterov": (
    {"name": "sgd"},
    [
      "-0x1.494f2cp-1",
      "-0x1.fd3754p-1",
      "0x1.513dccp+0",
      "0x1.e3bc3ep-1",
      "-0x1.f71b9cp-5",
      "-0x1.ef8c92p-3",
    ],
  ),
  "plain": (
    {"name": "sgd", "momentum": 0.0, "clip": 0.0, "decay_all": True},
    ["-0x1.a087b6p-1", "-0x1.7e1d78p-1", "0x1.1d5ccp+0", "0x1.2d62dp+0", "0x1.15d67p-6", "-0x1.4698dp-3"],
  ),
}


def first_tree():
  r = np.random.default_rng(0)
  shapes = {"model/block00/fc1/kernel": (3, 2), "model/block00/fc1/bias": (2,), "heads/h/kernel": (2, 2)}
  return tree({name: np.float32(r.normal(size=shape)) for name, shape in shapes.items()})


def first_gradient(params, t):
  r, scale = np.random.default_rng(100 + t), np.float32(2.0 if t % 2 else 0.1)
  return jax.tree.map(lambda p: jnp.asarray(np.float32(r.normal(size=p.shape)) * scale), params)


@pytest.mark.parametrize("name", FIRST)
def test_first_release(name):
  options, hexadecimal = FIRST[name]
  optim = config(lr=0.1, **{"weight_decay": 0.05, **options})
  tx = make_optimizer(optim, cases.schedule_of(optim, steps=12, steps_per_epoch=3))
  params = first_tree()
  state = tx.init(params)
  for t in range(5):
    updates, state = tx.update(first_gradient(params, t), state, params)
    params = jax.tree.map(jnp.add, params, updates)
  found = np.concatenate([np.ravel(leaf)[:2] for leaf in jax.tree.leaves(params)])
  np.testing.assert_array_max_ulp(found, np.float32([*map(float.fromhex, hexadecimal)]), 4)


# --- what torch.optim does not have; the rest is in parity/test_optim_goldens.py ---


def reference(rule):
  """The parameters after the cases' gradients by `rule(name, p, g, memory, lr)`, in float64."""
  schedule = cases.schedule_of(config())
  params = {k: np.float64(v) for k, v in cases.parameters().items()}
  memory: dict = {name: {} for name in params}
  for t, grads in enumerate(cases.gradients()):
    norm = np.sqrt(sum((np.float64(g) ** 2).sum() for g in grads.values()))
    for name, p in params.items():
      params[name] = rule(name, p, np.float64(grads[name]) / max(norm, 1), memory[name], float(schedule(t)))
  return params


def lion(name, p, g, memory, lr, beta2=0.99):
  """Algorithm 2 of Chen et al. (2023), arXiv:2302.06675."""
  m = memory.get("m", 0.0)
  memory["m"] = beta2 * m + (1 - beta2) * g
  return p - lr * (np.sign(0.9 * m + 0.1 * g) + (0.1 * p if name in cases.DECAYED else 0))


def test_lion():
  found = cases.train(config(name="lion"))
  assert distance(found, reference(lion)) < 1e-6
  assert distance(found, reference(functools.partial(lion, beta2=0.9))) > 1e-4
  assert distance(cases.train(config(name="lion", decay_all=True)), reference(lion)) > 1e-4


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_orthogonalize_acts_on_singular_values(shape):
  """U p(p(...p(S / |S|))) V^T in float64, p the published polynomial."""
  matrix = np.random.default_rng(1).standard_normal(shape)
  u, s, v = np.linalg.svd(matrix, full_matrices=False)
  s = s / np.linalg.norm(s)
  a, b, c = COEFFICIENTS
  for _ in range(ITERATIONS):
    s = a * s + b * s**3 + c * s**5
  assert ((s > 0.65) & (s < 1.25)).all()
  np.testing.assert_allclose(orthogonalize(jnp.float32(matrix)), u * s @ v, atol=1e-5)


def test_muon_needs_matrices():
  tx = make_optimizer(config(name="muon"), optax.constant_schedule(0.1))
  with pytest.raises(UserError, match="no matrices in its blocks"):
    tx.init(abstract("resnet18_cifar"))


def test_muon_takes_the_matrices_of_the_blocks_only():
  chosen = names_where(groups.muon_mask(abstract("deit")))
  kinds = ("attn/proj", "attn/qkv", "mlp/fc1", "mlp/fc2")
  assert chosen == {f"model/block0{i}/{kind}/kernel" for i in range(2) for kind in kinds}


# --- groups by path ---


SMALL = {"image_size": 32, "in_channels": 3, "num_classes": 10}
TINY = {"patch_size": 4, "width": 16, "depth": 2, "heads": 2}


@functools.cache
def abstract(name):
  """Shapes of a run's parameters: a model and a head of a term."""
  options = {**SMALL, **(TINY if name in ("vit", "deit") else {})}
  if name.startswith("dinov2"):
    options |= {"image_size": 28, "depth": 2, "width": 32, "heads": 2}
  model = models.create(name, **options)
  side = options["image_size"]
  params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, side, side, 3))))["params"]
  proj = {
    "kernel": jax.ShapeDtypeStruct((4, 4), jnp.float32),
    "bias": jax.ShapeDtypeStruct((4,), jnp.float32),
  }
  return {"model": params, "heads": {"tok": {"proj": proj}}}


def by_name(nested):
  return {groups.path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(nested)}


def names_where(mask):
  return {name for name, value in by_name(mask).items() if value}


FAMILIES = (
  "adaptive_cnn",
  "resnet18_cifar",
  "resnet18",
  "convnextv2_atto",
  "deit",
  "vit",
  "dinov2_vits14_reg",
)


@pytest.mark.parametrize("name", FAMILIES)
def test_decay_takes_matrices_and_convolutions(name):
  params = abstract(name)
  shapes = {name: leaf.shape for name, leaf in by_name(params).items()}
  decayed = names_where(decay_mask(params))
  weights = {n for n, shape in shapes.items() if len(shape) > 1 and not re.search(r"_token|_embed$", n)}
  assert decayed == weights
  undecayed = "bias|scale|gamma|beta|pos_embed|(cls|dist|mask|register)_tokens?"
  assert all(re.fullmatch(undecayed, n.rpartition("/")[2]) for n in shapes.keys() - decayed)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_has_a_depth(name):
  found, last = groups.depths(abstract(name))
  depth = by_name(found)
  assert set(depth.values()) == set(range(last + 1)), "no gap from the image to the logits"
  assert depth["heads/tok/proj/kernel"] == last


def test_depths_of_a_vit_and_a_cnn():
  depth, last = groups.depths(abstract("deit"))
  depth = by_name(depth)
  assert last == 3
  assert {n for n, d in depth.items() if d == 0} == {
    *("model/cls_token", "model/dist_token", "model/pos_embed"),
    *("model/patch_embed/proj/bias", "model/patch_embed/proj/kernel"),
  }
  assert depth["model/block00/attn/qkv/kernel"] == 1
  assert depth["model/block01/norm2/scale"] == 2
  assert depth["model/norm/scale"] == depth["model/head/kernel"] == depth["model/head_dist/bias"] == 3
  cnn = by_name(groups.depths(abstract("convnextv2_atto"))[0])
  assert cnn["model/stem_conv/kernel"] == 0
  assert cnn["model/down1_conv/kernel"] == cnn["model/stage1_block0/dwconv/kernel"] == 3, (
    "stage 0 has two blocks"
  )
  resnet = by_name(groups.depths(abstract("resnet18"))[0])
  assert (resnet["model/bn1/scale"], resnet["model/layer2_0/conv1/kernel"], resnet["model/fc/bias"]) == (
    0,
    3,
    9,
  )


def test_unknown_depth():
  with pytest.raises(UserError, match="depth of 'model/adapter/kernel' is not known"):
    groups.depths({"model": {"adapter": {"kernel": jnp.zeros((2, 2))}}})


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_layer_decay_is_a_learning_rate_per_depth(name):
  """Each parameter moves as in a run whose learning rate is its own."""
  found = cases.train(config(name=name, layer_decay=0.5))
  scale = {
    "model/pos_embed": 0.125,
    "model/block00/attn/qkv/kernel": 0.25,
    "model/block01/mlp/fc2/kernel": 0.5,
  }
  scale |= {"model/head/kernel": 1.0, "heads/tokens/proj/kernel": 1.0}
  for factor in sorted(set(scale.values())):
    alone = cases.train(config(name=name, lr=0.01 * factor))
    for leaf in (n for n, s in scale.items() if s == factor):
      np.testing.assert_allclose(found[leaf], alone[leaf], rtol=0, atol=2e-7)
  assert distance(found, alone) > 1e-3


# --- freezing ---

FREEZE = ("block00/.*", "pos_embed")


def test_frozen_parameters_stay_and_have_no_state():
  optim = config(freeze=FREEZE, decay_all=True)
  start, found = cases.parameters(), cases.train(optim)
  frozen = {n for n in start if n.startswith("model/block00/") or n == "model/pos_embed"}
  assert {n for n in start if np.array_equal(start[n], found[n])} == frozen
  state = make_optimizer(optim, cases.schedule_of(optim)).init(tree(start))
  trained = sum(start[n].size for n in start.keys() - frozen)
  arrays = [np.size(leaf) for leaf in jax.tree.leaves(state) if np.ndim(leaf)]
  assert sum(arrays) == 2 * trained, "two moments of what is trained"


def test_frozen_gradients_do_not_shrink_the_others():
  """The norm that is clipped is that of the trained parameters: they move as if the others were not there."""
  frozen = cases.train(config(name="sgd", freeze=FREEZE))
  kept = {n: frozen[n] for n in frozen if not n.startswith("model/block00/") and n != "model/pos_embed"}
  tx = make_optimizer(config(name="sgd"), cases.schedule_of(config()))
  params = tree({n: cases.parameters()[n] for n in kept})
  state, update = tx.init(params), jax.jit(tx.update)
  for grads in cases.gradients():
    updates, state = update(tree({n: grads[n] for n in kept}), state, params)
    params = jax.tree.map(jnp.add, params, updates)
  assert distance(kept, flat(params)) < 2e-7
  free = cases.train(config(name="sgd"))
  assert distance(kept, {n: free[n] for n in kept}) > 1e-3, "all gradients together are clipped more"


@pytest.mark.parametrize(
  ("freeze", "message"),
  [
    (("blok00/.*",), "'blok00/.*' matches no parameter"),
    (("block00",), "'block00' matches no parameter"),
    (("heads/.*",), "matches no parameter of the model"),
    ((".*",), "leave nothing of the model"),
    (("block[",), "not a regular expression"),
    ((3,), "is not text"),
  ],
)
def test_freeze_refused(freeze, message):
  with pytest.raises(UserError, match=re.escape(message)):
    make_optimizer(config(freeze=freeze), optax.constant_schedule(0.1)).init(tree(cases.parameters()))


def test_freeze_suggests():
  with pytest.raises(UserError) as e:
    make_optimizer(config(freeze=("blok00/.*",)), optax.constant_schedule(0.1)).init(tree(cases.parameters()))
  assert e.value.hint == "did you mean 'block00'? (a whole path is matched, e.g. 'block00/.*')"


# --- accumulation ---


@pytest.mark.parametrize(
  "options", [{"name": "adamw"}, {"name": "adamw", "freeze": FREEZE, "layer_decay": 0.5}]
)
def test_accumulated_steps_are_one_update_of_the_mean(options):
  """4 steps with gradients g + noise, whose noise sums to 0, and one step with g: same parameters, rates, moments."""
  one, four = config(**options), config(**options, accumulate=4)
  schedule = cases.schedule_of(four, steps=12, steps_per_epoch=8)
  whole = cases.schedule_of(one, steps=3, steps_per_epoch=2)
  tx, reference_tx = make_optimizer(four, schedule), make_optimizer(one, whole)
  params = expected = tree(cases.parameters())
  state, expected_state = tx.init(params), reference_tx.init(params)
  update, reference_update = jax.jit(tx.update), jax.jit(reference_tx.update)
  for t, grads in enumerate(cases.gradients()[:3]):
    for i, sign in enumerate((1, -1, 2, -2)):
      noisy = {n: g + np.float32(sign) * cases.numbers(50, 0.1)[n] for n, g in grads.items()}
      updates, state = update(tree(noisy), state, params)
      assert any(np.any(leaf) for leaf in jax.tree.leaves(updates)) == (i == 3)
      params = jax.tree.map(jnp.add, params, updates)
      assert float(schedule(4 * t + i)) == float(whole(t))
    updates, expected_state = reference_update(tree(grads), expected_state, expected)
    expected = jax.tree.map(jnp.add, expected, updates)
    assert distance(flat(params), flat(expected)) < 1e-6
  assert distance(flat(params), cases.parameters()) > 1e-2


# --- state ---


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "rmsprop", "lion", "muon"])
def test_state_survives_as_plain_dicts(name):
  optim = config(name=name, freeze=("pos_embed",), layer_decay=0.9, accumulate=2, rmsprop_momentum=0.5)
  tx, params = make_optimizer(optim, cases.schedule_of(optim)), tree(cases.parameters())
  state = tx.init(params)
  _, state = tx.update(tree(cases.gradients()[0]), state, params)
  plain = serialization.to_state_dict(jax.tree.map(np.asarray, state))
  restored = serialization.from_state_dict(tx.init(params), plain)
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  jax.tree.map(np.testing.assert_array_equal, restored, state)
