"""Data sets: stratified seeded splits, a sealed test split, statistics of the training images."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxkd import config as configs
from jaxkd import data
from jaxkd.data.order import batch_indices
from jaxkd.data.sources import balanced_sample
from jaxkd.errors import UserError


def options(**more):
  return configs.complete({"data": more}).data


def test_digits_are_the_real_ones_split_without_overlap():
  dataset, test = data.load(options()), data.load_test(options())
  parts = (dataset.train, dataset.validation, test)
  assert sum(map(len, parts)) == 1797
  rows = np.concatenate([p.images.reshape(len(p), -1) for p in parts])
  source = load_digits()
  assert len(np.unique(rows, axis=0)) == len(np.unique(source.images.reshape(1797, -1), axis=0))
  assert dataset.train.images.dtype == np.uint8
  assert dataset.image_shape == (16, 16, 1)


def test_splits_are_stratified_and_seeded():
  dataset, test = data.load(options()), data.load_test(options())
  whole = np.bincount(load_digits().target) / 1797
  for part in (dataset.train, dataset.validation, test):
    assert np.abs(np.bincount(part.labels) / len(part) - whole).max() < 0.01
  assert data.load(options()).digest == dataset.digest
  assert data.load(options(split_seed=1)).digest != dataset.digest


def test_statistics_come_from_the_training_images_only():
  dataset = data.load(options())
  pixels = dataset.train.images / 255
  assert dataset.mean == pytest.approx([pixels.mean()])
  assert dataset.std == pytest.approx([pixels.std()])


def test_upsampling_to_32_pixels():
  assert data.load(options(image_size=32)).image_shape == (32, 32, 1)


def test_balanced_sample_is_even_and_fixed():
  test = data.load_test(options())
  sample = balanced_sample(test, 100)
  assert np.bincount(sample.labels).tolist() == [10] * 10
  np.testing.assert_array_equal(sample.images, balanced_sample(test, 100).images)
  with pytest.raises(UserError, match="a sample of 1000 images"):
    balanced_sample(test, 1000)


def test_an_epoch_visits_images_once_and_the_next_in_another_order():
  epochs = [
    np.concatenate([batch_indices(e * 5 + i, examples=52, batch_size=10, seed=3) for i in range(5)])
    for e in range(2)
  ]
  assert len(set(epochs[0].tolist())) == 50
  assert epochs[0].tolist() != epochs[1].tolist()


def test_a_batch_larger_than_the_data_is_refused():  # fault 7
  with pytest.raises(UserError, match="batch size 64 is larger than the 52"):
    batch_indices(0, examples=52, batch_size=64, seed=0)
