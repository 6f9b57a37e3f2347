"""Official weights by name: the cache, its record, digests, and errors that say which file to place where."""

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import types

import numpy as np
import pytest
from safetensors.numpy import save

from jaxkd.errors import CannotWrite, IntegrityFailure, UserError
from jaxkd.models import options as model_options
from jaxkd.weights import hub

NAME = "convnextv2_atto"  # one without a published digest of ours
PINNED = "dinov2_vits14"
CONTENT = save({"x": np.arange(4, dtype=np.float32)})
COMMIT = "c" * 40


def sha(content):
  return hashlib.sha256(content).hexdigest()


class FakeHub(types.ModuleType):
  """The three functions of huggingface_hub that are used; counts downloads."""

  def __init__(self, content=CONTENT, etag=None, error=None):
    super().__init__("huggingface_hub")
    self.content, self.etag, self.error = content, etag or sha(content), error
    self.asked = []

  def hf_hub_url(self, repo, file, *, revision):
    return f"https://hub/{repo}/{revision}/{file}"

  def get_hf_file_metadata(self, url):
    if self.error:
      raise self.error
    return types.SimpleNamespace(commit_hash=COMMIT, etag=self.etag)

  def hf_hub_download(self, repo, file, *, revision, local_dir):
    self.asked.append((repo, file, revision))
    (local_dir / file).write_bytes(self.content)
    return str(local_dir / file)


@pytest.fixture
def fake(monkeypatch):
  def install(**options):
    monkeypatch.setitem(sys.modules, "huggingface_hub", found := FakeHub(**options))
    return found

  return install


def failed(kind, cache, name=NAME):
  with pytest.raises(kind) as caught:
    hub.fetch(name, cache=cache)
  error = caught.value
  assert error.hint
  assert "\n" not in error.message + error.hint
  return error


def test_every_source_names_a_model_with_its_options_and_a_full_commit():
  assert len(hub.SOURCES) == 8 + 3 + 6
  for name, source in hub.SOURCES.items():
    assert source.model == name
    assert set(source.options) <= set(model_options(source.model)), name
    assert re.fullmatch(r"([0-9a-f]{40})?", source.revision), name
    assert re.fullmatch(r"([0-9a-f]{64})?", source.sha256), name
    assert not source.sha256 or source.revision, "a digest is one of a certain revision"
  assert (
    hub.source(PINNED)
    .url()
    .endswith(f"/facebook/dinov2-small/resolve/{hub.source(PINNED).revision}/model.safetensors")
  )
  with pytest.raises(UserError, match="no official weights named 'dinov2_vits1'") as caught:
    hub.source("dinov2_vits1")
  assert caught.value.hint == "did you mean 'dinov2_vits14'?"


def test_cache_is_where_the_environment_says(monkeypatch, tmp_path):
  monkeypatch.setenv("JAXKD_CACHE", str(tmp_path))
  assert hub.cache_folder() == tmp_path / "hub"
  monkeypatch.delenv("JAXKD_CACHE")
  assert hub.cache_folder().parts[-3:] == (".cache", "jaxkd", "hub")


def test_first_use_downloads_and_records_and_the_second_does_not_ask(fake, tmp_path):
  made = fake()
  path = hub.fetch(NAME, cache=tmp_path)
  assert path == tmp_path / NAME / "model.safetensors"
  assert path.read_bytes() == CONTENT
  assert made.asked == [("facebook/convnextv2-atto-1k-224", "model.safetensors", COMMIT)]
  record = json.loads((tmp_path / NAME / "record.json").read_text())
  assert record["sha256"] == record["published_sha256"] == sha(CONTENT)
  assert (record["revision"], record["origin"]) == (COMMIT, "download")
  assert record["url"].endswith(f"/resolve/{COMMIT}/model.safetensors")
  assert re.fullmatch(r"\d{4}-\d\d-\d\d", record["date"])
  assert sorted(p.name for p in path.parent.iterdir()) == ["model.safetensors", "record.json"]
  again = fake(error=OSError("no network"))
  assert hub.fetch(NAME, cache=tmp_path) == path
  assert not again.asked


