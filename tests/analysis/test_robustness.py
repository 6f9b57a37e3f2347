"""Shuffled and hidden patches on models whose answer is known; whose cue a decision follows."""

import types
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.analysis.robustness import (
  cue_conflict,
  cue_conflict_score,
  occlude_patches,
  robustness_curve,
  shuffle_patches,
)
from jaxkd.analysis.statistics import wilson
from jaxkd.data import shapes

KEY = jax.random.key(0)


class Toy(nn.Module):
  """Classifies by a given function of the images."""

  decide: Any
  num_classes: int = 4
  special_tokens: int = 0

  @nn.compact
  def __call__(self, images, *, train=False, want=()):
    logits = self.decide(images)
    return logits, {"logits/cls": logits}


def quadrants(images):
  """The brightest quadrant of an 8x8 image: all arrangement, no texture."""
  return images.reshape(len(images), 2, 4, 2, 4).mean(axis=(2, 4)).reshape(len(images), 4)


def brightest_patch(images):
  """Which of four levels the brightest 4x4 patch has, wherever it is."""
  best = images.reshape(len(images), 2, 4, 2, 4).mean(axis=(2, 4)).max(axis=(1, 2))
  return -((best[:, None] - jnp.arange(1.0, 5.0)[None]) ** 2)


def labelled(count=40):
  """8x8 images with one quadrant of level 1..4; labels by place and by level."""
  rng = np.random.default_rng(0)
  place, level = rng.integers(0, 4, (2, count))
  images = np.zeros((count, 2, 4, 2, 4), np.float32)
  images[np.arange(count), place // 2, :, place % 2] = level[:, None, None] + 1
  return images.reshape(count, 8, 8, 1), place, level


def distinct(count=5):
  """Images whose 2x2 patches are all different from each other and from 0."""
  return np.arange(1, 1 + count * 8 * 8 * 3, dtype=np.float32).reshape(count, 8, 8, 3)


def patches(images, size=2):
  b, h, w, c = images.shape
  cut = np.asarray(images).reshape(b, h // size, size, w // size, size, c).swapaxes(2, 3)
  return cut.reshape(b, (h // size) * (w // size), -1)


@pytest.mark.parametrize("moved", [0, 1, 2, 7, 16])
def test_shuffling_moves_whole_patches_and_as_many_as_asked(moved):
  images, index = distinct(), np.arange(5)
  found = shuffle_patches(images, index, moved, key=KEY, patch=2)
  before, after = patches(images), patches(found)
  np.testing.assert_array_equal(np.sort(before[..., 0], axis=1), np.sort(after[..., 0], axis=1))
  np.testing.assert_array_equal(before[..., 1] - before[..., 0], after[..., 1] - after[..., 0])  # whole
  changed = (before != after).any(-1)
  assert (changed.sum(1) == (moved if moved > 1 else 0)).all()
  if moved == 7:
    assert len({tuple(row) for row in changed}) > 1  # images differ in which ones
    more = (patches(shuffle_patches(images, index, 12, key=KEY, patch=2)) != before).any(-1)
    assert (more | ~changed).all()  # the same ones and more


@pytest.mark.parametrize("hidden", [0, 5, 16])
def test_occlusion_hides_as_many_as_asked_and_leaves_the_others(hidden):
  images = distinct()
  before, after = patches(images), patches(occlude_patches(images, np.arange(5), hidden, key=KEY, patch=2))
  gone = (after == 0).all(-1)
  assert (gone.sum(1) == hidden).all()
  np.testing.assert_array_equal(after[~gone], before[~gone])


def test_disturbance_is_a_function_of_key_and_index():
  images, index = distinct(), np.arange(5)
  for disturb in (shuffle_patches, occlude_patches):
    whole = disturb(images, index, 6, key=KEY, patch=2)
    np.testing.assert_array_equal(disturb(images[3:], index[3:], 6, key=KEY, patch=2), whole[3:])
    other = disturb(images, index, 6, key=jax.random.key(1), patch=2)
    assert (np.asarray(other) != np.asarray(whole)).any()


def test_arrangement_is_lost_to_shuffling_and_content_to_occlusion():
  images, place, level = labelled()
  options = {"patches": (4,), "shares": (0.0, 0.5, 1.0), "key": KEY, "batch_size": 16}
  by_place = robustness_curve(Toy(quadrants), {}, images, place, disturbance="shuffle", **options)
  by_level = robustness_curve(Toy(brightest_patch), {}, images, level, disturbance="shuffle", **options)
  assert [(r.patch, r.share, r.moved) for r in by_place] == [(4, 0.0, 0), (4, 0.5, 2), (4, 1.0, 4)]
  # In a ring of all four patches none stays: not one quadrant is right. Half of them moved: it moves half the time.
  assert by_place[0].accuracy == wilson(40, 40)
  assert by_place[2].accuracy == wilson(0, 40)
  assert 0.2 < by_place[1].accuracy.mean < 0.8
  assert all(r.accuracy.mean == 1 for r in by_level)
  hidden = robustness_curve(Toy(brightest_patch), {}, images, level, disturbance="occlude", **options)
  assert hidden[0].accuracy.mean == 1
  assert hidden[2].accuracy.mean == pytest.approx(np.mean(level == 0))  # nothing is left: the lowest level
  assert hidden[2].accuracy.mean < hidden[1].accuracy.mean < 1


def test_a_transformer_through_padded_batches():
  model = models.create("vit", patch_size=4, width=8, depth=1, heads=2, image_size=8, num_classes=4)
  images = np.random.default_rng(1).normal(size=(7, 8, 8, 3)).astype(np.float32)
  variables = jax.jit(model.init)(jax.random.key(0), images)
  labels = np.asarray(jax.jit(model.apply)(variables, images)[1]["logits/cls"]).argmax(1)
  found = robustness_curve(
    model,
    variables,
    images,
    labels,
    disturbance="occlude",
    patches=(2,),
    shares=(0, 1),
    key=KEY,
    batch_size=4,
  )
  assert found[0].accuracy.mean == 1
  blank = np.asarray(jax.jit(model.apply)(variables, 0 * images)[1]["logits/cls"]).argmax(1)
  assert found[1].accuracy.mean == pytest.approx(np.mean(blank == labels))


def arrangement(images):
  """Brightness under the blobs of each class's arrangement, for undisplaced `synthetic_shapes`."""
  templates = shapes.place(shapes.codes(10), np.zeros((10, 1, 2), int)).astype(np.float32)
  return jnp.einsum("bhw,khw->bk", images.mean(-1), templates)


def test_cue_conflict_of_a_classifier_by_arrangement():
  options = types.SimpleNamespace(
    name="synthetic_shapes", classes=10, examples=400, test=0.5, split_seed=0, image_size=0, channels=3,
    global_shift=0.0,
  )  # fmt: skip
  images, of_arrangement, of_texture = shapes.cue_conflict(options)
  images = images.astype(np.float32) / 255 - 0.5
  model = Toy(arrangement, num_classes=10)
  found = cue_conflict(model, {}, images, of_arrangement, of_texture, batch_size=64)
  assert found.global_share.mean > 0.97
  assert found.follow_global + found.follow_local + found.neither == len(images)
  swapped = cue_conflict(model, {}, images, of_texture, of_arrangement)  # negative control
  assert swapped.global_share.mean == pytest.approx(1 - found.global_share.mean)


def test_share_counts_only_decisions_that_follow_a_cue():
  decided, of_global, of_local = (
    np.array([0, 1, 2, 3, 3]),
    np.array([0, 1, 0, 1, 0]),
    np.array([1, 0, 2, 0, 1]),
  )
  found = cue_conflict_score(decided, of_global, of_local)
  assert (found.follow_global, found.follow_local, found.neither) == (2, 1, 2)
  assert found.global_share == wilson(2, 3)
  none = cue_conflict_score(np.full(5, 9), of_global, of_local).global_share
  assert np.isnan(none.mean)
  assert (none.low, none.high, none.n) == (0, 1, 0)


IMAGES, PLACE, LEVEL = labelled(4)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"disturbance": "blur"}, "'blur'; known: shuffle, occlude"),
    ({"patches": (3,)}, "3 pixels do not divide images of 8x8"),
    ({"shares": (0.5, 1.5)}, r"shares in \[0, 1\]"),
    ({"labels": PLACE[:2]}, "do not fit 4 images"),
    ({"model": Toy(quadrants, num_classes=0)}, "no classifier"),
  ],
)
def test_refusals(change, message):
  given = {"model": Toy(quadrants), "labels": PLACE, "disturbance": "shuffle", "patches": (4,), **change}
  model, labels = given.pop("model"), given.pop("labels")
  with pytest.raises(ValueError, match=message):
    robustness_curve(model, {}, IMAGES, labels, key=KEY, **given)


def test_cues_that_agree_are_refused():
  with pytest.raises(ValueError, match="agree on 4 of 4 images"):
    cue_conflict(Toy(quadrants), {}, IMAGES, PLACE, PLACE)
