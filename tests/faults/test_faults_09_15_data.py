"""Faults 9 to 15: bad data end a command with exit code 2 and two lines, before a run folder appears.

Each goes through the command line; every reader's own cases are in tests/data.
"""

import hashlib
import json
import os
import pickle
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxkd.main import main
from tests import tiny
from tests.data.made import as_python3, cifar_files, write_digits, write_idx, write_npz, write_tar


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
  """`refused(name, root, **options)`: message and hint of a training run on these data."""
  monkeypatch.chdir(tmp_path)

  def run(name, root, *argv, **options):
    config = tiny.config().to_dict()
    config["data"] = {"name": name, "root": str(root), **options}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    before = set(tmp_path.rglob("*"))
    capsys.readouterr()
    assert main(["train", f"--config={file}", "--workdir=run", *argv]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.strip().splitlines() if not line.startswith("warning: ")]
    assert [line.partition(": ")[0] for line in lines] == ["error", "hint"], err
    assert not out
    assert set(tmp_path.rglob("*")) == before, "a refused command leaves nothing behind"
    return lines[0].removeprefix("error: "), lines[1].removeprefix("hint: ")

  return run


class Payload:
  """Makes a folder when it is unpickled."""

  def __init__(self, canary):
    self.canary = canary

  def __reduce__(self):
    return os.mkdir, (str(self.canary),)


def classes(folder, count=20):
  """Two classes of grey PNG files."""
  for i, name in enumerate(("ant", "bee")):
    (folder / name).mkdir(parents=True)
    for j in range(count):
      Image.fromarray(np.full((4, 4), 100 * i + j, np.uint8)).save(folder / name / f"{j:03}.png")
  return folder


def bomb(path):
  """A PNG whose header declares 60 000 x 60 000 pixels."""

  def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

  header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
  path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 99)))


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("mnist", "train-images-idx3-ubyte"),
    ("mnist_json", ".json"),
    ("cifar10", "cifar-10"),
    ("cifar100", "cifar-100"),
    ("svhn", "train_32x32.mat"),
    ("npz", ".npz"),
    ("folder", "CLASS/*.png"),
  ],
)
@pytest.mark.parametrize("state", ["absent", "empty"])
def test_fault_09_a_folder_without_data_says_what_was_expected(refused, tmp_path, name, expected, state):
  root = tmp_path / "data"
  if state == "empty":
    root.mkdir()
  message, hint = refused(name, root)
  assert str(root) in message + hint
  assert expected in message + hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_fault_09_an_unreadable_folder_is_named(refused, tmp_path):
  root = classes(tmp_path / "data")
  root.chmod(0)
  try:
    message, _ = refused("folder", root)
  finally:
    root.chmod(0o755)
  assert str(root) in message


