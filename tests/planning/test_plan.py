"""The plan as a whole, and its command."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from jaxkd import main, models
from jaxkd.errors import UserError
from jaxkd.planning import cuda
from jaxkd.planning.chips import CHIPS
from jaxkd.planning.plan import flops, plan
from jaxkd.report.plan import quantity

from .. import tiny

pytestmark = pytest.mark.usefixtures("optax_promotion")


def transformer_flops(*, images, tokens, width, depth, classes, heads, patch_pixels, patches, mlp=4):
  """Two for each multiplication of every matrix product of a forward pass; nothing elementwise."""
  per_token = 3 * width**2 + width**2 + 2 * mlp * width**2  # q, k and v; projection; MLP
  attention = 2 * tokens**2 * width  # scores and the weighted sum, all heads
  embedding = patches * patch_pixels * width
  return 2 * images * (depth * (tokens * per_token + attention) + embedding + heads * width * classes)


@pytest.mark.parametrize(
  ("name", "side", "hand"),
  [
    (
      "deit_tiny",
      32,
      {"tokens": 66, "width": 192, "classes": 10, "heads": 2, "patch_pixels": 48, "patches": 64},
    ),
    (
      "dinov2_vits14",
      224,
      {"tokens": 257, "width": 384, "classes": 0, "heads": 0, "patch_pixels": 588, "patches": 256},
    ),
  ],
)
def test_flops_agree_with_a_hand_count(name, side, hand):
  model = models.create(name, image_size=side)
  images = jax.ShapeDtypeStruct((4, side, side, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  counted = transformer_flops(images=4, depth=12, **hand)
  forward = flops(lambda v, x: model.apply(v, x)[0], variables, images)
  assert forward == pytest.approx(counted, rel=0.02)
  gradient = flops(jax.grad(lambda v, x: model.apply(v, x)[0].sum()), variables, images)
  assert gradient == pytest.approx(3 * counted, rel=0.02)
  # Negative control: one layer less is more than the tolerance.
  assert forward != pytest.approx(transformer_flops(images=4, depth=11, **hand), rel=0.02)


@pytest.fixture(scope="module")
def planned():
  config = tiny.config(model={**tiny.MODEL, "width": 32, "heads": 4}, precision={"compute": "bfloat16"})
  return plan(config, topology="1x1x8", compiling=False)


def test_every_figure_is_there_with_its_basis(planned):
  for figure in (
    "parameters",
    "flops_per_step",
    "bytes_per_step",
    "memory_per_device",
    "collectives",
    "attention",
    "float32_dots",
    "step_ms",
    "images_per_s",
    "hours",
  ):
    assert planned["basis"][figure] in ("counted", "lowered", "compiled", "measured"), figure
  assert json.loads(json.dumps(planned)) == planned
  assert planned["attention"] == {"implementation": "cudnn", "fmha_forward": 2, "fmha_backward": 2}
  assert any("not compiled for h100: it was asked not to" in note for note in planned["notes"])


def test_figures_follow_from_each_other(planned):
  assert planned["images_per_s"] == pytest.approx(16 / planned["step_ms"] * 1e3)
  assert planned["hours"] == pytest.approx(planned["step_ms"] * planned["steps"] * 8 / 3.6e6)
  parts, chip = planned["parts_ms"], CHIPS["h100"]
  assert parts["memory"] == pytest.approx(1e3 * planned["bytes_per_step"] / 8 / chip.bandwidth)
  assert planned["step_ms"] == max(parts["arithmetic"], parts["memory"]) + parts["communication"]
  params = sum(r["bytes"] for r in planned["shardings"] if r["group"].startswith("params"))
  assert params == 4 * planned["parameters"]  # this run has no heads
  assert [(c["kind"], c["bytes"], c["group"]) for c in planned["collectives"]] == [("all-reduce", params, 8)]
  memory = planned["memory_per_device"]
  assert memory["total"] == sum(v for k, v in memory.items() if k != "total")


def test_splitting_parameters_shows_in_state_and_collectives():
  config = tiny.config(model={**tiny.MODEL, "width": 32, "heads": 4}, sharding={"fsdp": 8})
  found = plan(config, topology="1x1x8", compiling=False)
  whole = sum(r["bytes"] for r in found["shardings"])
  assert found["state_bytes"] < whole / 2
  assert {c["kind"] for c in found["collectives"]} == {"all-reduce", "all-gather", "reduce-scatter"}


def test_what_does_not_fit_is_said(monkeypatch):
  monkeypatch.setitem(CHIPS, "h100", dataclasses.replace(CHIPS["h100"], memory=1e5))
  notes = plan(tiny.config(), compiling=False)["notes"]
  assert any(note.startswith("does not fit: 0.") for note in notes)


def test_impossible_plans_are_refused_before_anything_is_lowered():
  with pytest.raises(UserError, match="batch size 16 is not divisible by 24 devices"):
    plan(tiny.config(), topology="1x3x8")
  with pytest.raises(UserError, match="--topology=2x8 is not SLICESxHOSTSxDEVICES"):
    plan(tiny.config(), topology="2x8")
  with pytest.raises(UserError, match="attention='cudnn' cannot be had: it computes in bfloat16"):
    plan(tiny.config(model={**tiny.MODEL, "attention": "cudnn"}))


def test_what_cannot_be_compiled_says_why(monkeypatch):
  monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda name: None)
  assert "pip install 'jaxkd[aot]'" in cuda.missing()
  with pytest.raises(UserError, match="cannot compile for h100: the extra `aot`"):
    cuda.devices("h100", "1x2x8")
  monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda name: object())
  monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
  assert "JAX_PLATFORMS" in cuda.missing()


def test_the_command_prints_tables_and_one_json_object(capsys):
  arguments = ["plan", "--config=configs/quickstart.py:smoke", "--no-compile"]
  assert main.main(arguments) == 0
  text = capsys.readouterr().out
  for words in ("parameters of the model", "memory of one device (counted)", "not compiled for h100"):
    assert words in text
  assert main.main([*arguments, "--json", "--config.precision.compute=bfloat16"]) == 0
  assert json.loads(capsys.readouterr().out)["attention"]["fmha_backward"] == 4
  assert main.main(["plan", "--config=configs/study.py:smoke"]) == 2
  assert "describes a study" in capsys.readouterr().err


def test_this_machine_is_measured():
  found = plan(tiny.config(), chip_name="cpu")
  assert found["basis"]["chip"] == "measured"
  assert found["attention"]["implementation"] == "xla"
  assert found["devices"] == jax.device_count()
  assert found["step_ms"] > 0


def test_quantities_read_well():
  assert [quantity(x) for x in (0, 999, 1000, 2.294e9)] == ["0", "999", "1 k", "2.29 G"]
  assert quantity(1536, "B", binary=True) == "1.5 KiB"
