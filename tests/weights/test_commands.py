"""`jaxkd-convert` and `jaxkd export` as a user calls them, without torch."""

import json

import jax
import numpy as np
import pytest

from jaxkd import checkpoint, models
from jaxkd.main import main as jaxkd
from jaxkd.weights import cli, convert_state, to_torch
from jaxkd.weights.read import read_weights, write_safetensors

from .test_convert import DEIT, OPTIONS, torch_state, variables_of


@pytest.fixture
def weights(tmp_path):
  path = tmp_path / "deit.safetensors"
  write_safetensors(path, torch_state(), {})
  return path


@pytest.fixture
def imported(tmp_path, weights, capsys):
  out = tmp_path / "imported"
  options = ["--option", "heads=2"]
  assert cli.main(["import", "--model", "deit", "--weights", str(weights), "--out", str(out), *options]) == 0
  return out, capsys.readouterr().out


def run(capsys, command, *argv):
  code = command(list(argv))
  said = capsys.readouterr()
  return code, said.out, said.err


def test_import_infers_what_the_shapes_tell_and_reports(imported):
  out, said = imported
  found = checkpoint.load(out)
  assert found.model_options == {
    "name": "deit",
    "in_channels": 3,
    "patch_size": 4,
    "num_classes": 3,
    "image_size": 16,
    "width": 16,
    "depth": 2,
    "mlp_ratio": 4.0,
    "heads": 2,
  }
  expected = variables_of("deit", **DEIT)
  jax.tree.map(np.testing.assert_array_equal, found.variables, expected)
  assert "blocks.0.attn.qkv.weight" in said
  assert "transposed" in said
  assert "sha256" in said
  assert found.meta["source"]["style"] == "timm"


@pytest.mark.parametrize("style", ["timm", "transformers", "jaxkd"])
def test_export_writes_a_file_and_its_card(imported, tmp_path, capsys, style):
  folder, _ = imported
  out = tmp_path / ("hf" if style == "transformers" else f"{style}.safetensors")
  code, said, _ = run(capsys, jaxkd, "export", str(folder), "--style", style, "--out", str(out))
  assert code == 0
  state = read_weights(out).arrays
  hub = "transformers_hub" if style == "transformers" else style
  for key, array in to_torch("deit", checkpoint.load(folder).variables, hub).items():
    np.testing.assert_array_equal(state[key], array, strict=True)
  card = (out / "README.md" if out.is_dir() else tmp_path / f"{style}.safetensors.md").read_text()
  assert "Converted by jaxkd" in card
  assert '"depth": 2' in card
  assert said.count("written:") == (3 if out.is_dir() else 2)
  if out.is_dir():
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["DeiTForImageClassificationWithTeacher"]
    assert config["num_labels"] == 3


def test_the_exported_program_takes_any_batch(imported, tmp_path, capsys):
  folder, _ = imported
  out = tmp_path / "deit.jax"
  assert jaxkd(["export", str(folder), "--style", "jax", "--out", str(out)]) == 0
  program = jax.export.deserialize(bytearray(out.read_bytes()))
  found = checkpoint.load(folder)
  images = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)
  expected = jax.jit(lambda x: models.create(**found.model_options).apply(found.variables, x)[0])(images)
  np.testing.assert_allclose(program.call(images), expected, atol=1e-6)
  assert set(program.platforms) == {"cpu", "cuda"}


def test_wrong_styles_and_places_are_told(imported, tmp_path, capsys):
  folder, _ = imported
  for argv, words in (
    (["--style", "tim", "--out", "x.safetensors"], ("no style 'tim'", "did you mean 'timm'")),
    (["--style", "timm", "--out", str(tmp_path / "x.bin")], ("is not a .safetensors file", "name a file")),
    (
      ["--style", "transformers", "--out", str(tmp_path / "x.safetensors")],
      ("reads a folder", "name a folder"),
    ),
  ):
    code, _, err = run(capsys, jaxkd, "export", str(folder), *argv)
    assert code == 2
    assert err.count("\n") == 2
    assert all(word in err for word in words)


