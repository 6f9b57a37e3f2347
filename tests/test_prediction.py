"""`predict`: which files a folder or list means, the same reader as training, probabilities, pictures, bad inputs."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxkd import checkpoint, subjects
from jaxkd.data import Split
from jaxkd.data.folder import read_image
from jaxkd.errors import UserError
from jaxkd.main import main
from jaxkd.prediction import image_files, predict, stored
from jaxkd.train import train
from tests import tiny

pytestmark = pytest.mark.usefixtures("optax_promotion")
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def run(tmp_path_factory, optax_promotion):
  folder = tmp_path_factory.mktemp("predict") / "run"
  train(tiny.config(train={"steps": 2}, data={"augment": {"crop": 1}}), folder)
  return folder


@pytest.fixture
def pictures(tmp_path):
  """A folder of images in odd formats: RGBA, palette, 16-bit grey, grey with alpha, not square, JPEG."""
  folder = tmp_path / "pictures"
  (folder / "deep").mkdir(parents=True)
  base = Image.fromarray(RNG.integers(0, 256, (12, 20, 3), dtype=np.uint8))
  base.convert("RGBA").save(folder / "a.png")
  base.convert("P").save(folder / "b.gif")
  Image.fromarray(RNG.integers(0, 65536, (9, 9), dtype=np.uint16)).save(folder / "c.png")
  base.convert("LA").save(folder / "deep" / "d.PNG")
  base.save(folder / "e.jpg")
  (folder / "notes.md").write_text("no image")
  (folder / ".hidden.png").write_bytes(b"no image either")
  return folder


def test_folders_and_lists_name_their_images(pictures, tmp_path):
  names = [str(p.relative_to(pictures)) for p in image_files([str(pictures)])]
  assert names == ["a.png", "b.gif", "c.png", "deep/d.PNG", "e.jpg"]
  (pictures / "list.txt").write_text("e.jpg\n\ndeep/d.PNG\n")
  (pictures / "list.csv").write_text("label,path\n3,a.png\n")
  found = image_files([str(pictures / "list.txt"), str(pictures / "c.png"), str(pictures / "list.csv")])
  assert [p.name for p in found] == ["e.jpg", "d.PNG", "c.png", "a.png"]
  (tmp_path / "empty").mkdir()
  (pictures / "bad.txt").write_text("nothing.png\n")
  (pictures / "bad.csv").write_text("file\na.png\n")
  (pictures / "bytes.txt").write_bytes(b"\xff\xfe\x00")
  for path, message in (
    (tmp_path / "empty", "holds no images"),
    (tmp_path / "nowhere", "does not exist"),
    (pictures / "bad.txt", "nothing.png does not exist"),
    (pictures / "bad.csv", "has the columns file"),
    (pictures / "bytes.txt", "not a list of files"),
  ):
    with pytest.raises(UserError, match=message):
      image_files([str(path)])


def test_probabilities_are_the_models_own_on_images_read_as_in_training(run, pictures):
  found = checkpoint.load(run)
  subject = subjects.classifier("run", found)
  files = image_files([str(pictures)])
  got = predict(subject, stored(subject, files), batch_size=2)
  images = np.stack([read_image(p, size=8, channels=1) for p in files])
  x = (images / np.float32(255) - np.float32(subject.mean)) / np.float32(subject.std)
  _, taps = subject.model.apply(subject.variables, x, train=False)
  z = np.asarray(taps["logits/cls"], np.float64)
  expected = np.exp(z) / np.exp(z).sum(1, keepdims=True)
  np.testing.assert_allclose(got["cls"], expected, atol=1e-6)
  assert set(got) == {"cls", "dist", "mean"}
  raw = np.stack([read_image(p, size=8, channels=1)[::-1] for p in files])  # the control: upside down
  other = predict(subject, Split(raw, np.zeros(5, int)), batch_size=2)
  assert np.abs(other["cls"] - expected).max() > 1e-5


def test_the_command_writes_a_table_json_and_overlays(run, pictures, tmp_path, capsys):
  out = tmp_path / "out"
  assert (
    main(["predict", str(run), str(pictures), "--top", "2", "--explain", "--tta", "2", "-o", str(out)]) == 0
  )
  shown = capsys.readouterr().out
  result = json.loads((out / "predictions.json").read_text())
  assert [p["path"].rsplit("/", 1)[1] for p in result["images"]] == [
    "a.png",
    "b.gif",
    "c.png",
    "d.PNG",
    "e.jpg",
  ]
  assert (result["head"], result["views"]) == ("cls", 2)
  for one in result["images"]:
    p = list(one["probabilities"].values())
    assert sum(p) == pytest.approx(1, abs=1e-5)
    assert p == sorted(p, reverse=True)
    assert f"{100 * p[0]:.2f}" in shown
  saved = sorted(p.name for p in (out / "explained").iterdir())
  assert saved == ["0000_a.png", "0001_b.png", "0002_c.png", "0003_d.png", "0004_e.png"]
  with Image.open(out / "explained" / saved[0]) as im:
    im.verify()


@pytest.mark.parametrize(
  ("more", "message"),
  [
    (["missing.png"], "missing.png does not exist"),
    (["broken.png"], "broken.png"),
    (["good.png", "--head", "clss"], "no head 'clss'"),
    (["good.png", "--top", "0"], "out of range"),
    (["good.png", "--config.seed=1"], "brings its own config"),
  ],
)
def test_bad_input_is_two_lines_and_exit_2(run, tmp_path, monkeypatch, capsys, more, message):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "broken.png").write_text("<html>")
  Image.new("L", (8, 8)).save(tmp_path / "good.png")
  assert main(["predict", str(run), *more]) == 2
  text = capsys.readouterr().err
  assert message in text
  assert [line.split(":")[0] for line in text.strip().splitlines()] == ["error", "hint"]
  assert not (tmp_path / "predictions").exists()
