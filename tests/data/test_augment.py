"""Views: exact copies where the geometry is whole pixels, the same geometry in both branches, honest randomness."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.data.augment import draw_boxes, make_views, photometry, sample_boxes

NO_AUGMENT = {"crop": 0, "flip": False, "brightness": 0.0, "contrast": 0.0, "cutout": 0}
ONE_VIEW = {
  "global_count": 1,
  "global_scale": (1.0, 1.0),
  "local_count": 0,
  "local_size": 8,
  "local_scale": (0.2, 0.5),
}
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 12, 12, 3), dtype=np.uint8)


def views(augment=(), shape=(), seed=0, images=IMAGES):
  make = compiled(tuple(dict(augment).items()), tuple(dict(shape).items()))
  return make(jnp.asarray(images), jax.random.key(seed))


@functools.lru_cache
def compiled(augment, shape):
  options = {"augment": NO_AUGMENT | dict(augment), "views": ONE_VIEW | dict(shape)}
  return jax.jit(functools.partial(make_views, mean=(0.5, 0.5, 0.5), **options))


def test_nothing_asked_for_changes_nothing():
  out = views()
  for name in ("student", "aligned", "clean", "same"):
    np.testing.assert_allclose(
      out[name], IMAGES.astype(np.float32) / 255, rtol=1.2e-7
    )  # 1/255 is rounded once


def test_pad_crop_and_flip_equal_numpy_slicing():
  boxes = draw_boxes(jax.random.key(1), IMAGES.shape, crop=3, flip=True, scale=(1.0, 1.0))
  got = sample_boxes(jnp.asarray(IMAGES, jnp.float32), boxes, 12)
  seen = set()
  for image, box, result in zip(IMAGES, np.asarray(boxes), np.asarray(got), strict=True):
    top, left = int(box[0]) + 3, int(box[1]) + 3
    expected = np.pad(image, ((3, 3), (3, 3), (0, 0)))[top : top + 12, left : left + 12]
    expected = expected[:, ::-1] if box[4] else expected
    np.testing.assert_array_equal(result, expected.astype(np.float32))
    seen.add(bool(box[4]))
  assert seen == {True, False}


def test_resized_box_equals_bilinear_by_hand():
  image = jnp.arange(16.0).reshape(1, 4, 4, 1)
  box = jnp.array([[1.0, 0.0, 2.0, 4.0, 0.0]])  # rows 1 and 2 stretched over 4 samples
  got = np.asarray(sample_boxes(image, box, 4))[0, :, :, 0]
  rows = np.array([0.75, 1.25, 1.75, 2.25])  # half-pixel centres
  np.testing.assert_allclose(got, rows[:, None] * 4 + np.arange(4), rtol=1e-6)


def test_photometry_touches_the_student_only():
  out = views({"crop": 2, "flip": True, "brightness": 0.4, "contrast": 0.4, "cutout": 4})
  assert not np.array_equal(out["student"], out["aligned"])
  np.testing.assert_array_equal(out["student"], out["same"])
  np.testing.assert_allclose(out["clean"], IMAGES.astype(np.float32) / 255, rtol=1.2e-7)
  same_geometry = views({"crop": 2, "flip": True})
  np.testing.assert_array_equal(out["aligned"], same_geometry["aligned"])


def test_a_position_coded_image_lands_on_the_same_cells_in_both_branches():
  code = np.zeros((1, 12, 12, 3), np.uint8)
  code[0, :, :, 0] = np.arange(144).reshape(12, 12) + 60
  batch = np.repeat(code, 32, axis=0)
  out = views({"crop": 3, "flip": True, "brightness": 0.1}, images=batch)
  ratio = np.asarray(out["student"])[..., 0] / np.maximum(np.asarray(out["aligned"])[..., 0], 1e-6)
  inside = np.asarray(out["aligned"])[..., 0] > 0
  for i in range(32):  # brightness is one factor per image, so the ratio is constant where the cells agree
    values = ratio[i][inside[i] & (np.asarray(out["student"])[i, :, :, 0] < 1)]
    assert np.ptp(values) < 1e-4


def test_cutout_paints_one_square_with_the_mean():
  x = jnp.zeros((1500, 12, 12, 1))
  out = np.asarray(photometry(x, jax.random.key(0), mean=(0.25,), brightness=0.0, contrast=0.0, cutout=4))
  for image in out[..., 0]:
    rows, columns = np.nonzero(image)
    assert set(np.unique(image)) <= {0.0, 0.25}
    assert np.ptp(rows) < 4
    assert np.ptp(columns) < 4
    assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
  assert (out > 0).any(axis=0).all(), "every pixel can be hit"


def test_multi_crop_shapes_and_order():
  out = views({}, {"global_count": 2, "global_scale": (0.5, 1.0), "local_count": 3, "local_size": 4})
  assert out["student"].shape == (12, 12, 12, 3)
  assert out["local"].shape == (18, 4, 4, 3)
  np.testing.assert_array_equal(out["clean"][:6], out["clean"][6:])
  assert not np.array_equal(out["aligned"][:6], out["aligned"][6:])


@pytest.mark.parametrize("scale", [(0.3, 0.6), (0.8, 1.0)])
def test_random_resized_boxes_keep_their_area_and_stay_inside(scale):
  boxes = np.asarray(draw_boxes(jax.random.key(2), (4000, 20, 20, 1), crop=0, flip=False, scale=scale))
  top, left, height, width, mirrored = boxes.T
  area = height * width / 400
  assert area.max() <= scale[1] + 1e-5
  assert np.quantile(area, 0.05) >= scale[0] * 0.8
  assert top.min() >= 0
  assert (left + width).max() <= 20 + 1e-4
  assert not mirrored.any()


def test_the_same_key_gives_the_same_views_and_another_key_others():
  a, b, c = (views({"crop": 2, "brightness": 0.3}, seed=s)["student"] for s in (0, 0, 1))
  np.testing.assert_array_equal(a, b)
  assert not np.array_equal(a, c)
