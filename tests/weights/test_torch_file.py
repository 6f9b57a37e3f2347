"""Files written by torch.save: read bitwise; code, whole modules and broken files refused (faults 18-20, 26)."""

import argparse
import hashlib
import os
import pickle
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest

from jaxkd.weights.read import read_weights
from jaxkd.weights.torch_file import _names
from tests.weights.checks import equal, refused


@pytest.fixture(scope="module")
def torch():
  return pytest.importorskip("torch")


def state(torch):
  g = torch.Generator().manual_seed(0)
  return {
    "a.weight": torch.randn(3, 4, generator=g),
    "turned": torch.randn(3, 4, generator=g).t(),
    "bf": torch.randn(5, generator=g).bfloat16(),
    "f8": torch.randn(5, generator=g).to(torch.float8_e4m3fn),
    "n": torch.tensor(3),
    "scalar": torch.tensor(1.5).bfloat16(),
    "parameter": torch.nn.Parameter(torch.ones(2)),
  }


def as_numpy(torch, tensors):
  """Independent of the reader: values through float64, which holds every bfloat16 and float8 exactly."""
  return {k: v.detach().to(torch.float64).numpy() for k, v in tensors.items()}


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_load_bitwise(tmp_path, torch, zipped):
  path, tensors = tmp_path / "a.pth", state(torch)
  if not zipped:
    del tensors["f8"]  # torch cannot read its own old format with these
  torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
  found = read_weights(path)
  assert found.format == "torch"
  assert found.notes == ("bfloat16 kept", "float8_e4m3fn kept")[: 1 + zipped]
  for name, expected in as_numpy(torch, tensors).items():
    np.testing.assert_array_equal(found.arrays[name].astype(np.float64), expected)
  assert found.arrays["bf"].dtype == ml_dtypes.bfloat16
  assert not zipped or found.arrays["f8"].dtype == ml_dtypes.float8_e4m3fn
  assert found.arrays["scalar"].shape == ()
  assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
  path.rename(tmp_path / "a.safetensors")  # a wrong suffix does not matter
  equal(read_weights(tmp_path / "a.safetensors").arrays, found.arrays)


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_saved_on_cuda_load_on_the_cpu(tmp_path, torch, monkeypatch, zipped):  # fault 26
  monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
  torch.save({"a": torch.arange(3.0)}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
  monkeypatch.undo()
  if not torch.cuda.is_available():
    with pytest.raises(
      RuntimeError, match="CUDA"
    ):  # the negative control: without map_location it does not load
      torch.load(tmp_path / "a.pth", weights_only=True)
  np.testing.assert_array_equal(read_weights(tmp_path / "a.pth").arrays["a"], [0, 1, 2])


def test_wrappers_are_opened_in_a_stated_order(tmp_path, torch):
  path, weights = tmp_path / "a.pth", {"module.a": torch.ones(2)}
  args = argparse.Namespace(lr=0.1, arch="vit_small")
  torch.save({"model": weights, "optimizer": {"state": {}}, "epoch": 3, "args": args}, path)
  found = read_weights(path)
  assert list(found.arrays) == ["a"]
  assert found.notes == ("unwrapped 'model'", "left out optimizer, epoch, args", "stripped prefix 'module.'")
  other = {"module.b": torch.zeros(2)}
  torch.save({"student": weights, "teacher": other, "epoch": 1}, path)
  found = read_weights(path)
  assert list(found.arrays) == ["b"]
  assert found.notes[0] == "unwrapped 'teacher' (also there: 'student')"
  torch.save({"state_dict": weights, "state_dict_ema": other}, path)
  assert list(read_weights(path).arrays) == ["b"]
  torch.save({"model": "vit_small", "a": torch.ones(1), "epoch": 3}, path)  # a name is not a wrapper
  found = read_weights(path)
  assert list(found.arrays) == ["a"]
  assert found.notes == ("left out model, epoch",)


def test_files_without_named_tensors_are_refused(tmp_path, torch):
  path = tmp_path / "a.pth"
  for payload, word in (
    (torch.ones(2), "holds a Tensor, not a state dict"),
    ([torch.ones(2)], "holds a list"),
    ({"epoch": 1, "optimizer": {}}, "holds no tensors by name (but epoch, optimizer)"),
    ({}, "(but nothing)"),
  ):
    torch.save(payload, path)
    refused(path, word)
  torch.save({"s": torch.eye(2).to_sparse()}, path)
  refused(path, "'s' is a sparse tensor")


class RunsCode:
  """Unpickling calls a function that leaves a file, the canary."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("which", ["os.system", "zipfile.ZipFile"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, torch, monkeypatch, form, which):  # fault 18
  monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # a habit of some shells: it must not reach us
  path, canary = tmp_path / "a.pth", tmp_path / "canary"
  evil = (
    RunsCode(os.system, f"touch {canary}")
    if which == "os.system"
    else RunsCode(zipfile.ZipFile, str(canary), "w")
  )
  payload = {"a": torch.ones(2), "evil": evil}
  if form == "pickle":
    path.write_bytes(pickle.dumps(evil, protocol=2))
  else:
    torch.save(payload, path, _use_new_zipfile_serialization=form == "zip")
  error = refused(path, "not one of torch's" if form == "pickle" else "refused")
  if form != "pickle":
    assert ("system" if which == "os.system" else "zipfile.ZipFile") in error.message
  assert not canary.exists()
  pickle.loads(pickle.dumps(evil))  # the negative control: the payload does work
  assert canary.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_whole_modules_are_told_apart(tmp_path, torch, zipped):  # fault 19
  path = tmp_path / "a.pth"
  module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
  for payload in (module, {"model": module, "epoch": 1}):
    torch.save(payload, path, _use_new_zipfile_serialization=zipped)
    error = refused(path, "holds a whole torch module, not its weights")
    assert "torch.save(model.state_dict(), path)" in error.hint
  with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:  # as torch.jit.save lays it out
    for member in ("a/data.pkl", "a/constants.pkl", "a/code/__torch__.py"):
      archive.writestr(member, "")
  refused(tmp_path / "script.pt", "holds a whole torch module")
  torch.save(module.state_dict(), path, _use_new_zipfile_serialization=zipped)
  assert "0.weight" in read_weights(path).arrays


def test_pickles_of_every_protocol_are_listed_without_loading_them(tmp_path):
  for protocol in range(6):
    with open(tmp_path / "p", "wb") as f:
      pickle.dump(
        [RunsCode(zipfile.ZipFile, "x"), {"zipfile": "ZipFile"}, RunsCode(zipfile.ZipFile, "y"), print],
        f,
        protocol,
      )
    with open(tmp_path / "p", "rb") as f:
      names, _ = _names(f)
    assert names in ({"zipfile.ZipFile", "builtins.print"}, {"zipfile.ZipFile", "__builtin__.print"}), (
      protocol
    )


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_torch_files(tmp_path, torch, zipped):  # fault 20
  path = tmp_path / "a.pth"
  torch.save({f"w{i}": torch.ones(50) for i in range(4)}, path, _use_new_zipfile_serialization=zipped)
  whole = path.read_bytes()
  for size in (0, 2, 5, 12, 100, len(whole) // 2, len(whole) - 20, len(whole) - 1):
    path.write_bytes(whole[:size])
    error = refused(path, "file is incomplete", f"{size:,} bytes, expected ", str(path))
    assert error.hint == "download or copy it again"
  if not zipped:
    assert "expected 1 more" in error.message
  path.write_bytes(whole)
  assert len(read_weights(path).arrays) == 4


def test_what_torch_cannot_read_is_not_called_incomplete(tmp_path, torch):
  path = tmp_path / "a.pth"
  torch.save({"f8": torch.zeros(2).to(torch.float8_e5m2)}, path, _use_new_zipfile_serialization=False)
  assert "damaged?" in refused(path, "torch cannot read it (").hint
  torch.save({"a": torch.zeros(2)}, path, pickle_protocol=4)
  refused(path, "refused", "instructions that build no tensors")


def test_without_torch_the_hint_says_what_to_install(tmp_path, torch, monkeypatch):
  torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
  monkeypatch.setitem(sys.modules, "torch", None)
  assert "pip install 'jaxkd[torch]'" in refused(tmp_path / "a.pth", "needs torch").hint
