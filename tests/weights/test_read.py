"""Weight files: what is read bitwise, what is refused and how (faults 20, 21, 27), what is written."""

import hashlib
import json
import os
import pickle
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jaxkd.errors import CannotWrite, IntegrityFailure, UserError
from jaxkd.weights import read
from jaxkd.weights.read import check_digest, read_weights, write_safetensors
from tests.weights.checks import equal, refused

RNG = np.random.default_rng(0)


def example():
  return {
    "norm.weight": RNG.normal(size=5).astype(np.float32),
    "conv.weight": RNG.normal(size=(2, 3, 1)).astype(np.float16),
    "bf": RNG.normal(size=(3, 3)).astype(ml_dtypes.bfloat16),
    "steps": np.array(7, np.int64),
    "mask": np.array([True, False, True]),
    "none": np.zeros((0, 4), np.float32),
  }


def float8():
  kinds = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
  return {k: np.arange(5, dtype=np.uint8).view(getattr(ml_dtypes, k)) for k in kinds}


def test_safetensors_load_bitwise_without_torch(tmp_path):
  path = tmp_path / "named.bin"  # the content decides, not the suffix
  save_file(example(), path, metadata={"format": "pt", "who": "x"})
  code = "import sys; from jaxkd.weights import read; read.read_weights(sys.argv[1]); sys.exit('torch' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == 0
  found = read_weights(path)
  equal(found.arrays, load_file(path))  # what the library itself reads
  assert (found.format, found.bytes) == ("safetensors", path.stat().st_size)
  assert found.metadata == {"format": "pt", "who": "x"}
  assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
  assert found.notes == ("bfloat16 kept",)


def test_float8_which_the_library_cannot_give_to_numpy(tmp_path):
  save_file(float8(), tmp_path / "a.safetensors")
  equal(read_weights(tmp_path / "a.safetensors").arrays, float8())


def test_what_we_write_the_library_reads_and_equal_content_gives_equal_bytes(tmp_path):
  arrays = {
    **example(),
    **float8(),
    "turned": np.arange(6.0).reshape(2, 3).T,
    "big": np.arange(3, dtype=">i4"),
  }
  for name in ("a", "b"):
    write_safetensors(tmp_path / "new" / name, arrays, {f"key{i}": str(i) for i in range(8)})
  assert (tmp_path / "new" / "a").read_bytes() == (tmp_path / "new" / "b").read_bytes()
  expected = {k: np.asarray(v, dtype=v.dtype.newbyteorder("<")) for k, v in arrays.items()}
  equal(read_weights(tmp_path / "new" / "a").arrays, expected)
  with safe_open(
    tmp_path / "new" / "a", framework="np"
  ) as f:  # the library's own reader, where numpy has the dtype
    assert f.metadata()["format"] == "pt"
    equal({k: f.get_tensor(k) for k in example()}, {k: arrays[k] for k in example()})
    np.testing.assert_array_equal(f.get_tensor("turned"), arrays["turned"])
    np.testing.assert_array_equal(f.get_tensor("big"), [0, 1, 2])
  assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["a", "b"], "no temporary file is left"


