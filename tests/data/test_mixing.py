"""MixUp and CutMix: labels weigh exactly what the pixels do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.data.mixing import mix, mix_targets, soft_labels

B, H, W = 64, 10, 14
CODE = np.arange(1, B + 1, dtype=np.uint8)[:, None, None, None] * np.ones(
  (1, H, W, 3), np.uint8
)  # image i is i + 1


@functools.lru_cache
def compiled(**options):
  return jax.jit(lambda x, k: mix(x, k, **options))


def mixed(images=CODE, seed=0, **options):
  out = compiled(**options)(jnp.asarray(images), jax.random.key(seed))
  return tuple(np.asarray(x) for x in out)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_cutmix_weights_equal_the_pixel_areas(per_sample, dtype):
  areas = set()
  for seed in range(6):
    images, partner, weight = mixed(CODE.astype(dtype), seed, cutmix_alpha=1.0, per_sample=per_sample)
    assert images.dtype == dtype
    assert weight.dtype == np.float32
    own = images == CODE
    np.testing.assert_array_equal(own | (images == CODE[partner]), True)
    pixels = own[..., 0].sum(axis=(1, 2))
    np.testing.assert_array_max_ulp(weight, (pixels / (H * W)).astype(np.float32), 1)
    assert np.abs(weight - (pixels + 1) / (H * W)).min() > 1e-3
    for hit in ~own[..., 0]:
      rows, columns = np.nonzero(hit)
      assert hit.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1) if len(rows) else True
    areas.update(pixels.tolist())
    assert (len(set(pixels.tolist())) == 1) != per_sample
  assert len(areas) > 4


@pytest.mark.parametrize("per_sample", [False, True])
def test_mixup_is_the_weighted_mean_of_image_and_partner(per_sample):
  x = np.random.default_rng(0).random((B, 3, 3, 1), np.float32)
  images, partner, weight = mixed(x, mixup_alpha=0.8, per_sample=per_sample)
  w = weight.astype(np.float64)[:, None, None, None]
  np.testing.assert_allclose(images, w * x + (1 - w) * x[partner], rtol=3e-7, atol=1e-7)
  assert len(set(weight.tolist())) == (B if per_sample else 1)
  np.testing.assert_array_equal(partner, np.arange(B)[::-1])
  rounded = mixed((x * 255).astype(np.uint8), mixup_alpha=0.8, per_sample=per_sample)[0]
  levels = (x * 255).astype(np.uint8).astype(np.float64)
  assert np.abs(rounded - (w * levels + (1 - w) * levels[partner])).max() < 0.5 + 1e-4


def test_shares_follow_their_distributions():
  tiny = np.zeros((4096, 1, 1, 1), np.float32)
  for alpha in (0.4, 1.0):
    weight = mixed(tiny, mixup_alpha=alpha, per_sample=True)[2]
    assert abs(weight.mean() - 0.5) < 0.03
    assert abs(weight.var() - 1 / (4 * (2 * alpha + 1))) < 0.01  # of Beta(a, a)
  large = np.zeros((512, 64, 64, 1), np.uint8)
  cut = 1 - mixed(large, cutmix_alpha=1.0, per_sample=True)[2]
  # The box is cut at the border, so the mean area is below that of the draw, 1/2:
  # E[(E[length | side])^2] with length = side (1 - side / 4), side = sqrt(uniform)
  side = np.sqrt((np.arange(1000) + 0.5) / 1000)
  assert abs(cut.mean() - np.mean((side * (1 - side / 4)) ** 2)) < 0.03


def test_both_alphas_choose_one_of_them_each_time():
  images, partner, weight = mixed(mixup_alpha=1.0, cutmix_alpha=1.0, per_sample=True)
  cut = ((images == CODE) | (images == CODE[partner])).all(axis=(1, 2, 3))
  flat = (images == images[:, :1, :1, :1]).all(axis=(1, 2, 3))
  assert (cut | flat).all()
  assert 0.25 < (cut & ~flat).mean() < 0.75
  assert 0.25 < (flat & ~cut).mean() < 0.75
  assert ((weight >= 0) & (weight <= 1)).all()


def test_soft_labels_and_targets_use_the_same_weights():
  labels, partner = jnp.array([2, 0, 1, 0]), jnp.array([3, 2, 1, 0])
  weight = jnp.array([0.75, 1.0, 0.25, 0.5], jnp.float32)
  expected = [[0.25, 0, 0.75], [1, 0, 0], [0.75, 0.25, 0], [0.5, 0, 0.5]]
  np.testing.assert_array_equal(soft_labels(labels, partner, weight, 3), expected)
  teacher = np.random.default_rng(0).dirichlet(np.ones(3), 4).astype(np.float32)
  w = np.asarray(weight)[:, None]
  np.testing.assert_allclose(
    mix_targets(jnp.asarray(teacher), partner, weight), w * teacher + (1 - w) * teacher[::-1], rtol=1e-6
  )


def test_the_same_key_gives_the_same_mix_and_another_key_another():
  a, b, c = (mixed(seed=s, mixup_alpha=1.0, cutmix_alpha=1.0, per_sample=True)[0] for s in (0, 0, 1))
  np.testing.assert_array_equal(a, b)
  assert (a != c).any()


@pytest.mark.parametrize("alphas", [(0.0, 0.0), (-1.0, 1.0)])
def test_useless_alphas_are_refused(alphas):
  with pytest.raises(ValueError, match="both must be >= 0, and one above 0"):
    mix(jnp.asarray(CODE), jax.random.key(0), mixup_alpha=alphas[0], cutmix_alpha=alphas[1])
