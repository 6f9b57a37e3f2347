"""Attention statistics against closed forms and a slow loop in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.analysis.attention import (
  attention_rollout,
  attention_statistics,
  mean_and_stderr,
  uniform_distance,
)


def random_maps(seed, tokens, *, layers=2, images=3, heads=2, sharpness=2.0):
  logits = sharpness * np.random.default_rng(seed).normal(size=(layers, images, heads, tokens, tokens))
  weights = np.exp(logits)
  return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def patch_maps(rows):
  """One layer, image and head without special tokens."""
  return jnp.asarray(np.asarray(rows, np.float32)[None, None, None])


def brute_force_uniform(rows, columns):
  cells = [(y, x) for y in range(rows) for x in range(columns)]
  return np.mean([np.hypot(a[0] - b[0], a[1] - b[1]) for a in cells for b in cells])


def slow_statistics(attn, grid, special, *, renormalise=True):
  """Plain loops in float64, one row at a time."""
  rows, columns = grid
  cells = [(y, x) for y in range(rows) for x in range(columns)]
  names = ["mean_distance", "entropy"] + ["cls_dispersion", "cls_self_attention"] * (special > 0)
  out = {name: np.zeros(attn.shape[:3]) for name in names}
  for index in np.ndindex(attn.shape[:3]):
    a = attn[index].astype(np.float64)
    for i, (y, x) in enumerate(cells):
      row = a[special + i, special:]
      row = row / row.sum() if renormalise else row
      for p, (yj, xj) in zip(row, cells, strict=True):
        out["mean_distance"][index] += p * np.hypot(y - yj, x - xj) / len(cells)
        out["entropy"][index] -= (p * np.log(p) if p > 0 else 0.0) / len(cells)
    if special:
      row = a[0, special:]
      row = row / row.sum() if renormalise else row
      for axis in range(2):
        position = np.array([cell[axis] for cell in cells], np.float64)
        out["cls_dispersion"][index] += row @ (position - row @ position) ** 2
      out["cls_self_attention"][index] = a[0, 0]
  out["distance_to_uniform"] = out["mean_distance"] / brute_force_uniform(rows, columns)
  return out


@pytest.mark.parametrize(
  ("grid", "expected", "digits"),
  [((7, 7), 3.609, 3), ((8, 8), 4.1365, 4), ((14, 14), 7.281, 3), ((16, 16), 8.326, 3), ((4, 9), 3.4736, 4)],
)
def test_uniform_attention_has_the_known_distance(grid, expected, digits):
  """The square ones are published; 4x9 is the sum over its 1296 pairs."""
  assert round(uniform_distance(grid), digits) == expected
  n = grid[0] * grid[1]
  stats = attention_statistics(patch_maps(np.full((n, n), 1 / n)), grid, 0)
  np.testing.assert_allclose(stats["mean_distance"], uniform_distance(grid), rtol=1e-6)
  np.testing.assert_allclose(stats["distance_to_uniform"], 1, rtol=1e-6)
  np.testing.assert_allclose(stats["entropy"], np.log(n), rtol=1e-6)
  assert not stats["collapsed"].any()


@pytest.mark.parametrize("grid", [(4, 9), (9, 4), (1, 5), (3, 2), (8, 8)])
def test_closed_form_equals_the_sum_over_all_pairs(grid):
  np.testing.assert_allclose(uniform_distance(grid), brute_force_uniform(*grid), rtol=1e-13)


def test_identity_is_local_and_certain():
  stats = attention_statistics(patch_maps(np.eye(64)), (8, 8), 0)
  assert stats["mean_distance"].item() == 0
  assert stats["entropy"].item() == 0
  assert stats["collapsed"].item() is True


def test_three_by_three_window():
  """Inside, a 3x3 window has distance (4 + 4 sqrt 2) / 9; borders and corners are cut."""
  cells = np.array([(y, x) for y in range(8) for x in range(8)])
  near = np.abs(cells[:, None] - cells[None]).max(-1) <= 1
  stats = attention_statistics(patch_maps(near / near.sum(1, keepdims=True)), (8, 8), 0)
  inside, border, corner = (4 + 4 * 2**0.5) / 9, (3 + 2 * 2**0.5) / 6, (2 + 2**0.5) / 4
  np.testing.assert_allclose(stats["mean_distance"], (36 * inside + 24 * border + 4 * corner) / 64, rtol=1e-6)
  np.testing.assert_allclose(
    stats["entropy"], (36 * np.log(9) + 24 * np.log(6) + 4 * np.log(4)) / 64, rtol=1e-6
  )
  assert stats["collapsed"].all()


@pytest.mark.parametrize(
  ("special", "grid"), [(0, (4, 4)), (0, (3, 5)), (1, (3, 5)), (2, (4, 4)), (6, (3, 5))]
)
def test_random_maps_agree_with_the_slow_loop(special, grid):
  attn = random_maps(special, special + grid[0] * grid[1])
  expected = slow_statistics(attn, grid, special)
  kept = attention_statistics(jnp.asarray(attn), grid, special, reduce=None)
  averaged = attention_statistics(jnp.asarray(attn), grid, special)
  assert set(kept) == set(averaged) == {*expected, "collapsed"}
  for name, value in expected.items():
    assert kept[name].dtype == averaged[name].dtype == jnp.float32
    np.testing.assert_allclose(kept[name], value, rtol=2e-6, atol=1e-7, err_msg=name)
    np.testing.assert_allclose(averaged[name], value.mean(axis=1), rtol=2e-6, atol=1e-7, err_msg=name)
  if special:  # negative control: rows that are not renormalised give other numbers
    wrong = slow_statistics(attn, grid, special, renormalise=False)
    for name in ("mean_distance", "entropy", "cls_dispersion"):
      assert np.abs(np.asarray(kept[name]) - wrong[name]).max() > 1e-2


def test_rectangular_grid_is_rows_by_columns():
  attn = jnp.asarray(random_maps(0, 15, sharpness=4.0))
  a, b = (attention_statistics(attn, grid, 0)["mean_distance"] for grid in ((3, 5), (5, 3)))
  assert np.abs(a - b).max() > 1e-2


def test_collapsed_uses_the_mean_over_images():
  """One local and one uniform image: at half the uniform distance the head is not collapsed."""
  local, uniform = np.eye(64), np.full((64, 64), 1 / 64)
  attn = jnp.asarray(np.stack([local, uniform])[None, :, None], jnp.float32)
  assert attention_statistics(attn, (8, 8), 0, reduce=None)["collapsed"].tolist() == [[[True], [False]]]
  assert attention_statistics(attn, (8, 8), 0)["collapsed"].tolist() == [[False]]


@pytest.mark.parametrize(("factor", "collapsed"), [(0.362, True), (0.363, False)])
def test_collapse_threshold_is_one_and_a_half_patches_on_8x8(factor, collapsed):
  rows = (1 - factor) * np.eye(64) + factor / 64
  stats = attention_statistics(patch_maps(rows), (8, 8), 0)
  np.testing.assert_allclose(stats["distance_to_uniform"], factor, rtol=1e-6)
  assert stats["collapsed"].item() is collapsed


def test_invariances():
  grid, special = (4, 4), 2
  attn = random_maps(1, 18)
  stats = attention_statistics(jnp.asarray(attn), grid, special)
  # Images and heads in another order.
  shuffled = attention_statistics(jnp.asarray(attn[:, ::-1, ::-1]), grid, special)
  # The image turned by 90 degrees or mirrored: the same maps over relabelled patches.
  cells = np.arange(16).reshape(4, 4)
  for moved in (np.rot90(cells), cells[:, ::-1], cells.T):
    order = np.concatenate([[0, 1], 2 + moved.ravel()])
    turned = attention_statistics(jnp.asarray(attn[..., order, :][..., order]), grid, special)
    for name in ("mean_distance", "entropy", "cls_dispersion", "cls_self_attention"):
      np.testing.assert_allclose(turned[name], stats[name], rtol=3e-6, err_msg=name)
  for name in stats:
    np.testing.assert_allclose(shuffled[name], stats[name][:, ::-1], rtol=3e-6, err_msg=name)
  # Negative control: scattering the patches changes distances, but not entropy.
  order = np.concatenate([[0, 1], 2 + np.random.default_rng(0).permutation(16)])
  scattered = attention_statistics(jnp.asarray(attn[..., order, :][..., order]), grid, special)
  np.testing.assert_allclose(scattered["entropy"], stats["entropy"], rtol=3e-6)
  assert np.abs(scattered["mean_distance"] - stats["mean_distance"]).max() > 1e-2


def cls_map(row, self_weight):
  """A cls token with the given patch row; patches attend uniformly."""
  n = len(row)
  attn = np.full((n + 1, n + 1), 1 / (n + 1))
  attn[0] = np.concatenate([[self_weight], (1 - self_weight) * np.asarray(row)])
  return patch_maps(attn)


def test_cls_dispersion_and_self_attention():
  uniform = attention_statistics(cls_map(np.full(64, 1 / 64), 0.25), (8, 8), 1)
  np.testing.assert_allclose(uniform["cls_dispersion"], 10.5, rtol=1e-6)  # 2 (8^2 - 1) / 12
  np.testing.assert_allclose(uniform["cls_self_attention"], 0.25, rtol=1e-7)
  corner = attention_statistics(cls_map(np.eye(64)[63], 0.25), (8, 8), 1)
  assert corner["cls_dispersion"].item() == 0
  ends = (np.eye(64)[0] + np.eye(64)[63]) / 2  # two opposite corners, each (3.5, 3.5) from the centre
  np.testing.assert_allclose(
    attention_statistics(cls_map(ends, 0.9), (8, 8), 1)["cls_dispersion"], 24.5, rtol=1e-6
  )


def test_works_under_jit_grad_vmap_and_in_low_precision():
  attn = jnp.asarray(random_maps(2, 17))
  plain = attention_statistics(attn, (4, 4), 1)
  jitted = jax.jit(lambda a: attention_statistics(a, (4, 4), 1))(attn)
  for name in plain:
    np.testing.assert_allclose(jitted[name], plain[name], rtol=1e-6)
  batched = jax.vmap(lambda a: attention_statistics(a, (4, 4), 1)["mean_distance"])(attn[None])
  np.testing.assert_allclose(batched[0], plain["mean_distance"], rtol=2e-6)
  sparse = attn.at[..., 3].set(0.0)  # 0 log 0 must have a finite gradient too
  gradient = jax.grad(lambda a: attention_statistics(a, (4, 4), 1)["entropy"].sum())(sparse)
  assert np.isfinite(gradient).all()
  low = attention_statistics(attn.astype(jnp.bfloat16), (4, 4), 1)
  assert low["entropy"].dtype == jnp.float32
  np.testing.assert_allclose(low["mean_distance"], plain["mean_distance"], rtol=1e-2)


def test_a_row_without_weight_on_patches_is_not_a_number():
  attn = random_maps(3, 17, layers=1, images=1, heads=1)
  attn[..., 5, :] = np.eye(17)[0]
  stats = attention_statistics(jnp.asarray(attn), (4, 4), 1)
  assert np.isnan(stats["mean_distance"]).all()
  assert np.isnan(stats["entropy"]).all()


def test_streaming_over_batches_and_standard_errors():
  attn = jnp.asarray(random_maps(4, 17, images=6))
  whole = attention_statistics(attn, (4, 4), 1, reduce=None)
  parts = [attention_statistics(attn[:, i : i + 2], (4, 4), 1, reduce=None) for i in range(0, 6, 2)]
  for name, value in whole.items():
    joined = jnp.concatenate([p[name] for p in parts], axis=1)
    np.testing.assert_allclose(joined, value, rtol=2e-6)
    mean, stderr = mean_and_stderr(joined)
    reference = np.asarray(value, np.float64)
    np.testing.assert_allclose(mean, reference.mean(1), rtol=2e-6)
    np.testing.assert_allclose(stderr, reference.std(1, ddof=1) / 6**0.5, rtol=1e-4, atol=1e-7)
    if name == "cls_dispersion":  # negative control: the population formula is visibly shorter
      assert np.abs(stderr - reference.std(1) / 6**0.5).max() > 1e-3
  with pytest.raises(ValueError, match="2 or more"):
    mean_and_stderr(whole["entropy"][:, :1])


def test_rollout_against_the_plain_product():
  attn = random_maps(5, 6, layers=3)
  expected = np.zeros((3, 6, 6))
  for b in range(3):
    product = np.eye(6)
    for layer in attn[:, b].astype(np.float64):
      mixed = 0.5 * layer.mean(0) + 0.5 * np.eye(6)
      product = (mixed / mixed.sum(1, keepdims=True)) @ product
    expected[b] = product
  found = attention_rollout(jnp.asarray(attn))
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)
  reversed_layers = attention_rollout(
    jnp.asarray(attn[::-1])
  )  # negative control: the order of layers matters
  assert np.abs(reversed_layers - expected).max() > 1e-2


def test_rollout_of_identity_and_uniform():
  eye = jnp.broadcast_to(jnp.eye(5), (4, 1, 2, 5, 5))
  np.testing.assert_array_equal(attention_rollout(eye)[0], np.eye(5))
  uniform = jnp.full((3, 1, 2, 5, 5), 0.2)  # each layer keeps half, so 1/8 of the identity survives three
  np.testing.assert_allclose(attention_rollout(uniform)[0], np.eye(5) / 8 + 7 / 8 / 5, rtol=1e-6)


MAPS = jnp.full((1, 1, 1, 17, 17), 1 / 17)


@pytest.mark.parametrize(
  ("arguments", "error", "message"),
  [
    ((MAPS, (4, 4), 0), ValueError, "17 tokens, but grid 4x4 with 0 special tokens has 16"),
    ((MAPS, (4, 4), 2), ValueError, "has 18"),
    ((MAPS[0], (4, 4), 1), ValueError, r"expected \[l b h n n\]"),
    ((MAPS[..., 1:], (4, 4), 1), ValueError, r"expected \[l b h n n\]"),
    ((MAPS > 0, (4, 4), 1), TypeError, "dtype bool"),
    ((MAPS, (1, 1), 16), ValueError, "at least 2 patches"),
    ((MAPS, (9, 2), -1), ValueError, "special tokens"),
  ],
)
def test_refusals(arguments, error, message):
  with pytest.raises(error, match=message):
    attention_statistics(*arguments)


def test_unknown_reduction_is_refused():
  with pytest.raises(ValueError, match="'sum'; known: 'mean', None"):
    attention_statistics(MAPS, (4, 4), 1, reduce="sum")