def test_writing_that_fails_is_exit_74_and_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "a.safetensors"
  write_safetensors(path, {"x": np.zeros(2)}, {})
  before = path.read_bytes()

  def full(_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(CannotWrite, match=r"a\.safetensors \(\d+ bytes\): No space left") as caught:
    write_safetensors(path, {"x": np.ones(2)}, {})
  assert caught.value.code == 74
  assert path.read_bytes() == before
  assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
  with pytest.raises(UserError, match="'x' is of dtype complex128"):
    write_safetensors(path, {"x": np.zeros(2, np.complex128)}, {})


def test_incomplete_safetensors_say_size_and_what_was_expected(tmp_path):  # fault 20
  path = tmp_path / "a.safetensors"
  save_file({"x": np.arange(100, dtype=np.float32)}, path)
  whole = path.read_bytes()
  header = int.from_bytes(whole[:8], "little")
  for size in (0, 1, 8, 9, 40, 8 + header, len(whole) - 1):
    path.write_bytes(whole[:size])
    error = refused(path, "file is incomplete", f"{size:,} bytes", str(path))
    if size >= 8 + header:
      assert f"expected {len(whole):,}" in error.message
  for garbage in (
    b"\x07" * 64,
    b"not json at all " * 8,
    (8).to_bytes(8, "little") + b"{]}}xxxx",
    whole + b"more",
  ):
    path.write_bytes(garbage)
    refused(path, "file is incomplete")
  path.write_bytes(whole)
  assert read_weights(path).arrays["x"][99] == 99, "the whole file is read"


def test_header_that_lies_about_its_arrays_is_refused(tmp_path):
  def file(header):
    raw = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(16))
    return tmp_path / "a.safetensors"

  entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
  assert read_weights(file({"x": entry})).arrays["x"].shape == (4,)
  for wrong in (
    {"shape": [5]},
    {"data_offsets": [0, 8]},
    {"dtype": "F99"},
    {"data_offsets": [-8, 8]},
    {"data_offsets": []},
  ):
    refused(file({"x": {**entry, **wrong}}), "incomplete or damaged")
  refused(file({"x": [1]}), "not JSON of arrays")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a"])
@pytest.mark.parametrize(
  ("content", "begins", "hint"),
  [
    (b"<!DOCTYPE html>\n<html>Sign in</html>", "<!DOCTYPE", "web page"),
    (b"\n <html><body>404</body></html>", "<html><body>404</bod", "web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "version", "git lfs pull"),
  ],
)
def test_web_pages_and_lfs_pointers_are_told(tmp_path, name, content, begins, hint):  # fault 21
  (tmp_path / name).write_bytes(content)
  error = refused(tmp_path / name, f"not a weights file (begins with {begins})")
  assert hint in error.hint


def test_other_files_are_not_weights(tmp_path):
  (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50))
  refused(tmp_path / "a.h5", "not a weights file (begins with 0x894844460d0a1a0a)")
  (tmp_path / "a.txt").write_text("once upon a time")
  refused(tmp_path / "a.txt", "(begins with once)")
  np.savez(tmp_path / "a.npz", x=np.zeros(2))
  refused(tmp_path / "a.npz", "a zip, but not one of torch's (it holds x.npy)")
  (tmp_path / "a.pkl").write_bytes(pickle.dumps({"x": np.zeros(2)}))
  refused(tmp_path / "a.pkl", "a pickle, but not one of torch's")
  save_file({}, tmp_path / "empty.safetensors")
  refused(tmp_path / "empty.safetensors", "holds no arrays")


def test_missing_paths_list_near_names(tmp_path):
  (tmp_path / "dinov2_vits14.pth").write_bytes(b"x")
  assert "did you mean dinov2_vits14.pth?" in refused(tmp_path / "dinov2_vits.pth", "no weights at").hint
  assert "holds dinov2_vits14.pth" in refused(tmp_path / "x", "no weights at").hint
  assert "there is no folder" in refused(tmp_path / "no" / "x", "no weights at").hint
  expected = "expected model.safetensors or model.safetensors.index.json"
  assert "name one of its files: dinov2_vits14.pth" in refused(tmp_path, expected).hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path):
  (tmp_path / "a.pth").write_bytes(b"x")
  (tmp_path / "a.pth").chmod(0)
  refused(tmp_path / "a.pth", "cannot read", "Permission denied")


# ------------------------------------------------------------------------------------- shards, prefixes, digests


