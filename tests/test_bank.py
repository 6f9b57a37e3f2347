"""The feature bank: the live teacher's numbers; resumed, sharded, checked, refused when it is of something else."""

import json

import jax
import numpy as np
import pytest

from jaxkd import bank
from jaxkd import config as configs
from jaxkd.errors import IntegrityFailure, UserError
from jaxkd.experiment import build
from jaxkd.feed import make_batch
from jaxkd.main import main
from jaxkd.step import frozen_inputs, init_state, make_train_step
from jaxkd.train import train
from jaxkd.weights.read import write_safetensors
from tests import tiny

from .weights.test_convert import torch_state

pytestmark = pytest.mark.usefixtures("optax_promotion")

MODEL = {"name": "dinov2_vits14", "width": 16, "depth": 2, "heads": 2}
TERMS = {
  "ce": tiny.CE,
  "tokens": {
    "kind": "token_cosine",
    "teacher": "dino",
    "head": "linear",
    "student_taps": ("block01/tokens",),
  },
  "samples": {"kind": "cka", "over": "samples", "teacher": "dino", "student_taps": ("block01/cls",)},
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  path = tmp_path_factory.mktemp("weights") / "dino.safetensors"
  state = {k: 0.3 * v if v.ndim > 1 else v for k, v in torch_state("dinov2_vits14", "official").items()}
  write_safetensors(path, state, {})
  return path


def run_config(weights, folder="", *, dtype="float32", place="device", view="aligned", geometries=3, **more):
  teacher = {"weights": str(weights), "model": MODEL, "size": 28, "bank": str(folder), "view": view}
  return tiny.config(
    **{
      "data": {"augment": {"crop": 1, "flip": True, "geometries": geometries, "brightness": 0.3}},
      "teachers": {"dino": teacher},
      "terms": TERMS,
      "bank": {"dtype": dtype, "place": place, "batch_size": 20},
      "train": {"steps": 6, "batch_size": 16},
      "eval": {"metric": "none"},
      "log": {"every_steps": 1},
      **more,
    }
  )


@pytest.fixture(scope="module")
def built(weights, tmp_path_factory):
  """An experiment with its bank."""
  experiment = build(run_config(weights, tmp_path_factory.mktemp("bank") / "dino"))
  return experiment, bank.open_bank(experiment, "dino")


def losses(config, folder):
  train(config, folder)
  rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  return np.array([[row[f"loss/{t}"] for t in TERMS] for row in rows])


def test_features_are_those_of_the_teacher_for_the_same_geometry(built):
  experiment, found = built
  teacher, boxes = experiment.teachers["dino"], bank.fixed_boxes(experiment)
  assert set(found.arrays) == {"block01/tokens@grid2x2", "block01/cls@pooled"}
  n = len(experiment.dataset.train)
  assert found.arrays["block01/tokens@grid2x2"].shape == (n, 3, 2, 2, 16)
  images = experiment.dataset.train.images[[5, 70]].astype(np.float32) / 255
  view = bank.sample_boxes(images, boxes[[5, 70], 2], 8)
  taps = teacher(teacher.variables, {"aligned": view})
  expected = experiment.objective.make_targets("dino", taps)
  for key, array in found.rows(np.array([5, 70]), np.array([2, 2])).items():
    np.testing.assert_allclose(array, expected[key], atol=2e-5)  # values up to 40
  other = found.rows(
    np.array([5, 70]), np.array([1, 1])
  )  # negative control: another geometry, other features
  assert np.abs(other["block01/tokens@grid2x2"] - expected["block01/tokens@grid2x2"]).max() > 1e-2


@pytest.mark.parametrize("place", ["device", "disk"])
def test_the_loss_curve_is_the_live_teachers(built, weights, tmp_path, place):
  _, found = built
  live = losses(run_config(weights), tmp_path / "live")
  banked = losses(run_config(weights, found.folder, place=place), tmp_path / "banked")
  np.testing.assert_allclose(banked, live, rtol=1e-3)
  assert np.abs(live[0] - live[-1]).max() > 1e-3  # negative control: the curve moves


def test_bfloat16_features_are_near(built, weights, tmp_path):
  experiment = build(run_config(weights, tmp_path / "half", dtype="bfloat16"))
  half, full = bank.open_bank(experiment, "dino"), built[1]
  for key, array in full.arrays.items():
    assert half.arrays[key].dtype == "bfloat16"
    np.testing.assert_allclose(half.arrays[key].astype(np.float32), array, rtol=2**-8, atol=1e-6)
  assert half.bytes * 2 == full.bytes


def test_shards_make_the_same_bank(built, weights, tmp_path):
  experiment = build(run_config(weights, tmp_path / "parts"))
  for i in (2, 0):
    bank.build(experiment, "dino", shard=(i, 3))
  with pytest.raises(UserError, match=r"lacks shards 1 of 3") as caught:
    bank.open_bank(experiment, "dino")
  assert "--shard=1/3" in caught.value.hint
  bank.build(experiment, "dino", shard=(1, 3))
  whole = bank.open_bank(experiment, "dino")
  for key, array in built[1].arrays.items():
    np.testing.assert_allclose(whole.arrays[key], array, atol=2e-5)


def test_an_interrupted_build_goes_on(built, weights, tmp_path, monkeypatch):
  experiment = build(run_config(weights, tmp_path / "cut"))
  monkeypatch.setattr(bank, "SAVE_EVERY", 0.0)
  saved = bank._save_mark

  def cut(arrays, mark, wanted, done):
    saved(arrays, mark, wanted, done)
    if done == 40:
      raise KeyboardInterrupt

  monkeypatch.setattr(bank, "_save_mark", cut)
  with pytest.raises(KeyboardInterrupt):
    bank.build(experiment, "dino")
  assert json.loads((tmp_path / "cut" / "building-0of1.json").read_text())["done"] == 40
  seen = []
  monkeypatch.setattr(bank, "_save_mark", lambda a, m, w, done: (seen.append(done), saved(a, m, w, done)))
  found = bank.open_bank(experiment, "dino")
  assert min(seen) > 40
  for key, array in built[1].arrays.items():
    np.testing.assert_array_equal(found.arrays[key], array)


def test_a_changed_byte_is_found(built, weights, tmp_path):
  experiment = build(run_config(weights, tmp_path / "flipped"))
  found = bank.open_bank(experiment, "dino")
  path = next(found.folder.glob("*.npy"))
  raw = bytearray(path.read_bytes())
  raw[-5] ^= 1
  del found
  path.write_bytes(raw)
  with pytest.raises(IntegrityFailure, match="is not the file that was written"):
    bank.open_bank(experiment, "dino")


@pytest.mark.parametrize(
  ("changes", "fact"),
  [
    ({"geometries": 2}, "geometry"),
    ({"dtype": "bfloat16"}, "dtype"),
    ({"terms": {**TERMS, "samples": TERMS["samples"] | {"student_taps": ("block00/cls",)}}}, "targets"),
    ({"data": {"split_seed": 5, "augment": {"crop": 1, "flip": True, "geometries": 3}}}, "data"),
  ],
)
def test_features_of_something_else_are_refused_and_kept(built, weights, changes, fact):
  _, found = built
  before = sorted(p.name for p in found.folder.iterdir())
  experiment = build(run_config(weights, found.folder, **changes))
  for action in (bank.open_bank, bank.build):
    with pytest.raises(UserError, match=rf"{fact} \(there: .*, now: ") as caught:
      action(experiment, "dino")
    assert caught.value.hint
  assert sorted(p.name for p in found.folder.iterdir()) == before


def test_another_teacher_is_refused(built, weights, tmp_path):
  state = torch_state("dinov2_vits14", "official")
  write_safetensors(tmp_path / "other.safetensors", state, {})
  experiment = build(run_config(tmp_path / "other.safetensors", built[1].folder))
  with pytest.raises(UserError, match="weights"):
    bank.open_bank(experiment, "dino")


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"view": "same"}, ("view 'same'", "view=aligned")),
    ({"geometries": 0}, ("data.augment.geometries is 0", "geometries=4")),
  ],
)
def test_views_that_cannot_be_kept_are_told(weights, tmp_path, changes, words):
  experiment = build(run_config(weights, tmp_path / "no", **changes))
  with pytest.raises(UserError) as caught:
    bank.open_bank(experiment, "dino")
  assert all(w in f"{caught.value.message} {caught.value.hint}" for w in words)
  assert not (tmp_path / "no").exists()


