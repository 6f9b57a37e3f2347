"""Live torch models beside ours: larger than the goldens, at two resolutions, batch 1 and 5. Needs `make parity`."""

from functools import cache

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from jaxkd import models
from jaxkd.checkpoint import Checkpoint
from jaxkd.weights import convert_state, from_torch, reference, to_torch
from jaxkd.weights.export import export
from jaxkd.weights.read import read_weights

from .cases import CASES
from .torch_cases import TRANSFORMERS, build, randomize, run

PART, WHOLE = 1e-5, 1e-4
DINOV2 = {"width": 32, "image_size": 518}
CHANGES = {key: DINOV2 for key in CASES if key.startswith("dinov2")}
SIZES = {key: (224, 518) if key.startswith("dinov2") else CASES[key].sizes for key in CASES}
RELEASES = {
  "deit_tiny": ("timm", {"num_classes": 10}, 32),
  "convnextv2_tiny": ("official", {"num_classes": 10, "patch_size": 2}, 32),
  "resnet18_cifar": ("torchvision", {}, 32),
  "resnet18": ("torchvision", {"num_classes": 10}, 64),
  "dinov2_vits14": ("official", {}, 224),
  "dinov2_vits14_reg": ("timm", {}, 224),
}


@cache
def pair(key):
  """A torch model with random weights and ours with the same: (torch module, model, variables)."""
  case, changes = CASES[key], CHANGES.get(key, {})
  options = case.options | changes
  module = randomize(build(key, **changes), seed=7)
  variables = convert_state(case.name, module.state_dict(), **options).variables
  return module, models.create(case.name, **options), variables


def images(batch, size):
  return np.random.default_rng(batch).uniform(-1, 1, (batch, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize("key", CASES)
def test_every_part_equals_torch(key):
  module, model, variables = pair(key)
  apply = jax.jit(lambda v, x: model.apply(v, x)[1])
  for size in SIZES[key]:
    for batch in (1, 5):
      x = images(batch, size)
      taps, parts = apply(variables, x), run(key, module, x)
      found = {name: float(np.abs(part - taps[name]).max()) for name, part in parts.items()}
      assert max(found.values()) < PART, (size, batch, found)


@pytest.mark.parametrize("key", CASES)
def test_torch_takes_our_state_dict_strictly(key):
  module, _, variables = pair(key)
  state = to_torch(CASES[key].name, variables, CASES[key].style)
  fresh = build(key, **CHANGES.get(key, {})).eval()
  fresh.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
  x = images(1, SIZES[key][0])
  for name, part in run(key, module, x).items():
    np.testing.assert_array_equal(run(key, fresh, x)[name], part)


@pytest.mark.parametrize("key", TRANSFORMERS)
def test_files_of_transformers_are_read_too(key, tmp_path):
  module, _, variables = pair(key)
  module.save_pretrained(tmp_path)
  options = CASES[key].options | CHANGES.get(key, {})
  found = convert_state(CASES[key].name, read_weights(tmp_path).arrays, **options)
  assert found.style == ("transformers" if "convnext" in key else "transformers_hub")
  jax.tree.map(np.testing.assert_array_equal, found.variables, variables)
  again = to_torch(CASES[key].name, found.variables, found.style)
  for name, array in read_weights(tmp_path).arrays.items():
    if not name.endswith("mask_token"):
      np.testing.assert_array_equal(again[name], array, strict=True)


@pytest.mark.parametrize("name", RELEASES)
def test_models_of_full_size_end_to_end(name):
  style, options, size = RELEASES[name]
  model = models.create(name, **options)
  module = randomize(reference.build(model, style), seed=3)
  variables = from_torch(name, module.state_dict(), **options)
  x = images(2, size)
  logits = jax.jit(lambda v, x: model.apply(v, x)[1]["logits/cls"])(variables, x)
  expected = reference.run(module, x)["logits/cls"]
  scale = max(1.0, float(np.abs(expected).max()))
  assert float(np.abs(logits - expected).max()) < WHOLE * scale
  wrong = jax.tree.map(lambda a: a * np.float32(1.01), variables)  # negative control
  other = jax.jit(lambda v, x: model.apply(v, x)[1]["logits/cls"])(wrong, x)
  assert float(np.abs(other - expected).max()) > WHOLE * scale


def test_a_wrong_kernel_is_seen_at_224_pixels():
  key = "dinov2_official"
  module, model, variables = pair(key)
  x = images(1, 224)
  shifted = model.clone(position_kernel="plain").apply(variables, x)[1]["embed/tokens"]
  assert np.abs(run(key, module, x)["embed/tokens"] - shifted).max() > 100 * PART


@pytest.mark.parametrize("key", TRANSFORMERS)
def test_transformers_opens_our_folder(key, tmp_path):
  """`export --style transformers`, then `from_pretrained`: the same answers."""
  module, model, variables = pair(key)
  case = CASES[key]
  options = {"name": case.name, **case.options, **CHANGES.get(key, {})}
  found = Checkpoint(tmp_path, 0, _state(variables), {}, _meta(options, model), "0" * 64)
  export(found, tmp_path / "hf", style="transformers")
  again = type(module).from_pretrained(tmp_path / "hf").eval()
  x = images(2, SIZES[key][0])
  for name, part in run(key, module, x).items():
    np.testing.assert_array_equal(run(key, again, x)[name], part)


def _state(variables):
  return {
    "params": {"model": variables["params"]},
    "stats": {k: v for k, v in variables.items() if k != "params"},
  }


def _meta(options, model):
  shape = [*model.image_size, model.in_channels]
  return {
    "model": options,
    "inference": "params",
    "image_shape": shape,
    "num_classes": model.num_classes,
    "class_names": [],
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "source": {"weights": "random", "style": "transformers", "sha256": "0" * 64},
  }
