"""`synthetic_shapes`: each cue is where it is said to be, and nowhere else."""

import itertools

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from jaxkd import config as configs
from jaxkd import data
from jaxkd.data import shapes
from jaxkd.errors import UserError

SET = {"examples": 1600, "test": 0.5, "classes": 10}


def options(**more):
  return configs.complete({"data": {"name": "synthetic_shapes", **SET, **more}}).data


def grey(images):
  return images.astype(np.float32).mean(-1)


def texture_features(images):
  """Autocorrelation of the background at small shifts: what a 4x4 window can measure, averaged over the image."""
  x = grey(images)
  background = x < 170
  x = np.where(background, x - np.median(x, (1, 2), keepdims=True), 0)
  shifts = [(dy, dx) for dy in range(4) for dx in range(-3, 4)]
  products = [np.mean(x * np.roll(x, s, (1, 2)), (1, 2)) for s in shifts]
  return np.stack(products, 1) / products[shifts.index((0, 0))][:, None]


def spots(images):
  """Where the four blobs are: two bits each, [n 4 2], from brightness alone."""
  bright = grey(images) > 170
  out = np.zeros((len(images), 4, 2), int)
  for blob, (r, c) in enumerate(itertools.product(range(2), repeat=2)):
    area = bright[:, 16 * r : 16 * r + 16, 16 * c : 16 * c + 16]
    out[:, blob, 0] = area[:, 8:].sum((1, 2)) > area[:, :8].sum((1, 2))
    out[:, blob, 1] = area[:, :, 8:].sum((1, 2)) > area[:, :, :8].sum((1, 2))
  return out


def arrangement_features(images):
  """Spot of each blob relative to the first one, as one number."""
  s = spots(images)
  relative = (s[:, 1:] ^ s[:, :1]).reshape(len(s), -1)
  return relative @ (1 << np.arange(6))


def nearest_mean(train_x, train_y, test_x):
  means = np.stack([train_x[train_y == c].mean(0) for c in range(10)])
  return np.square(test_x[:, None] - means).sum(-1).argmin(1)


def most_frequent(train_x, train_y, test_x):
  counts = np.zeros((64, 10))
  np.add.at(counts, (train_x, train_y), 1)
  return counts.argmax(1)[test_x]


READERS = {"local": (texture_features, nearest_mean), "global": (arrangement_features, most_frequent)}


def accuracy(reader, split):
  """Trains a reader on the first half of `split` and tests it on the other."""
  features, classify = READERS[reader]
  x, half = features(split.images), len(split) // 2
  return np.mean(classify(x[:half], split.labels[:half], x[half:]) == split.labels[half:])


@pytest.mark.parametrize("reader", READERS)
def test_each_cue_is_read_by_its_own_reader_and_not_by_the_other(reader):
  other = "global" if reader == "local" else "local"
  assert accuracy(reader, data.load_test(options(), cues="agree")) > 0.95
  assert accuracy(reader, data.load_test(options(), cues=reader)) > 0.95
  chance = accuracy(reader, data.load_test(options(), cues=other))
  assert abs(chance - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 400)


def test_readers_follow_their_own_cue_in_conflict():
  train = data.load(options()).train
  images, global_labels, local_labels = shapes.cue_conflict(options())
  assert (global_labels != local_labels).all()
  truth = {"local": local_labels, "global": global_labels}
  for reader, (features, classify) in READERS.items():
    predicted = classify(features(train.images), train.labels, features(images))
    assert np.mean(predicted == truth[reader]) > 0.95
    assert np.mean(predicted == truth["global" if reader == "local" else "local"]) < 0.05
  np.testing.assert_array_equal(data.load_test(options(), cues="conflict").labels, global_labels)


def test_strengths_are_the_probabilities_of_agreement():
  train = data.load(options(local_strength=0.5, global_strength=0.2, examples=4000, validation=0.1)).train
  clean = data.load(options()).train
  for reader, strength in (("local", 0.5), ("global", 0.2)):
    features, classify = READERS[reader]
    agrees = np.mean(classify(features(clean.images), clean.labels, features(train.images)) == train.labels)
    expected = strength + (1 - strength) / 10
    assert abs(agrees - expected) < 4 * np.sqrt(expected * (1 - expected) / len(train))


DISPLACEMENTS = tuple(itertools.product((0, 1), repeat=2))


