"""tensorflow-datasets without TensorFlow: mocked, prepared by a small builder, and each way it cannot be read."""

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from jaxkd import config as configs
from jaxkd import data
from jaxkd.errors import UserError


def options(name, root="", **more):
  return configs.complete({"data": {"name": f"tfds:{name}", "root": str(root), **more}}).data


def test_the_missing_package_is_named_with_its_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
  with pytest.raises(UserError, match="'tfds:cifar10' needs tensorflow-datasets") as e:
    data.load(options("cifar10"))
  assert e.value.hint == "pip install 'jaxkd[data]'"


@pytest.fixture(scope="module")
def tfds():
  return pytest.importorskip("tensorflow_datasets")


@pytest.fixture(scope="module")
def prepared(tfds, tmp_path_factory):
  """40 + 10 PNG images of one value each, prepared in array_record without TensorFlow."""
  pytest.importorskip("array_record")

  class JaxkdTiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      features = {"image": tfds.features.Image(shape=(None, None, 3))}
      label = tfds.features.ClassLabel(names=["even", "odd"])
      return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict({**features, "label": label})
      )

    def _split_generators(self, manager):
      return {"train": self._generate_examples(40), "test": self._generate_examples(10)}

    def _generate_examples(self, count):
      for i in range(count):
        png = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(png, "PNG")
        png.seek(0)
        yield i, {"image": png, "label": i % 2}

  root = tmp_path_factory.mktemp("tfds")
  JaxkdTiny(data_dir=root, file_format="array_record").download_and_prepare()
  return root


def test_a_mocked_catalogue_name(tfds, tmp_path):
  with tfds.testing.mock_data(num_examples=100):
    chosen = options("cifar10", tmp_path, image_size=16, channels=1)
    dataset, test = data.load(chosen), data.load_test(chosen)
  assert (len(dataset.train), len(dataset.validation), len(test)) == (90, 10, 100)
  assert dataset.image_shape == (16, 16, 1)
  assert len(dataset.class_names) == 10


def test_a_prepared_builder_is_read_without_tensorflow(prepared):
  dataset, test = (f(options("jaxkd_tiny", prepared)) for f in (data.load, data.load_test))
  assert dataset.class_names == ("even", "odd")
  assert sorted(test.images[:, 0, 0, 0].tolist()) == list(range(10))
  for part in (dataset.train, dataset.validation, test):
    np.testing.assert_array_equal(part.labels, part.images[:, 0, 0, 0] % 2)
  assert "tensorflow" not in sys.modules


def test_names_and_folders_that_hold_nothing(tfds, prepared, tmp_path):
  with pytest.raises(UserError, match="Dataset nonsense not found"):
    data.load(options("nonsense", tmp_path))
  with pytest.raises(UserError, match="tfds:cifar10 is not prepared in") as e:
    data.load(options("cifar10", tmp_path))
  assert "file_format='array_record'" in e.value.hint


def test_files_that_need_tensorflow_say_how_to_prepare_others(prepared, tmp_path):
  folder = tmp_path / "jaxkd_tiny" / "1.0.0"
  folder.mkdir(parents=True)
  for path in (prepared / "jaxkd_tiny" / "1.0.0").iterdir():
    (folder / path.name).write_bytes(path.read_bytes())
  about = json.loads((folder / "dataset_info.json").read_text())
  (folder / "dataset_info.json").write_text(json.dumps({**about, "fileFormat": "tfrecord"}))
  with pytest.raises(UserError, match="without TensorFlow its tfrecord files cannot be used") as e:
    data.load(options("jaxkd_tiny", tmp_path))
  assert "download_and_prepare" in e.value.hint
