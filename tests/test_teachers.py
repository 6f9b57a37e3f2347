"""Teachers from torch weights and from checkpoints: what they are shown, and what is refused before training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import experiment, models
from jaxkd.errors import IntegrityFailure, UserError
from jaxkd.teachers import Teacher, normalize
from jaxkd.weights import cli
from jaxkd.weights.read import sha256_file, write_safetensors

from . import tiny
from .weights.test_convert import torch_state

DINO = {"name": "dinov2_vits14", "width": 16, "depth": 2, "heads": 2}
TOKENS = {
  "kind": "token_cosine",
  "teacher": "dino",
  "head": "linear",
  "student_taps": ("block00/tokens",),
  "teacher_taps": ("block01/normed",),
}


def teacher_config(weights, *, size=28, term=TOKENS, **options):
  teachers = {"dino": {"weights": str(weights), "model": DINO, "size": size, **options}}
  return tiny.config(teachers=teachers, terms={"ce": {"kind": "cross_entropy"}, "tok": term})


@pytest.fixture
def weights(tmp_path):
  path = tmp_path / "dino.safetensors"
  write_safetensors(path, torch_state("dinov2_vits14", "official"), {})
  return path


def test_images_are_repeated_resized_clipped_and_normalised():
  model = models.create("vit", width=8, depth=1, heads=1)
  teacher = Teacher("t", model, {}, "aligned", (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), "", size=32)
  grey = np.random.default_rng(0).integers(0, 2, (2, 16, 16, 1)).astype(np.float32)
  seen = np.asarray(teacher.prepare(grey))
  assert seen.shape == (2, 32, 32, 3)
  pixels = seen * 0.2 + np.array([0.5, 0.4, 0.3], np.float32)
  np.testing.assert_allclose(pixels[..., 0], pixels[..., 2], atol=1e-6)
  assert pixels.min() > -1e-6
  assert pixels.max() < 1 + 1e-6
  raw = jax.image.resize(jnp.asarray(grey), (2, 32, 32, 1), "cubic")
  assert raw.max() > 1.01  # negative control: the clip does something
  same = Teacher("t", model, {}, "aligned", (0.5,), (0.2,), "")
  np.testing.assert_array_equal(same.prepare(grey), normalize(grey, (0.5,), (0.2,)))


def test_a_weights_file_is_a_teacher(weights):
  built = experiment.build(teacher_config(weights))
  teacher = built.teachers["dino"]
  assert (teacher.size, teacher.digest) == (28, sha256_file(weights))
  assert teacher.model.image_size == (42, 42)  # the table's own grid
  assert built.objective.teachers["dino"].taps["block01/normed"].shape == (2, 1 + 4, 16)


def test_an_imported_folder_is_the_same_teacher(weights, tmp_path):
  options = [f"--option={k}={v}" for k, v in DINO.items() if k != "name"]
  argv = [
    "import",
    "--model",
    "dinov2_vits14",
    "--weights",
    str(weights),
    "--out",
    str(tmp_path / "dino"),
    *options,
  ]
  assert cli.main(argv) == 0
  file, folder = (experiment.build(teacher_config(w)).teachers["dino"] for w in (weights, tmp_path / "dino"))
  jax.tree.map(np.testing.assert_array_equal, file.variables, folder.variables)
  assert (file.model, file.mean, file.size) == (folder.model, folder.mean, folder.size)


def test_a_teacher_without_a_size_takes_its_own(weights):
  assert experiment.build(teacher_config(weights, size=0)).teachers["dino"].size == 42


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"size": 30}, ("teachers.dino: images of 30x30", "teachers.dino.size")),
    (
      {"term": {"kind": "soft_kd", "teacher": "dino"}},
      ("has 0 classes", "a term uses its logits"),
    ),  # fault 8
  ],
)
def test_what_does_not_fit_is_told_before_training(weights, changes, words):
  with pytest.raises(UserError) as caught:
    experiment.build(teacher_config(weights, **changes))
  text = f"{caught.value.message} {caught.value.hint}"
  assert all(word in text for word in words), text


def test_a_pinned_digest_is_checked(weights):  # fault 27
  assert experiment.build(teacher_config(weights, sha256=sha256_file(weights)[:12]))
  with pytest.raises(IntegrityFailure, match=r"sha256 is .*, pinned is 0123456789"):
    experiment.build(teacher_config(weights, sha256="0123456789"))


def test_a_missing_file_is_told_with_its_neighbours(weights):
  with pytest.raises(UserError) as caught:
    experiment.build(teacher_config(weights.with_name("dno.safetensors")))
  assert "dino.safetensors" in caught.value.hint


def test_official_weights_without_network_name_the_file_and_its_place(tmp_path, monkeypatch):
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  monkeypatch.setenv("JAXKD_CACHE", str(tmp_path))
  with pytest.raises(UserError) as caught:
    experiment.build(teacher_config("hub:dinov2_vits14"))
  text = f"{caught.value.message} {caught.value.hint}"
  assert str(tmp_path / "hub" / "dinov2_vits14" / "model.safetensors") in text
  assert "weights=PATH" in text
