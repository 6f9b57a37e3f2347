"""Policies: the papers' probabilities, exchangeable within a shard, and slices that change nothing but the cost."""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from jaxkd.data import operations, policies
from jaxkd.data.policies import GEOMETRIC, ID, NAMES, SHARD, apply_photometry, draw, geometry_matrices

SIZE = (12, 16)
IMAGES = np.random.default_rng(0).integers(0, 256, (128, 3, 4, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
IMAGES += np.random.default_rng(1).integers(0, 9, IMAGES.shape, dtype=np.uint8) * (IMAGES < 240)


@functools.lru_cache
def many(policy, stratified, shards=300, **options):
  """A plan for many shards as numpy: ops and magnitudes [shards 64 stages]."""
  positions = jnp.arange(shards * SHARD)
  plan = jax.jit(lambda k: draw(policy, k, positions, size=(32, 32), stratified=stratified, **options))(
    jax.random.key(7)
  )
  return tuple(np.asarray(x).reshape(shards, SHARD, -1) for x in (plan.ops, plan.magnitudes))


def expected_pairs(table):
  pairs = Counter()
  for first, p, _, second, q, _ in table:
    for a, x in ((first, p), ("identity", 1 - p)):
      for b, y in ((second, q), ("identity", 1 - q)):
        pairs[ID[a], ID[b]] += x * y / len(table)
  return pairs


def assert_frequencies(counts, shares):
  total = sum(counts.values())
  assert set(counts) <= {k for k, p in shares.items() if p > 0}
  for k, p in shares.items():
    assert abs(counts[k] - total * p) <= 4.5 * np.sqrt(total * p * (1 - p)) + 1e-9, (k, counts[k], total * p)


@pytest.mark.parametrize(
  ("policy", "stratified"),
  [("autoaugment", True), ("autoaugment", False), ("autoaugment_svhn", True), ("autoaugment_imagenet", True)],
)
def test_autoaugment_draws_the_pairs_of_the_paper(policy, stratified):
  ops, _ = many(policy, stratified)
  counts = Counter(map(tuple, ops.reshape(-1, 2).tolist()))
  assert_frequencies(counts, expected_pairs(policies.AUTOAUGMENT[policy]))
  if policy == "autoaugment":
    with pytest.raises(AssertionError):
      assert_frequencies(counts, expected_pairs(policies.SVHN))


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize(
  ("policy", "names"), [("randaugment", 14), ("trivialaugment", 14), ("randaugment_color", 9)]
)
def test_randaugment_and_trivialaugment_draw_uniformly(policy, names, stratified):
  ops, magnitudes = many(policy, stratified)
  for stage in np.moveaxis(ops, 2, 0):
    counts = Counter(stage.reshape(-1).tolist())
    assert len(counts) == names
    assert_frequencies(counts, {op: 1 / names for op in counts})
    assert ID["invert"] not in counts
  for name in ("brightness", "sharpness"):
    signs = np.sign(magnitudes[(ops == ID[name]) & (magnitudes != 0)])
    assert abs(signs.mean()) < 4.5 / np.sqrt(len(signs))
  if ops.shape[2] == 2:  # stages are independent of each other
    pairs = Counter(map(tuple, ops.reshape(-1, 2).tolist()))
    assert_frequencies(pairs, {(a, b): 1 / names**2 for a in counts for b in counts})


def test_trivialaugment_draws_every_magnitude():
  ops, magnitudes = many("trivialaugment", True)
  bins = np.rint(np.abs(magnitudes[ops == ID["shear_x"]]) / 0.99 * 30).astype(int)
  expected = len(bins) / 31
  assert np.abs(np.bincount(bins, minlength=31) - expected).max() < 4.5 * np.sqrt(expected)
  assert set(np.unique(magnitudes[ops == ID["posterize"]])) == {2, 3, 4, 5, 6, 7, 8}


MAGNITUDES = {  # torchvision's tables for 32 x 32, worked out by hand
  ("autoaugment", "translate_x"): [0, 1, 3, 4, 6, 8, 9, 11, 12, 14],
  ("autoaugment", "posterize"): [8, 8, 7, 7, 6, 6, 5, 5, 4, 4],
  ("autoaugment", "solarize"): np.linspace(255, 0, 10),
  ("autoaugment", "shear_y"): np.linspace(0, 0.3, 10),
  ("autoaugment", "rotate"): np.linspace(0, 30, 10),
  ("autoaugment", "color"): np.linspace(0, 0.9, 10),
  ("randaugment", "translate_y"): np.floor(np.arange(31) * (150 / 331 * 32 / 30)),
  ("randaugment", "posterize"): [8] * 4 + [7] * 8 + [6] * 7 + [5] * 8 + [4] * 4,
  ("randaugment", "solarize"): np.linspace(255, 0, 31),
  ("trivialaugment", "rotate"): np.linspace(0, 135, 31),
  ("trivialaugment", "translate_x"): np.floor(np.arange(31) * 32 / 30),
  ("trivialaugment", "brightness"): np.linspace(0, 0.99, 31),
}


@pytest.mark.parametrize(("policy", "name"), MAGNITUDES)
def test_magnitudes_are_those_of_torchvision(policy, name):
  table = policies._magnitudes(policy, (32, 32))
  np.testing.assert_allclose(table[ID[name]], MAGNITUDES[policy, name], rtol=1e-6)


def test_randaugment_magnitude_is_a_bin_and_signed():
  ops, magnitudes = many("randaugment", True, magnitude=20, count=3)
  assert ops.shape[2] == 3
  assert set(np.unique(magnitudes[ops == ID["solarize"]])) == {np.float32(85)}
  np.testing.assert_allclose(np.unique(magnitudes[ops == ID["contrast"]]), [-0.6, 0.6], rtol=1e-6)


def contingency(ops):
  """Chi-square per degree of freedom of operation against place in the shard."""
  counts = np.stack([(ops == op).sum(axis=0) for op in np.unique(ops)])
  expected = counts.sum(axis=1, keepdims=True) / ops.shape[1]
  return ((counts - expected) ** 2 / expected).sum() / ((counts.shape[0] - 1) * (counts.shape[1] - 1))


def test_images_of_a_shard_are_exchangeable():
  for stage in np.moveaxis(many("autoaugment", True)[0], 2, 0):
    assert 0.8 < contingency(stage) < 1.2
    pairs = [(stage[:, :-d] == stage[:, d:]).mean() for d in (1, 7, 32)]
    assert np.ptp(pairs) < 0.02, "neighbours agree as often as distant images"
    assert contingency(np.sort(stage, axis=1)) > 5, "the statistic sees an order"


def test_strata_fix_the_counts_and_free_draws_are_independent():
  for policy in ("randaugment", "autoaugment"):
    limits = policies._capacity(policy, 2, 9)
    for op in (ID["equalize"], ID["sharpness"], ID["identity"]):
      strata, free = ((many(policy, s)[0][..., 1] == op) for s in (True, False))
      share = strata.mean()
      assert strata.sum(axis=1).max() <= limits[1][op]
      binomial = SHARD * share * (1 - share)
      assert strata.sum(axis=1).var() < 0.5 * binomial
      assert 0.7 < free.sum(axis=1).var() / binomial < 1.35
  counts = (many("randaugment", True)[0][..., :1] == np.arange(len(NAMES))[:14]).sum(axis=1)
  assert set(np.unique(counts)) <= {0, 4, 5}


def test_capacities_are_close_to_one_operation_per_image():
  for policy in policies.POLICIES:
    for stage in policies._capacity(policy, 2, 9):
      assert sum(stage) <= 1.4 * SHARD
  photometric = [
    sum(stage[ID[n]] for n in policies.PHOTOMETRIC) for stage in policies._capacity("autoaugment", 2, 9)
  ]
  assert photometric == [30, 36], "26 and 28 expected; 33 and 42 in the order of the paper's table"


def test_slices_are_the_same_images_in_loops_of_any_extent(monkeypatch):
  plan = draw("autoaugment", jax.random.key(4), jnp.arange(128), size=SIZE)
  here = apply(jnp.asarray(IMAGES), plan)
  for module in (policies, operations):
    monkeypatch.setattr(module, "apart", lambda compute, *operands: compute(*operands))  # as on a GPU
  there = jax.jit(lambda x: apply_photometry(x, plan))(jnp.asarray(IMAGES))
  np.testing.assert_array_equal(here, there)
  assert (np.asarray(here) != IMAGES).any()


def one_by_one(images, plan):
  """The photometric operations by Pillow, image by image; autocontrast as the whole quotient."""
  return np.stack([np.asarray(pillow(Image.fromarray(x), plan, i)) for i, x in enumerate(images)])


def pillow(image, plan, i):
  for op, m in zip(np.asarray(plan.ops)[i], np.asarray(plan.magnitudes)[i].tolist(), strict=True):
    name = NAMES[op]
    if name in ("brightness", "color", "contrast", "sharpness"):
      image = getattr(ImageEnhance, name.capitalize())(image).enhance(1 + m)
    elif name == "posterize":
      image = ImageOps.posterize(image, int(m))
    elif name == "solarize":
      image = ImageOps.solarize(image, m)
    elif name in ("equalize", "invert"):
      image = getattr(ImageOps, name)(image)
    elif name == "autocontrast":
      x = np.asarray(image).astype(int)
      low, high = x.min(axis=(0, 1)), x.max(axis=(0, 1))
      image = Image.fromarray((255 * (x - low) // (high - low)).astype(np.uint8))
  return image


apply = jax.jit(apply_photometry)


@pytest.mark.parametrize("policy", ["autoaugment", "randaugment"])
def test_slices_equal_pillow_image_by_image(policy):
  plan = draw(policy, jax.random.key(3), jnp.arange(128), size=SIZE)
  assert plan.sliced
  np.testing.assert_array_equal(apply(jnp.asarray(IMAGES), plan), one_by_one(IMAGES, plan))
  other = plan.replace(ops=jnp.roll(plan.ops, 1, axis=0))
  assert (np.asarray(apply(jnp.asarray(IMAGES), other)) != one_by_one(IMAGES, plan)).any()


def test_a_broken_shard_takes_the_path_of_independent_images():
  key = jax.random.key(5)
  plan = draw("trivialaugment", key, jnp.arange(40), size=SIZE)
  assert not plan.sliced
  part = draw("trivialaugment", key, jnp.arange(10, 40), size=SIZE)
  np.testing.assert_array_equal(part.ops, plan.ops[10:])
  np.testing.assert_array_equal(part.magnitudes, plan.magnitudes[10:])
  np.testing.assert_array_equal(apply(jnp.asarray(IMAGES[:40]), plan), one_by_one(IMAGES[:40], plan))


def test_halves_with_their_positions_equal_the_whole():
  key = jax.random.key(5)
  plan = draw("trivialaugment", key, jnp.arange(128), size=SIZE)
  whole = apply(jnp.asarray(IMAGES), plan)
  for start in (0, 64):
    half = draw("trivialaugment", key, jnp.arange(start, start + 64), size=SIZE)
    np.testing.assert_array_equal(half.ops, plan.ops[start : start + 64])
    np.testing.assert_array_equal(half.magnitudes, plan.magnitudes[start : start + 64])
    np.testing.assert_array_equal(
      apply(jnp.asarray(IMAGES[start : start + 64]), half), whole[start : start + 64]
    )
  assert (draw("trivialaugment", jax.random.key(6), jnp.arange(128), size=SIZE).ops != plan.ops).any()
  assert (plan.ops[:64] != plan.ops[64:]).any()


def test_colour_policies_have_no_geometry():
  for policy in policies.POLICIES:
    ids = np.concatenate([g.ops.ravel() for g in policies._groups(policy, 2, 9)])
    assert np.isin(ids, [ID[n] for n in GEOMETRIC]).any() != policy.endswith("_color")
  full, color = many("autoaugment", True)[0], many("autoaugment_color", True)[0]
  np.testing.assert_array_equal(np.where(np.isin(full, [ID[n] for n in GEOMETRIC]), 0, full), color)


def by_hand(*rows):
  """A plan of [(name, magnitude), ...] for each image."""
  ops, magnitudes = (
    [[f(x) for x in row] for row in rows] for f in (lambda x: ID[x[0]], lambda x: float(x[1]))
  )
  return policies.Plan(jnp.array(ops), jnp.array(magnitudes, jnp.float32), capacity=(), sliced=False)


def test_geometry_is_first_stage_then_second_and_ignores_photometry():
  rows = (
    [("translate_x", 3), ("rotate", 90)],
    [("equalize", 5), ("shear_y", -0.25)],
    [("identity", 1), ("invert", 2)],
  )
  plan, size = by_hand(*rows), (16, 16)
  quarter = operations.rotate_matrices(jnp.array([90.0]), size)
  moved = operations.translate_matrices(jnp.array([3.0]), jnp.array([0.0]))
  got = geometry_matrices(plan, size)
  np.testing.assert_allclose(got[0], operations.compose(moved, quarter)[0], atol=1e-6)
  np.testing.assert_allclose(got[1], [[1, 0, 0], [-0.25, 1, 0]], atol=1e-7)
  np.testing.assert_array_equal(got[2], np.eye(2, 3))
  assert policies.describe(plan) == ["translate_x 3, rotate 90", "equalize, shear_y -0.25", "invert"]
  assert policies.describe(by_hand([("identity", 3)])) == ["identity"]


def test_erasing_boxes_have_their_share_and_stay_inside():
  boxes = np.asarray(
    policies.draw_erasing(
      jax.random.key(0), jnp.arange(4000), size=(40, 30), probability=0.4, area=(0.1, 0.3)
    )
  )
  top, left, height, width = boxes.T
  drawn = height > 0
  assert abs(drawn.mean() - 0.4) < 4.5 * np.sqrt(0.24 / 4000)
  assert ((top >= 0) & (left >= 0) & (top + height <= 40) & (left + width <= 30)).all()
  share = (height * width)[drawn] / 1200
  assert share.min() > 0.08
  assert share.max() < 0.32
  assert abs(share.mean() - 0.2) < 0.02
  assert abs(np.log(height[drawn] / width[drawn]).mean()) < 0.15
  assert (height[~drawn] * width[~drawn] == 0).all()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"policy": "autoagument"}, "unknown policy 'autoagument'; did you mean 'autoaugment'"),
    ({"policy": "randaugment", "magnitude": 31}, "at magnitude 31: needs 1 or more, and 0 to 30"),
    ({"policy": "randaugment", "count": 0}, "RandAugment of 0 operations"),
    ({"policy": "randaugment", "stratified": True}, "whole shards of 64 examples, got 65"),
  ],
)
def test_wrong_arguments_are_refused(options, message):
  policy = options.pop("policy")
  with pytest.raises(ValueError, match=message):
    draw(policy, jax.random.key(0), jnp.arange(65), size=SIZE, **options)