def window_distributions(side, shifts=DISPLACEMENTS):
  """What windows of `side` pixels see of the blobs, per class: hashes over equally likely displacements."""
  codes = shapes.codes(10)
  shared = np.array(shifts)[:, None]
  placed = (codes[:, None] ^ shared).reshape(-1, 4, 2)
  masks = shapes.place(placed, np.zeros((len(placed), 1, 2), int))
  weights = np.random.default_rng(0).integers(1, 2**48, (side, side))
  seen = np.einsum(
    "nyxij,ij->nyx", sliding_window_view(masks, (side, side), (1, 2)).astype(np.int64), weights
  )
  return np.sort(seen.reshape(10, len(shifts), *seen.shape[1:]), axis=1)


def test_no_window_of_8_pixels_at_any_place_tells_the_arrangement():
  found = window_distributions(8)
  assert (found == found[:1]).all()  # the same distribution for every class, at each of the 25 x 25 places
  undisplaced = window_distributions(8, shifts=[(0, 0)])
  assert not (undisplaced == undisplaced[:1]).all()  # what global_shift=1 is for
  assert not (window_distributions(20) == window_distributions(20)[:1]).all()  # larger windows do tell


def blobs_seen(side):
  """The most blobs that one window of `side` pixels may see, over all spots and common movements."""
  most = 0
  for dy, dx in itertools.product((-1, 0, 1), repeat=2):
    reach = np.zeros((4, 32, 32), bool)
    for spot in range(4):
      drawn = shapes.place(np.full((1, 4, 2), (spot >> 1, spot & 1)), np.full((1, 1, 2), (dy, dx)))[0]
      for blob in range(4):
        rows, columns = (slice(16 * bit, 16 * bit + 16) for bit in (blob >> 1, blob & 1))
        reach[blob][rows, columns] |= drawn[rows, columns]
    seen = sliding_window_view(reach, (side, side), (1, 2)).any((-1, -2)).sum(0)
    most = max(most, int(seen.max()))
  return most


def test_no_window_of_8_pixels_sees_two_blobs():
  assert blobs_seen(8) == 1
  assert blobs_seen(10) == 2  # negative control


def test_arrangements_differ_in_two_blobs_and_single_blobs_are_uniform():
  codes = shapes.codes(10)
  for a, b in itertools.combinations(codes, 2):
    for shift in itertools.product((0, 1), repeat=2):
      assert ((a ^ b ^ np.array(shift)) != 0).any(1).sum() >= 2
  test = data.load_test(options(global_shift=1.0), cues="agree")
  for bits in spots(test.images).reshape(len(test), -1).T:
    assert abs(bits.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(test))


def test_textures_are_balanced_and_no_two_are_shifts_of_each_other():
  tiles = [np.where(t, 1, -1) for t in shapes.TEXTURES.values()]
  assert all(t.sum() == 0 for t in tiles)
  shifts = list(itertools.product(range(4), repeat=2))
  for a, b in itertools.permutations(tiles, 2):
    assert not any((np.roll(a, s, (0, 1)) == b).all() for s in shifts)


def test_parts_are_seeded_and_share_no_image():
  dataset, test = data.load(options()), data.load_test(options())
  assert dataset.digest == data.load(options()).digest
  assert dataset.digest != data.load(options(split_seed=1)).digest
  parts = [dataset.train, dataset.validation, test, *(data.load_test(options(), cues=c) for c in shapes.CUES)]
  rows = [im.tobytes() for p in parts for im in p.images]
  assert len(set(rows)) == len(rows)
  assert [len(p) for p in parts] == [720, 80, *[800] * 5]
  assert dataset.image_shape == (32, 32, 3)
  assert np.bincount(test.labels).tolist() == [80] * 10


def test_other_sizes_channels_and_bad_requests():
  few = {"examples": 60, "classes": 3, "validation": 0.2}
  assert data.load(options(**few, image_size=64, channels=1)).image_shape == (64, 64, 1)
  assert shapes.cue_conflict(options(**few, channels=1))[0].shape == (30, 32, 32, 1)
  with pytest.raises(UserError, match="has 10 textures"):
    data.load(options(classes=11))
  with pytest.raises(UserError, match="would blur the textures"):
    data.load(options(image_size=16))
  with pytest.raises(UserError, match="unknown cues 'localy'") as e:
    data.load_test(options(), cues="localy")
  assert "'local'" in e.value.hint
  with pytest.raises(UserError, match="'digits' has no cues"):
    data.load_test(configs.complete({"data": {}}).data, cues="agree")