def shards(folder):
  a, b = {"x.w": np.arange(4.0), "x.b": np.ones(2)}, {"y.w": np.arange(3, dtype=np.float32)}
  save_file(a, folder / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
  save_file(b, folder / "model-00002-of-00002.safetensors", metadata={"format": "pt"})
  names = {
    **dict.fromkeys(a, "model-00001-of-00002.safetensors"),
    **dict.fromkeys(b, "model-00002-of-00002.safetensors"),
  }
  index = folder / "model.safetensors.index.json"
  index.write_text(json.dumps({"metadata": {"total_size": 60}, "weight_map": names}))
  return index, {**a, **b}


def test_shards_are_merged_under_one_digest(tmp_path):
  index, arrays = shards(tmp_path)
  found = read_weights(tmp_path)
  equal(found.arrays, arrays)
  assert found.path == index
  assert found.notes[0] == "2 shards"
  each = [hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(tmp_path.glob("*.safetensors"))]
  assert found.sha256 == hashlib.sha256(index.read_bytes() + "".join(each).encode()).hexdigest()
  assert found.bytes == sum(p.stat().st_size for p in tmp_path.iterdir())
  assert read_weights(index).sha256 == found.sha256
  save_file({"z": np.zeros(1)}, tmp_path / "model.safetensors")
  assert list(read_weights(tmp_path).arrays) == ["z"], "one whole file goes before shards"


def test_incomplete_shards_are_refused(tmp_path):
  index, _ = shards(tmp_path)
  text = index.read_text()
  index.write_text(text.replace('"x.b"', '"x.bias"'))
  refused(tmp_path, "1 arrays are not in their shards, such as 'x.bias'")
  index.write_text(text.replace("model-00002", "model-00003"))
  refused(tmp_path, "1 of 2 shards are missing: model-00003")
  index.write_text(text.replace("model-00002", "../model-00002"))
  refused(tmp_path, "not plain file names")
  index.write_text("{}")
  refused(tmp_path, "not an index of shards")


def test_prefixes_of_every_name_are_stripped_and_of_some_are_not(tmp_path):
  path = tmp_path / "a.safetensors"
  save_file({f"module._orig_mod.backbone.{k}": np.zeros(1) for k in "ab"}, path)
  found = read_weights(path)
  assert sorted(found.arrays) == ["a", "b"]
  assert found.notes == tuple(f"stripped prefix '{p}'" for p in ("module.", "_orig_mod.", "backbone."))
  save_file({"backbone.a": np.zeros(1), "head.b": np.zeros(1)}, path)
  assert sorted(read_weights(path).arrays) == ["backbone.a", "head.b"]


def test_pinned_digest(tmp_path):  # fault 27
  (tmp_path / "a").write_bytes(b"abc")
  digest = read.sha256_file(tmp_path / "a")
  assert (
    digest == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
  )  # FIPS 180-2, appendix B.1
  for good in (digest, digest.upper(), digest[:8]):
    check_digest(digest, good, "a")
  for wrong in ("0" * 64, "ba7816b0", digest[1:]):
    with pytest.raises(IntegrityFailure, match=f"sha256 is {digest}, pinned is {wrong}") as caught:
      check_digest(digest, wrong, "a")
    assert caught.value.code == 4
  for no_digest in ("", digest[:7], "not hexadecimal", digest + "00"):
    with pytest.raises(UserError, match="8 to 64 hexadecimal digits"):
      check_digest(digest, no_digest, "a")


def test_reading_takes_about_one_copy_of_memory(tmp_path):
  size = 64 << 20
  path = tmp_path / "a.safetensors"
  write_safetensors(path, {f"w{i}": np.full((size // 32,), i, np.uint8) for i in range(32)}, {})
  code = """
import sys
from jaxkd.weights.read import read_weights
def peak():  # VmHWM, because ru_maxrss starts with the parent's
  return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) << 10
before = peak()
found = read_weights(sys.argv[1])
assert sum(int(a.sum(dtype="int64")) for a in found.arrays.values()) == sum(range(32)) * (64 << 20) // 32
print(peak() - before)
"""
  if not os.path.exists("/proc/self/status"):
    pytest.skip("needs /proc")
  done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
  assert int(done.stdout) < 1.25 * size
