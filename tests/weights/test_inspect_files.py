"""`jaxkd inspect` on weight files and on Orbax folders of others: facts and digests without a model."""

import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import save_file

from jaxkd.checkpoint import array_digest
from jaxkd.main import main
from jaxkd.weights import describe
from jaxkd.weights.read import read_weights

ARRAYS = {
  "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
  "b": np.ones(4, ml_dtypes.bfloat16),
  "bn.num_batches_tracked": np.array(3, np.int64),
}


@pytest.fixture
def weights(tmp_path):
  path = tmp_path / "model.safetensors"
  save_file(ARRAYS, path, metadata={"format": "pt", "evil": "[red]\x1b[2J", "sha256": "forged"})
  return path


def inspect(path, capsys):
  assert main(["inspect", str(path), "--json"]) == 0
  return json.loads(capsys.readouterr().out)


def test_safetensors(weights, capsys):
  about = inspect(weights, capsys)
  assert (about["path"], about["kind"], about["bytes"]) == (
    str(weights),
    "safetensors",
    weights.stat().st_size,
  )
  assert about["sha256"] == read_weights(weights).sha256
  assert about["metadata"]["format"] == "pt"
  assert about["notes"] == ["bfloat16 kept"]
  rows = {row["name"]: row for row in about["arrays"]}
  assert rows["a.weight"] == {
    "name": "a.weight",
    "shape": [2, 3],
    "dtype": "float32",
    "bytes": 24,
    "sha256": array_digest(ARRAYS["a.weight"]),
  }
  assert about["dtypes"] == {
    "bfloat16": {"arrays": 1, "bytes": 8},
    "float32": {"arrays": 1, "bytes": 24},
    "int64": {"arrays": 1, "bytes": 8},
  }
  assert about["parameters"] == 10, "the counter is no parameter"
  assert inspect(weights.parent, capsys) == about, "the folder means its model.safetensors"


def test_tables_show_the_same_and_names_cannot_forge_lines(weights, capsys):
  assert main(["inspect", str(weights)]) == 0
  text = capsys.readouterr().out
  for word in (
    "safetensors",
    "a.weight",
    "2x3",
    "bfloat16 kept",
    "[red]",
    "float32: 1 arrays, 24 bytes",
    "3 arrays, 40 bytes",
  ):
    assert word in text
  assert "\x1b[2J" not in text
  facts = [[cell.strip() for cell in line.split("│")[1:3]] for line in text.splitlines() if "│" in line]
  assert ["metadata: sha256", "forged"] in facts
  shown = next(value for key, value in facts if key == "sha256")
  assert len(shown) > 8
  assert read_weights(weights).sha256.startswith(shown)


def test_digests_tell_dtype_and_shape_apart():
  zeros = [np.zeros(4, np.float32), np.zeros((2, 2), np.float32), np.zeros(4, np.int32)]
  assert len({array_digest(z) for z in zeros}) == 3


def test_torch_file(tmp_path, capsys):
  torch = pytest.importorskip("torch")
  torch.save({"model": {"w": torch.ones(2, 2)}, "epoch": 1}, tmp_path / "a.pth")
  about = inspect(tmp_path / "a.pth", capsys)
  assert (about["kind"], about["notes"]) == ("torch", ["unwrapped 'model'", "left out epoch"])
  assert about["arrays"][0]["sha256"] == array_digest(np.ones((2, 2), np.float32))


@pytest.mark.parametrize("saver", [ocp.PyTreeCheckpointer, ocp.StandardCheckpointer])
def test_orbax_tree_of_somebody_else(tmp_path, capsys, saver):
  tree = {"params": {"w": jnp.arange(6.0).reshape(2, 3), "h": jnp.ones(2, jnp.bfloat16)}, "step": 5}
  with saver() as writer:
    writer.save(tmp_path / "tree", tree)
  about = inspect(tmp_path / "tree", capsys)
  rows = {row["name"]: row for row in about["arrays"]}
  assert about["kind"] == "orbax"
  assert set(rows) == {"params/w", "params/h", "step"}
  assert (rows["params/w"]["shape"], rows["params/w"]["dtype"], rows["params/w"]["bytes"]) == (
    [2, 3],
    "float32",
    24,
  )
  assert rows["params/w"]["sha256"] == array_digest(np.arange(6, dtype=np.float32).reshape(2, 3))
  assert rows["params/h"]["dtype"] == "bfloat16"
  assert about["parameters"] == 8
  assert main(["inspect", str(tmp_path / "tree")]) == 0
  assert "2x3" in capsys.readouterr().out


def test_step_of_somebody_elses_manager_and_a_damaged_tree(tmp_path, capsys):
  with ocp.CheckpointManager(tmp_path / "run") as manager:
    manager.save(3, args=ocp.args.StandardSave({"w": jnp.ones(3)}))
  assert inspect(tmp_path / "run" / "3", capsys)["arrays"][0]["name"] == "w"
  (tmp_path / "run" / "3" / "default" / "_METADATA").write_text("{")
  assert main(["inspect", str(tmp_path / "run" / "3")]) == 4
  assert "unreadable as an Orbax tree" in capsys.readouterr().err


def test_paths_that_hold_nothing_known(tmp_path, capsys):
  (tmp_path / "weights.pth").write_bytes(b"<html>")
  for path, message in (
    ("weight.pth", "did you mean weights.pth?"),
    ("weights.pth", "not a weights file"),
    ("nowhere", "no checkpoint at"),
    (".", "no checkpoint at"),
  ):
    assert main(["inspect", str(tmp_path / path)]) == 2
    text = capsys.readouterr().err
    assert message in text
    assert [line.split(":")[0] for line in text.splitlines()] == ["error", "hint"]


def test_describe_is_what_inspect_lists(weights):
  assert describe.describe(read_weights(weights)) == describe.inspect(weights)["arrays"]
