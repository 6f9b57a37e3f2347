"""Streamed data: the resident batches bitwise, whatever the start, the processes and the readers."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from jaxkd import config as configs
from jaxkd import data, feed, metrics
from jaxkd.data import streaming
from jaxkd.data.stored import StoredImages
from jaxkd.errors import UserError
from jaxkd.experiment import build
from jaxkd.feed import Feed, local_rows, make_batch, place
from jaxkd.train import train
from jaxkd.weights.read import write_safetensors
from tests import tiny
from tests.weights.test_convert import torch_state

pytest.importorskip("grain")
pytestmark = pytest.mark.usefixtures("optax_promotion", "cache")
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXKD_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache" / "data"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """80 training files of 4 classes, two of JPEG, none of the size that is asked for."""
  folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
  for part, count in (("train", 20), ("test", 2)):
    for c, ending in enumerate(("png", "jpg", "png", "jpg")):
      (folder / part / f"class{c}").mkdir(parents=True)
      for i in range(count):
        pixels = rng.integers(0, 256, (10 + c, 12, 3), np.uint8) // 2 + 30 * c
        Image.fromarray(pixels.astype(np.uint8)).save(folder / part / f"class{c}" / f"{i:02}.{ending}")
  return folder


def folder_data(root, **more):
  return {"name": "folder", "root": str(root), "image_size": 8, "channels": 3, "validation": 0.2, **more}


def options(root, **more):
  return configs.complete({"data": folder_data(root, **more)}).data


def assert_same_dataset(a, b):
  for part in ("train", "validation"):
    np.testing.assert_array_equal(getattr(a, part).images[:], getattr(b, part).images[:])
    np.testing.assert_array_equal(getattr(a, part).labels, getattr(b, part).labels)
  assert (a.mean, a.std, a.digest, a.image_shape) == (b.mean, b.std, b.digest, b.image_shape)


# The data set


@pytest.mark.parametrize("more", [{}, {"channels": 1}, {"per_class": 3}, {"subset": 0.5}])
def test_a_streamed_folder_has_the_splits_statistics_and_digest_of_a_resident_one(root, more):
  streamed = data.load(options(root, placement="streamed", **more))
  resident = data.load(options(root, placement="device", **more))
  assert isinstance(streamed.train.images, StoredImages)
  assert isinstance(streamed.validation.images, np.ndarray)
  assert (streamed.placement, resident.placement) == ("streamed", "device")
  assert_same_dataset(streamed, resident)
  other = data.load(options(root, placement="streamed", split_seed=1, **more))
  assert other.digest != streamed.digest, "a digest that never differs proves nothing"


def test_auto_goes_by_the_size_of_the_training_images(root):
  size = 64 * 8 * 8 * 3
  found = [data.load(options(root, device_gib=limit / 2**30)) for limit in (100, size - 1, size)]
  assert [d.placement for d in found] == ["streamed", "streamed", "device"]
  assert isinstance(found[0].validation.images, StoredImages), "validation images over the limit stay stored"
  assert isinstance(found[2].train.images, np.ndarray)
  for other in found[1:]:
    assert_same_dataset(found[0], other)
  arrays = configs.complete({"data": {"placement": "streamed"}}).data
  assert isinstance(data.load(arrays).train.images, np.ndarray), "arrays stay in memory"


def test_files_are_surveyed_once_and_again_when_one_changed(root, monkeypatch, cache):
  read, count = StoredImages.read, []
  monkeypatch.setattr(StoredImages, "read", lambda self, i: count.append(i) or read(self, i))
  first = data.load(options(root, placement="streamed"))
  assert len(count) == 80  # 64 surveyed, 16 of validation read
  second = data.load(options(root, placement="streamed"))
  assert len(count) == 96
  assert_same_dataset(first, second)
  os.utime(first.train.images.paths[0])
  data.load(options(root, placement="streamed"))
  assert len(list(cache.glob("survey-*.json"))) == 2


def test_skipped_files_leave_the_same_images(tmp_path):
  rng = np.random.default_rng(0)
  for c in "ab":
    (tmp_path / c).mkdir()
    for i in range(60):
      Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / c / f"{i:02}.png")
  (tmp_path / "b" / "07.png").write_bytes((tmp_path / "b" / "07.png").read_bytes()[:50])
  with pytest.raises(UserError, match=r"image \d+: cannot decode .*b/07.png"):
    data.load(options(tmp_path, placement="streamed", test=0.1))
  both = [data.load(options(tmp_path, placement=p, on_error="skip")) for p in ("streamed", "device")]
  assert_same_dataset(*both)
  (tmp_path / "a" / "03.png").write_bytes(b"nothing")
  with pytest.raises(UserError, match="2 of 120 images cannot be decoded, more than 1%"):
    data.load(options(tmp_path, placement="streamed", on_error="skip"))


def test_stored_images_index_like_an_array(root):
  images = data.load(options(root, placement="streamed")).train.images
  array = images[:]
  assert (images.shape, images.nbytes, len(images), images.ndim) == (array.shape, array.nbytes, 64, 4)
  for index in (3, slice(2, 9, 3), np.array([5, 1, 5]), [60, 0]):
    np.testing.assert_array_equal(images[index], array[index])
  np.testing.assert_array_equal(images.take(np.array([9, 4]))[:], array[[9, 4]])


# The batches


@pytest.fixture(scope="module")
def batches(root, tmp_path_factory):
  """A streamed source of 12 steps, 4 to an epoch, and the arrays it must give."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("JAXKD_CACHE", str(tmp_path_factory.mktemp("cache")))
    train = data.load(options(root, placement="streamed")).train
  source = streaming.Batches(train.images, train.labels, 12, 16, 5, np.arange(16))
  order = [data.batch_indices(s, examples=64, batch_size=16, seed=5) for s in range(12)]
  return source, [(train.images[:][index], train.labels[index]) for index in order]