def test_clean_views_keep_one_geometry(weights, tmp_path):
  experiment = build(run_config(weights, tmp_path / "clean", view="clean"))
  found = bank.open_bank(experiment, "dino")
  assert {a.shape[1] for a in found.arrays.values()} == {1}
  state, frozen = init_state(experiment), frozen_inputs(experiment, {"dino": found})
  _, metrics = make_train_step(experiment)(state, make_batch(experiment, 0, {"dino": found}), frozen)
  assert np.isfinite(metrics["loss"])


def test_geometries_are_shared_by_seeds_and_arms(weights):
  one, other = (build(run_config(weights, seed=s)) for s in (0, 1))
  plain = build(run_config(weights, teachers={}, terms={"ce": tiny.CE}))
  boxes = [bank.fixed_boxes(e) for e in (one, other, plain)]
  np.testing.assert_array_equal(boxes[0], boxes[1])
  np.testing.assert_array_equal(boxes[0], boxes[2])
  picks = [make_batch(e, 3)["geometry"] for e in (one, other)]
  assert set(picks[0]) == {0, 1, 2}
  assert not np.array_equal(*picks)


def test_whitening_is_fitted_once_and_the_same_from_the_bank(built, weights, tmp_path):
  terms = {"ce": tiny.CE, "tokens": TERMS["tokens"] | {"whiten": True}, "samples": TERMS["samples"]}
  live = build(run_config(weights, terms=terms))
  banked = build(run_config(weights, built[1].folder, terms=terms))
  maps = [
    frozen_inputs(live)["whitening"],
    frozen_inputs(banked, {"dino": bank.open_bank(banked, "dino")})["whitening"],
  ]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3), *maps)
  mean, matrix = maps[0]["tokens"]["layer0"]
  assert (mean.shape, matrix.shape) == ((16,), (16, 16))
  state = init_state(live)
  _, metrics = make_train_step(live)(state, make_batch(live, 0), frozen_inputs(live))
  assert 0 < float(metrics["tokens/target_spread"]) <= 1.01


def test_the_command_builds_checks_and_lists(weights, tmp_path, capsys):
  config = run_config(weights, tmp_path / "cli" / "dino")
  file = tmp_path / "config.py"
  file.write_text(
    f"import json\n\n\ndef get_config(arg=None):\n  return json.loads({configs.to_json(config)!r})\n"
  )
  assert main(["bank", "check", f"--config={file}"]) == 2
  assert "no feature bank at" in capsys.readouterr().err
  assert main(["bank", "build", f"--config={file}"]) == 0
  said = capsys.readouterr().out
  assert "every digest checked; used from device" in said
  assert main(["bank", "check", f"--config={file}", "--teacher=dino"]) == 0
  assert main(["bank", "list", str(tmp_path / "cli")]) == 0
  assert "1 of 1 shards" in capsys.readouterr().out
  assert main(["bank", "build", f"--config={file}", "--shard=4/4"]) == 2
  assert "is not I/N" in capsys.readouterr().err