def test_import_errors_end_in_two_lines(weights, tmp_path, capsys):
  out = ["--out", str(tmp_path / "new")]
  for argv, code, word in (
    (["--model", "deit_tinny"], 2, "did you mean 'deit_tiny'"),
    ([], 2, "no --model given"),
    (["--model", "deit_tiny"], 2, "mis-shaped"),
    (["--model", "deit", "--option", "haeds=2"], 2, "did you mean 'heads'"),
    (["--model", "deit", "--option", "heads=3"], 2, "heads=3"),
    (["--model", "deit", "--option", "heads=2", "--sha256", "0" * 64], 4, "pinned is 000"),  # fault 27
    (["--model", "deit", "--option", "heads=2", "--style", "official2"], 2, "no names in style"),
  ):
    found, _, err = run(capsys, cli.main, "import", "--weights", str(weights), *argv, *out)
    assert (found, err.count("\n")) == (code, 2), err
    assert word in err
    assert not (tmp_path / "new").exists()


def test_import_does_not_write_over_anything(weights, imported, capsys):
  folder, _ = imported
  argv = ["--model", "deit", "--weights", str(weights), "--option", "heads=2", "--out", str(folder)]
  code, _, err = run(capsys, cli.main, "import", *argv)
  assert code == 2
  assert "is not empty" in err


def test_verify_against_a_golden_sees_a_wrong_layout(tmp_path, weights, capsys):  # fault 23
  images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
  model, variables = models.create("deit", **DEIT), variables_of("deit", **DEIT)
  shown = images.astype(np.float32) / np.float32(127.5) - 1
  taps = jax.jit(lambda v, x: model.apply(v, x)[1])(variables, shown)
  parts = {f"16/{name}": taps[name] for name in ("embed/tokens", "block01/tokens", "logits/cls")}
  np.savez(tmp_path / "golden.npz", images=images, **parts)
  argv = ["--model", "deit", "--option", "heads=2", "--golden", str(tmp_path / "golden.npz"), "--weights"]
  code, said, _ = run(capsys, cli.main, "verify", *argv, str(weights))
  assert code == 0
  assert said.count("yes") == 3
  state = torch_state()
  state["blocks.0.attn.proj.weight"] = state["blocks.0.attn.proj.weight"].T
  write_safetensors(tmp_path / "wrong.safetensors", state, {})
  code, said, err = run(capsys, cli.main, "verify", *argv, str(tmp_path / "wrong.safetensors"))
  assert code == 2
  assert said.count("NO") == 2  # the embedding is right
  assert "block01/tokens at 16 px differs by" in err


def test_list_shows_models_and_parameters(capsys):
  _, said, _ = run(capsys, cli.main, "list", "--model", "deit_tiny")
  assert "5,365,076 parameters in 155 arrays" in said
  assert "blocks.11.mlp.fc2.weight" in said
  assert "hub:" not in said
  _, said, _ = run(capsys, cli.main, "list", "--model", "convnextv2_tiny", "--option", "num_classes=1000")
  assert "28,635,496 parameters" in said


def test_registers_folded_by_timm_still_verify(tmp_path):
  """timm has no position row for cls: leaves differ, outputs do not, and the export is accepted."""
  from jaxkd.weights import export

  options = OPTIONS["dinov2_vits14_reg"]
  variables = variables_of("dinov2_vits14_reg", **options)
  state = to_torch("dinov2_vits14_reg", variables, "timm")
  back = convert_state("dinov2_vits14_reg", state, **options).variables
  assert not np.array_equal(back["params"]["cls_token"], variables["params"]["cls_token"])
  error = export._output_error(options | {"name": "dinov2_vits14_reg"}, variables, back)
  assert error < 1e-6


def test_a_resnets_name_fixes_its_stem(tmp_path, capsys):
  """CIFAR weights under the ImageNet name are refused, not quietly taken for another model."""
  path = tmp_path / "cifar.safetensors"
  write_safetensors(path, torch_state("resnet18_cifar", "torchvision"), {})
  options = ["--option", "widths=4,8", "--option", "depths=1,1"]
  for model, code in (("resnet18", 2), ("resnet18_cifar", 0)):
    argv = ["import", "--model", model, "--weights", str(path), "--out", str(tmp_path / model), *options]
    found, _, err = run(capsys, cli.main, *argv)
    assert found == code, err
    assert code == 0 or "conv1.weight (4, 3, 3, 3)" in err