def test_a_lost_file_is_fetched_at_the_recorded_revision_and_must_be_the_same(fake, tmp_path, monkeypatch):
  fake()
  path = hub.fetch(NAME, cache=tmp_path)
  path.unlink()
  made, urls = fake(), []
  monkeypatch.setattr(made, "hf_hub_url", lambda repo, file, revision: urls.append(revision))
  assert hub.fetch(NAME, cache=tmp_path).read_bytes() == CONTENT
  assert urls == [COMMIT]
  path.unlink()
  fake(content=save({"x": np.zeros(4, np.float32)}))
  assert failed(IntegrityFailure, tmp_path).code == 4
  assert not path.exists()


def test_a_file_placed_by_hand_is_recorded_and_a_changed_one_refused(fake, tmp_path):
  made = fake()
  (tmp_path / NAME).mkdir()
  path = tmp_path / NAME / "model.safetensors"
  path.write_bytes(b"<!DOCTYPE html>")
  assert "web page" in failed(UserError, tmp_path).hint
  assert not (tmp_path / NAME / "record.json").exists(), "a wrong file is not recorded"
  path.write_bytes(CONTENT)
  assert hub.fetch(NAME, cache=tmp_path) == path
  record = json.loads((tmp_path / NAME / "record.json").read_text())
  assert (record["origin"], record["revision"], record["sha256"]) == ("placed by hand", "", sha(CONTENT))
  path.write_bytes(CONTENT[:-1] + b"\x01")
  error = failed(IntegrityFailure, tmp_path)
  assert error.code == 4
  assert sha(CONTENT) in error.message
  assert f"remove the folder {path.parent}" in error.hint
  (tmp_path / NAME / "record.json").write_text("{")
  assert "record.json: unreadable" in failed(IntegrityFailure, tmp_path).message
  assert not made.asked


def test_published_digests_are_checked(fake, tmp_path):
  for options, name in (({"etag": "0" * 64}, NAME), ({}, PINNED)):  # the hub's, and ours
    fake(**options)
    assert failed(IntegrityFailure, tmp_path, name).code == 4
    assert not (tmp_path / name / "model.safetensors").exists()
    assert not (tmp_path / name / "record.json").exists()
    assert not (tmp_path / name / ".download").exists(), "a bad download is not taken up again"
  (tmp_path / PINNED / "model.safetensors").write_bytes(CONTENT)
  assert hub.source(PINNED).sha256 in failed(IntegrityFailure, tmp_path, PINNED).message
  fake(etag="an-etag-that-is-no-sha256")
  assert hub.fetch(NAME, cache=tmp_path).is_file()


@pytest.mark.parametrize(
  "error", [ConnectionError("offline mode is enabled\nmore"), ValueError("404 Client Error"), OSError()]
)
def test_what_cannot_be_downloaded_says_which_file_to_place_where(fake, tmp_path, error):
  fake(error=error)
  found = failed(UserError, tmp_path)
  assert found.code == 2
  assert "cannot download model.safetensors of facebook/convnextv2-atto-1k-224: " in found.message
  address = "https://huggingface.co/facebook/convnextv2-atto-1k-224/resolve/main/model.safetensors"
  assert f"place {address} at {tmp_path / NAME / 'model.safetensors'}" in found.hint
  assert "--config.teachers.NAME.weights=PATH" in found.hint


def test_a_full_disk_is_exit_74(fake, tmp_path):
  fake(error=OSError(errno.ENOSPC, "No space left on device"))
  assert failed(CannotWrite, tmp_path).code == 74


def test_without_huggingface_hub_the_hint_says_what_to_install(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  error = failed(UserError, tmp_path)
  assert "pip install 'jaxkd[hub]'" in error.hint
  assert "model.safetensors at" in error.hint


def test_offline_with_the_real_library(tmp_path):
  pytest.importorskip("huggingface_hub")
  code = "from jaxkd.weights import hub; from jaxkd.errors import *\ntry: hub.fetch('dinov2_vits14')\n"
  code += "except UserError as e: print(e.message); print(e.hint)"
  env = {**os.environ, "HF_HUB_OFFLINE": "1", "JAXKD_CACHE": str(tmp_path)}
  done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
  message, hint = done.stdout.splitlines()
  assert message.startswith("cannot download model.safetensors of facebook/dinov2-small: ")
  assert "offline" in message.lower()
  path = tmp_path / "hub" / PINNED / "model.safetensors"
  assert hint.startswith(f"place {hub.source(PINNED).url()} at {path}, or give a file: --config.teachers.")