def test_fault_10_truncated_archives_say_expected_and_found(refused, tmp_path):
  write_idx(tmp_path, pack=False)
  path = tmp_path / "train-images-idx3-ubyte"
  path.write_bytes(path.read_bytes()[:-5])
  message, _ = refused("mnist", tmp_path)
  assert str(path) in message
  assert "expected 2,160 values" in message
  assert "found 2,155" in message
  write_npz(tmp_path / "a.npz")
  whole = (tmp_path / "a.npz").read_bytes()
  (tmp_path / "a.npz").write_bytes(whole[: len(whole) // 2])
  assert "a.npz" in refused("npz", tmp_path / "a.npz")[0]
  write_tar(tmp_path / "cifar-10-binary.tar.gz", cifar_files(10, "binary"))
  whole = (tmp_path / "cifar-10-binary.tar.gz").read_bytes()
  (tmp_path / "cifar-10-binary.tar.gz").write_bytes(whole[: len(whole) // 2])
  assert "expected a whole tar archive, found" in refused("cifar10", tmp_path)[0]


def test_fault_10_a_wrong_digest_names_both(refused, tmp_path):
  write_npz(tmp_path / "a.npz")
  found, wanted = hashlib.sha256((tmp_path / "a.npz").read_bytes()).hexdigest(), 64 * "0"
  message, _ = refused("npz", tmp_path / "a.npz", sha256=[f"a.npz={wanted}"])
  assert "a.npz" in message
  assert found[:8] in message
  assert wanted[:8] in message


@pytest.mark.parametrize("kind", ["pickle", "npz"])
def test_fault_11_a_payload_is_refused_and_not_run(refused, tmp_path, kind):
  canary = tmp_path / "canary"
  if kind == "pickle":
    files = cifar_files(10, "python", as_python3) | {
      "data_batch_1": pickle.dumps(Payload(canary), protocol=2)
    }
    write_tar(tmp_path / "cifar-10-python.tar.gz", files)
    message, _ = refused("cifar10", tmp_path)
    assert "names posix.mkdir; nothing of it was run" in message
  else:
    images = np.array([Payload(canary)] * 60, dtype=object)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(60) % 3)
    message, _ = refused("npz", tmp_path / "a.npz")
    assert "a.npz" in message
    assert "refused" in message
  assert not canary.exists()
  pickle.loads(pickle.dumps(Payload(canary)))  # the payload would have worked
  assert canary.exists()


@pytest.mark.parametrize(
  ("member", "kind", "target"),
  [
    ("../outside.txt", tarfile.REGTYPE, ""),
    ("/tmp/outside.txt", tarfile.REGTYPE, ""),
    ("link", tarfile.SYMTYPE, "/etc/passwd"),
    ("hard", tarfile.LNKTYPE, "data_batch_1"),
  ],
)
def test_fault_12_an_archive_that_leads_outside_is_refused(refused, tmp_path, member, kind, target):
  info = tarfile.TarInfo(member)
  info.type, info.linkname = kind, target
  (tmp_path / "in").mkdir()
  write_tar(tmp_path / "in" / "cifar-10-python.tar.gz", cifar_files(10, "python"), [info])
  message, _ = refused("cifar10", tmp_path / "in")
  assert member in message
  assert "nothing was read from the archive" in message


def test_fault_13_an_undecodable_image_stops_with_its_path(refused, tmp_path, caplog):
  root = classes(tmp_path / "data")
  broken = root / "bee" / "007.png"
  broken.write_bytes(broken.read_bytes()[:40])
  message, hint = refused("folder", root)
  assert str(broken) in message
  assert "data.on_error=skip" in hint
  # 1 of 40 is above 1 %: skipping, too, ends in an error, and says how many
  message, _ = refused("folder", root, "--config.data.on_error=skip")
  assert "1 " in message
  assert "%" in message
  assert str(broken.relative_to(root)) in caplog.text


@pytest.mark.parametrize("kind", ["bomb", "integers", "floats"])
def test_fault_14_images_without_a_rule_are_refused_with_their_path(refused, tmp_path, kind):
  root = classes(tmp_path / "data")
  path = root / "ant" / ("odd.png" if kind == "bomb" else "odd.tiff")
  if kind == "bomb":
    bomb(path)
  else:
    Image.fromarray(np.ones((4, 4), np.int32 if kind == "integers" else np.float32)).save(path)
  message, _ = refused("folder", root)
  assert str(path) in message


def test_fault_14_odd_images_with_a_rule_are_read(tmp_path, monkeypatch):
  """Grey, RGBA, palette, 16 bits and one pixel, in one folder: the command runs (docs/data.md has the rules)."""
  monkeypatch.chdir(tmp_path)
  root = classes(tmp_path / "data")
  grey = Image.fromarray(np.full((4, 4), 90, np.uint8))
  grey.convert("RGBA").save(root / "ant" / "rgba.png")
  grey.convert("P").save(root / "ant" / "palette.png")
  Image.fromarray(np.full((4, 4), 300, np.uint16)).save(root / "bee" / "deep.png")
  grey.resize((1, 1)).save(root / "bee" / "dot.png")
  config = tiny.config().to_dict()
  config["data"] = {"name": "folder", "root": str(root), "image_size": 8, "channels": 3}
  (tmp_path / "config.json").write_text(json.dumps(config))
  assert main(["preview", f"--config={tmp_path / 'config.json'}", "--count=2"]) == 0
  assert (tmp_path / "preview.png").stat().st_size > 1000


@pytest.mark.parametrize("label", [3, -1])
def test_fault_15_a_label_out_of_range_is_named_with_its_index(refused, tmp_path, label):
  labels = np.arange(60) % 3
  labels[7] = label
  write_npz(tmp_path / "a.npz", labels=labels, class_names=np.array(["a", "b", "c"]))
  message, _ = refused("npz", tmp_path / "a.npz")
  assert f"label {label} of image 7 is out of" in message


def test_fault_15_a_class_without_a_sample_is_a_warning(tmp_path, monkeypatch, caplog):
  monkeypatch.chdir(tmp_path)
  write_npz(tmp_path / "a.npz", class_names=np.array(["a", "b", "c", "d"]))
  config = tiny.config().to_dict()
  config["data"] = {"name": "npz", "root": str(tmp_path / "a.npz")}
  (tmp_path / "config.json").write_text(json.dumps(config))
  assert main(["preview", f"--config={tmp_path / 'config.json'}", "--count=3"]) == 0
  assert "class 3 ('d') has no image" in caplog.text


def test_download_is_a_shorthand_that_every_reading_command_has(tmp_path, monkeypatch):
  """`--download` reaches the reader as `data.download`, and nothing is fetched without it."""
  from jaxkd.data import sources

  monkeypatch.chdir(tmp_path)
  write_digits(tmp_path / "digits", per_digit=20)
  seen = []
  reader = sources.SOURCES["mnist_json"]
  monkeypatch.setitem(
    sources.SOURCES, "mnist_json", lambda options: (seen.append(options.download), reader(options))[1]
  )
  config = tiny.config().to_dict()
  config["data"] = {"name": "mnist_json", "root": str(tmp_path / "digits")}
  (tmp_path / "config.json").write_text(json.dumps(config))
  for flags, expected in (([], False), (["--download"], True), (["--config.data.download=true"], True)):
    assert main(["preview", f"--config={tmp_path / 'config.json'}", "--count=2", *flags]) == 0
    assert set(seen) == {expected}
    seen.clear()


@pytest.mark.parametrize("command", ["train", "study", "bank", "preview", "evaluate", "forensics"])
def test_download_is_in_the_help(command, capsys):
  with pytest.raises(SystemExit) as e:
    main([command, "--help"])
  assert e.value.code == 0
  assert "--download" in capsys.readouterr().out
