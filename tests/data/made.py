"""Small data sets written in the official layouts."""

import gzip
import io
import json
import pickle
import struct
import tarfile

import numpy as np


def random_set(n, *, classes, shape, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (n, *shape), np.uint8), (np.arange(n) % classes).astype(np.uint8)


def idx_bytes(array):
  return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder, *, pack=True, dot=False):
  """MNIST's four files with random images; returns training images and labels."""
  kept = {}
  for part, n in (("train", 60), ("t10k", 20)):
    images, labels = random_set(n, classes=10, shape=(6, 6), seed=n)
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
      name = f"{part}-{kind}-ubyte".replace("-idx", ".idx" if dot else "-idx")
      body = idx_bytes(array)
      (folder / (name + ".gz" * pack)).write_bytes(gzip.compress(body) if pack else body)
    kept[part] = images, labels
  return kept


def write_digits(folder, per_digit=6):
  """`N.json` as the package has them: bytes as shares of 255, rounded to three decimals."""
  folder.mkdir(parents=True, exist_ok=True)
  images, _ = random_set(10 * per_digit, classes=10, shape=(784,))
  for digit in range(10):
    grey = images[digit * per_digit : (digit + 1) * per_digit].reshape(-1)
    (folder / f"{digit}.json").write_text(json.dumps({"data": [round(int(v) / 255, 3) for v in grey]}))
  return images.reshape(-1, 28, 28)


def python2_pickle(value):
  """What Python 2's cPickle wrote at protocol 2: text as byte strings, arrays by `numpy.core.multiarray`."""
  if isinstance(value, np.ndarray):
    body = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    shape = b"".join(struct.pack("<cI", b"J", n) for n in value.shape)
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    raw = value.tobytes()
    return body + b"(K\x01(" + shape + b"t" + dtype + b"\x89T" + struct.pack("<I", len(raw)) + raw + b"tb"
  if isinstance(value, dict):
    return b"}(" + b"".join(python2_pickle(k) + python2_pickle(v) for k, v in value.items()) + b"u"
  if isinstance(value, list):
    return b"](" + b"".join(map(python2_pickle, value)) + b"e"
  if isinstance(value, str):
    return b"U" + bytes([len(value)]) + value.encode()
  return b"J" + struct.pack("<i", value)


def as_python2(value):
  return b"\x80\x02" + python2_pickle(value) + b"."


def as_python3(value):
  return pickle.dumps(value, protocol=2)


NAMES = {10: [f"thing{i}" for i in range(10)], 100: [f"thing{i:02}" for i in range(100)]}


def cifar_files(classes, version, dump=as_python2):
  """File name -> bytes of a small CIFAR in the official layout."""
  sizes = (
    {f"data_batch_{i}": 40 for i in range(1, 6)} | {"test_batch": 20}
    if classes == 10
    else {"train": 400, "test": 100}
  )
  files = {}
  for seed, (name, n) in enumerate(sizes.items()):
    images, labels = random_set(n, classes=classes, shape=(3072,), seed=seed)
    if version == "python":
      fine = {"fine_labels": labels.tolist(), "coarse_labels": [0] * n}
      kept = {"batch_label": name, "data": images}
      files[name] = dump({**kept, **({"labels": labels.tolist()} if classes == 10 else fine)})
    else:
      columns = [labels[:, None]] if classes == 10 else [np.zeros((n, 1), np.uint8), labels[:, None]]
      files[f"{name}.bin"] = np.concatenate([*columns, images], axis=1).tobytes()
  if version == "python":
    files |= (
      {"batches.meta": dump({"label_names": NAMES[10]})}
      if classes == 10
      else {"meta": dump({"fine_label_names": NAMES[100]})}
    )
  else:
    files["batches.meta.txt" if classes == 10 else "fine_label_names.txt"] = "\n".join(
      [*NAMES[classes], ""]
    ).encode()
  return files


def write_tar(path, files, members=()):
  """A packed archive with those files, then further members."""
  with tarfile.open(path, "w:gz") as tar:
    for name, body in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(body)
      tar.addfile(info, io.BytesIO(body))
    for info in members:
      tar.addfile(info, io.BytesIO(b"x" * info.size))


def write_npz(path, **more):
  images, labels = random_set(60, classes=3, shape=(4, 4, 3))
  np.savez(path, **{"images": images, "labels": labels.astype(np.int64), **more})
  return images
