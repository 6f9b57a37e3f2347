"""Outputs of torch models, kept as goldens, against the same weights here: part by part, without torch."""

from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util

from jaxkd import models
from jaxkd.models import transformer
from jaxkd.weights import convert_state, to_torch

from ..models.jitted import QUICK
from .cases import CASES

FOLDER = Path(__file__).parent / "goldens"
TOLERANCE = 1e-5
VITS = [key for key, case in CASES.items() if "resnet" not in key and "convnext" not in key]


@cache
def golden(key):
  with np.load(FOLDER / f"{key}.npz") as file:
    return dict(file)


def state(key):
  return {k.removeprefix("state/"): v for k, v in golden(key).items() if k.startswith("state/")}


@cache
def converted(key):
  return convert_state(CASES[key].name, state(key), **CASES[key].options)


def images_of(key, size):
  return np.float32(golden(key)["images"][:, :size, :size]) / np.float32(127.5) - 1


def outputs(key, size, *, model=None, variables=None):
  case = CASES[key]
  model = model or models.create(case.name, **case.options)
  apply = jax.jit(lambda v, x: model.apply(v, x)[1], compiler_options=QUICK)
  return apply(variables or converted(key).variables, images_of(key, size))


def errors(key, size, taps):
  parts = {k.partition("/")[2]: v for k, v in golden(key).items() if k.startswith(f"{size}/")}
  assert len(parts) >= 4  # embeddings, first and last block, head
  return {name: float(np.abs(part - taps[name]).max()) for name, part in parts.items()}


@pytest.mark.parametrize("key", CASES)
def test_every_part_equals_torch_at_two_resolutions(key):
  for size in CASES[key].sizes:
    found = errors(key, size, outputs(key, size))
    assert max(found.values()) < TOLERANCE, (size, found)


@pytest.mark.parametrize("key", CASES)
def test_style_is_detected_and_the_round_trip_is_bitwise(key):
  case, found = CASES[key], converted(key)
  assert found.style == case.style
  back = to_torch(case.name, found.variables, case.style)
  assert set(back) == set(state(key))
  for name, array in state(key).items():
    if not name.endswith(("mask_token", "num_batches_tracked")):
      np.testing.assert_array_equal(back[name], array, strict=True)


def test_wrong_models_are_seen(monkeypatch):
  """Negative controls: each of the usual mistakes is far above the tolerance."""
  case, size = CASES["deit_timm"], CASES["deit_timm"].sizes[1]
  model = models.create(case.name, **case.options)
  wrong = {
    "epsilon 1e-5": model.clone(norm_epsilon=1e-5),
    "antialias off": model.clone(position_kernel="plain"),
  }
  for name, other in wrong.items():
    assert max(errors("deit_timm", size, outputs("deit_timm", size, model=other)).values()) > 3e-5, name
  monkeypatch.setattr(transformer, "gelu", jax.nn.gelu)  # tanh by default
  assert max(errors("deit_timm", size, outputs("deit_timm", size)).values()) > 3e-5


def test_the_other_position_kernels_of_dinov2_are_seen():
  for key, wrong in (("dinov2", "offset"), ("dinov2_official", "plain"), ("dinov2_registers", "plain")):
    case, size = CASES[key], CASES[key].sizes[1]
    model = models.create(case.name, **case.options).clone(position_kernel=wrong)
    found = errors(key, size, outputs(key, size, model=model))
    assert found["embed/tokens"] > 1e-4, (key, found)
    own = errors(key, case.sizes[0], outputs(key, case.sizes[0], model=model))
    assert max(own.values()) < TOLERANCE  # the table's own grid: no kernel at all


def test_wrong_layouts_are_seen():
  """Fault 23: right shapes, wrong layout."""
  leaves = traverse_util.flatten_dict(converted("deit_timm").variables, sep="/")
  square = "params/block00/attn/proj/kernel"
  patch = "params/patch_embed/proj/kernel"
  for name, moved in ((square, leaves[square].T), (patch, leaves[patch].transpose(1, 0, 2, 3))):
    variables = traverse_util.unflatten_dict(leaves | {name: moved}, sep="/")
    found = errors("deit_timm", 32, outputs("deit_timm", 32, variables=variables))
    assert max(found.values()) > 1e-3, name