def assert_same_batches(stream, expected):
  found = list(stream)
  assert len(found) == len(expected)
  for batch, (images, labels) in zip(found, expected, strict=True):
    np.testing.assert_array_equal(batch["images"], images)
    np.testing.assert_array_equal(batch["labels"], labels)


@pytest.mark.parametrize("start", [0, 3, 5, 11])
def test_batches_follow_from_their_step(batches, start):
  source, expected = batches
  with streaming.Stream(source, start=start) as stream:
    assert_same_batches(stream, expected[start:])
  with pytest.raises(AssertionError), streaming.Stream(source, start=start - 1 if start else 1) as stream:
    assert_same_batches(stream, expected[start:])


def test_worker_processes_read_the_same(batches):
  source, expected = batches
  with streaming.Stream(source, start=3, workers=2) as stream:
    assert_same_batches(stream, expected[3:])


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_read_the_parts_of_one_global_batch(batches, processes):
  source, expected = batches
  parts = []
  for rows in np.array_split(np.arange(16), processes):
    mine = streaming.Batches(source.images, source.labels, 12, 16, 5, rows)
    with streaming.Stream(mine) as stream:
      parts.append([b["images"] for b in stream])
  whole = [np.concatenate(step) for step in zip(*parts, strict=True)]
  for got, (images, _) in zip(whole, expected, strict=True):
    np.testing.assert_array_equal(got, images)


class Device:
  def __init__(self, process):
    self.process_index = process


@pytest.mark.parametrize("owner", [[0] * 8, [0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 3, 3, 2, 2]])
def test_each_process_finds_its_rows_in_any_order_of_devices(owner):
  parts = {Device(p): (slice(2 * i, 2 * i + 2),) for i, p in enumerate(owner)}
  split = SimpleNamespace(devices_indices_map=lambda shape: parts)
  rows = {p: local_rows(split, 16, p) for p in set(owner)}
  assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(16))
  if owner[-1] == 2:
    assert rows[3].tolist() == [8, 9, 10, 11]


SHARDED = """
import json, sys
import jax, numpy as np
from jaxkd import feed, sharding
from jaxkd.experiment import build
from tests import tiny

experiment = build(tiny.config(data={"placement": "streamed"}))
split = sharding.batch_sharding(experiment.mesh)
with feed.Feed(experiment, start=2) as batches:
  found = batches.batches(2, 3)
for step, batch in enumerate(found, start=2):
  expected = feed.make_batch(experiment, step)
  assert batch["images"].sharding == split and len(batch["images"].addressable_shards) == 8
  assert all(np.array_equal(batch[k], v) for k, v in expected.items()) and set(batch) == set(expected)
stacked = feed.stack(found)
assert stacked["images"].sharding.spec == jax.sharding.PartitionSpec(None, *split.spec)
assert np.array_equal(stacked["images"][1], found[1]["images"]) and stacked["index"].shape == (3, 16)
print("same")
"""


def test_eight_devices_hold_one_global_batch(tmp_path):
  flags = "--xla_force_host_platform_device_count=8"
  env = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
  done = subprocess.run(
    [sys.executable, "-c", SHARDED], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
  )
  assert done.stdout.endswith("same\n"), done.stderr


