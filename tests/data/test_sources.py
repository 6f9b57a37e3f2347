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


def npz_options(path, labels, *, classes=None, **more):
  """A file with those labels, each image showing its own number."""
  labels = np.asarray(labels)
  images = np.arange(len(labels), dtype=np.uint8)[:, None, None] * np.ones((4, 4), np.uint8)
  names = {} if classes is None else {"class_names": np.array([f"c{i}" for i in range(classes)])}
  np.savez(path / "set.npz", images=images, labels=labels, **names)
  return options(name="npz", root=str(path / "set.npz"), **more)


def test_sizes_and_channels_are_the_sources_own_unless_asked_for():
  assert data.load(options()).digest == data.load(options(image_size=16)).digest
  colour = data.load(options(channels=3)).train.images
  np.testing.assert_array_equal(colour, np.repeat(data.load(options()).train.images, 3, axis=-1))
  synthetic = {"name": "synthetic", "examples": 80, "classes": 4}
  grey = data.load(options(**synthetic, channels=1))
  assert data.load(options(**synthetic)).image_shape == (16, 16, 3)
  assert grey.image_shape == (16, 16, 1)


def test_an_unknown_data_set_is_named_with_a_suggestion():
  with pytest.raises(UserError, match="unknown data set 'cifar'") as e:
    data.load(options(name="cifar"))
  assert "cifar10" in e.value.hint


@pytest.mark.parametrize("request_", [{"per_class": 7}, {"subset": 0.25}])
def test_a_subset_thins_the_training_images_only(request_):
  whole, part = data.load(options()), data.load(options(**request_))
  counts, expected = np.bincount(part.train.labels), np.bincount(whole.train.labels) / 4
  expected = np.full(10, 7) if "per_class" in request_ else np.round(expected)
  np.testing.assert_array_equal(counts, expected)
  np.testing.assert_array_equal(part.validation.images, whole.validation.images)
  rows = {im.tobytes() for im in whole.train.images}
  assert all(im.tobytes() in rows for im in part.train.images)
  assert part.digest == data.load(options(**request_)).digest
  assert part.digest != data.load(options(**request_, split_seed=1)).digest


def test_smaller_subsets_are_parts_of_larger_ones():
  kept = [{im.tobytes() for im in data.load(options(per_class=k)).train.images} for k in (1, 5, 20)]
  assert kept[0] < kept[1] < kept[2]


def test_subset_requests_that_cannot_be_met():
  with pytest.raises(UserError, match="both choose"):
    data.load(options(subset=0.5, per_class=3))
  with pytest.raises(UserError, match="per_class=5000, but class 0 has"):
    data.load(options(per_class=5000))


def test_known_statistics_are_given_on_request_only():
  with pytest.raises(UserError, match="no published statistics of data set 'digits'") as e:
    data.load(options(statistics="known"))
  assert "cifar10, mnist" in e.value.hint


@pytest.mark.parametrize(  # fault 15
  ("label", "message"), [(3, "label 3 of image 7 is out of"), (-1, "label -1 of image 7 is out of")]
)
def test_a_label_out_of_range_is_named_with_its_index(tmp_path, label, message):
  labels = np.arange(60) % 3
  labels[7] = label
  with pytest.raises(UserError, match=message):
    data.load(npz_options(tmp_path, labels, classes=3))


def test_a_class_without_an_image_is_a_warning(tmp_path, caplog):  # fault 15
  dataset = data.load(npz_options(tmp_path, np.arange(60) % 3, classes=4))
  assert "class 3 ('c3') has no image" in caplog.text
  assert len(dataset.class_names) == 4
  caplog.clear()
  data.load(npz_options(tmp_path, np.arange(60) % 3, classes=3))
  assert "has no image" not in caplog.text


def test_a_test_split_of_the_sources_own_is_not_cut_again(tmp_path):
  images = np.arange(50, dtype=np.uint8)[:, None, None, None] * np.ones((4, 4, 1), np.uint8)
  np.savez(
    tmp_path / "a.npz",
    images=images[:40],
    test_images=images[40:],
    labels=np.arange(40) % 2,
    test_labels=np.arange(10) % 2,
  )
  chosen = options(name="npz", root=str(tmp_path / "a.npz"))
  dataset, test = data.load(chosen), data.load_test(chosen)
  assert test.images[:, 0, 0, 0].tolist() == list(range(40, 50))
  seen = np.concatenate([dataset.train.images, dataset.validation.images])[:, 0, 0, 0]
  assert sorted(seen.tolist()) == list(range(40))