def test_rows_land_where_they_belong():
  experiment = build(tiny.config())
  split = feed.sharding.batch_sharding(experiment.mesh)
  whole = np.arange(48, dtype=np.int32).reshape(16, 3)
  np.testing.assert_array_equal(place(np.arange(16), whole, 16, split), whole)


# The feed


@pytest.mark.parametrize("placement", ["device", "streamed"])
def test_a_feed_gives_the_steps_in_order_and_nothing_else(root, placement):
  experiment = build(tiny.config(data=folder_data(root, placement=placement)))
  with Feed(experiment, start=3) as batches:
    with pytest.raises(ValueError, match="batch 4 was asked for, the next one is 3 of 16"):
      batches.batch(4)
    for step, batch in batches:
      for key, expected in make_batch(experiment, step).items():
        np.testing.assert_array_equal(batch[key], expected)
    assert step == 15
    with pytest.raises(ValueError, match="batch 16"):
      batches.batch(16)
    assert batches.waited > 0
    assert batches.take_waited() > batches.take_waited() == 0.0
  assert not [t for t in threading.enumerate() if t.name == "jaxkd-feed"]


def test_workers_without_files_are_pointed_out(caplog):
  experiment = build(tiny.config(data={"placement": "streamed", "workers": 3}))
  with Feed(experiment) as batches:
    batches.batch(0)
  assert "data.workers=3 is not used: 'synthetic' is in memory" in caplog.text


def test_without_grain_files_cannot_be_streamed(root, monkeypatch):
  monkeypatch.setitem(sys.modules, "grain", None)
  with pytest.raises(UserError, match="streamed data needs grain") as e:
    data.load(options(root, placement="streamed"))
  assert "jaxkd[data]" in e.value.hint


# The run


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  path = tmp_path_factory.mktemp("weights") / "dino.safetensors"
  state = {k: 0.3 * v if v.ndim > 1 else v for k, v in torch_state("dinov2_vits14", "official").items()}
  write_safetensors(path, state, {})
  return path


@pytest.fixture(scope="module")
def distillation(root, teacher, tmp_path_factory):
  """Config of a distillation on two views with a bank on disk, by placement."""
  bank = tmp_path_factory.mktemp("bank") / "dino"
  model = {"name": "dinov2_vits14", "width": 16, "depth": 2, "heads": 2}

  def config(placement):
    augment = {"crop": 1, "flip": True, "geometries": 2, "brightness": 0.3}
    views = {"global_count": 2, "global_scale": (0.5, 1.0)}
    return tiny.config(
      data=folder_data(root, placement=placement, augment=augment, views=views),
      teachers={"dino": {"weights": str(teacher), "model": model, "size": 28, "bank": str(bank)}},
      terms={
        "ce": tiny.CE,
        "tokens": {
          "kind": "token_cosine", "teacher": "dino", "head": "linear", "student_taps": ("block01/tokens",)
        },
      },
      bank={"dtype": "float32", "place": "disk"},
      train={"steps": 8, "batch_size": 16},
      eval={"metric": "none"},
      log={"every_steps": 1, "shares_every": 0},
      checkpoint={"every_epochs": 0.5},
    )  # fmt: skip

  return config


def rows(folder):
  found = metrics.read(folder / "metrics.jsonl")
  return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in found]


class Killed(BaseException):
  pass


def test_a_streamed_distillation_is_the_resident_one_also_resumed(distillation, tmp_path, monkeypatch):
  folders = {placement: tmp_path / placement for placement in ("device", "streamed", "mixed")}
  for placement in ("device", "streamed"):
    train(distillation(placement), folders[placement])
  batch = Feed.batch

  def dying(self, step):
    if step == 5:
      raise Killed
    return batch(self, step)

  monkeypatch.setattr(Feed, "batch", dying)
  with pytest.raises(Killed):
    train(distillation("device"), folders["mixed"])
  monkeypatch.undo()
  train(distillation("streamed"), folders["mixed"])  # of step 4
  expected = rows(folders["device"])
  assert [row["step"] for row in expected] == list(range(1, 9))
  assert expected[0]["loss/tokens"] > 0
  assert rows(folders["streamed"]) == rows(folders["mixed"]) == expected
  assert json.loads((folders["mixed"] / "config.json").read_text())["data"]["placement"] == "streamed"
  timed = metrics.read(folders["streamed"] / "metrics.jsonl")
  assert all(0 <= row["time/data_wait"] <= 1 for row in timed)
