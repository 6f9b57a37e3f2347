"""Strict conversion: every key once, every leaf once, and what is said when the weights are not the model's."""

import numpy as np
import pytest
from flax import traverse_util

from jaxkd import models
from jaxkd.errors import UserError
from jaxkd.models.parameters import variable_shapes
from jaxkd.weights import WeightsError, convert_state, from_torch, styles, to_torch

SMALL = {"width": 16, "depth": 2, "heads": 2}
DEIT = {**SMALL, "image_size": 16, "num_classes": 3}
OPTIONS = {
  "deit_tiny": DEIT,
  "vit_tiny": DEIT,
  "dinov2_vits14": {**SMALL, "image_size": 42},
  "dinov2_vits14_reg": {**SMALL, "image_size": 42},
  "dinov2_vitg14": {**SMALL, "image_size": 42},
  "convnextv2_tiny": {"widths": (4, 8), "depths": (1, 1), "num_classes": 3},
  "resnet18_cifar": {"widths": (4, 8), "depths": (1, 1), "num_classes": 3},
  "adaptive_cnn": {"widths": (4, 8), "depths": (1, 1), "num_classes": 3},
}
CASES = [(name, style) for name in OPTIONS for style in styles(name)]


def variables_of(name, **options):
  """Random variables in the model's own shapes."""
  rng = np.random.default_rng(3)
  flat = traverse_util.flatten_dict(variable_shapes(models.create(name, **options)), sep="/")
  filled = {k: rng.normal(size=v.shape).astype(np.float32) for k, v in flat.items()}
  return traverse_util.unflatten_dict(filled, sep="/")


def torch_state(name="deit_tiny", style="timm"):
  return to_torch(name, variables_of(name, **OPTIONS[name]), style)


def same(a, b):
  a, b = (traverse_util.flatten_dict(x, sep="/") for x in (a, b))
  assert a.keys() == b.keys()
  return all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(("name", "style"), CASES)
def test_round_trip_is_bitwise(name, style):
  state = torch_state(name, style)
  done = convert_state(name, state, style=style, **OPTIONS[name])
  again = to_torch(name, done.variables, style)
  assert again.keys() == state.keys()
  for key, array in state.items():
    np.testing.assert_array_equal(again[key], array, strict=True)
  used = [key for row in done.rows for key in row.keys]
  assert sorted([*used, *done.dropped]) == sorted(state)  # every key once
  if not (name.endswith("_reg") and style == "timm"):  # there the cls row is folded into the token
    assert same(done.variables, variables_of(name, **OPTIONS[name]))


@pytest.mark.parametrize(("name", "style"), CASES)
def test_style_is_detected(name, style):
  found = convert_state(name, torch_state(name, style), **OPTIONS[name]).style
  # Without registers or SwiGLU, DINOv2's official names are timm's.
  assert found == ("official" if (name, style) == ("dinov2_vits14", "timm") else style)


def test_across_styles_the_variables_are_the_same():
  state = torch_state("deit_tiny", "transformers_hub")
  via_timm = to_torch("deit_tiny", from_torch("deit_tiny", state, **DEIT), "timm")
  assert same(from_torch("deit_tiny", via_timm, **DEIT), variables_of("deit_tiny", **DEIT))


def test_leaves_are_float32_copies_of_their_own():
  state = {k: v.astype(np.float16) for k, v in torch_state().items()}
  done = convert_state("deit_tiny", state, **DEIT)
  leaves = traverse_util.flatten_dict(done.variables, sep="/")
  assert {v.dtype for v in leaves.values()} == {np.dtype(np.float32)}
  assert all("float16 to float32" in row.note for row in done.rows)
  before = leaves["params/cls_token"].copy()
  state["cls_token"][:] = 0
  np.testing.assert_array_equal(leaves["params/cls_token"], before)


def test_missing_unexpected_and_misshaped_keys_are_told_at_once():  # fault 22
  state = torch_state()
  del state["norm.weight"]
  state["extra.weight"] = np.zeros(3, np.float32)
  state["head.weight"] = np.zeros((1000, 16), np.float32)
  with pytest.raises(WeightsError) as caught:
    from_torch("deit_tiny", state, **DEIT)
  message = caught.value.message
  assert "1 missing: norm.weight" in message
  assert "1 mis-shaped: head.weight (1000, 16) for params/head/kernel (16, 3)" in message
  assert "1 unexpected: extra.weight" in message
  assert "\n" not in message


def test_at_most_ten_of_each_list_are_told():
  with pytest.raises(WeightsError, match=r"20 missing: .* and 10 more"):
    from_torch("deit_tiny", {k: v for k, v in list(torch_state().items())[20:]}, **DEIT)


def test_differences_need_a_list_of_what_may_differ():
  state = torch_state()
  state["head.weight"], state["extra"] = np.zeros((1000, 16), np.float32), np.zeros(3, np.float32)
  with pytest.raises(WeightsError, match="strict=False without a list"):
    from_torch("deit_tiny", state, strict=False, **DEIT)
  with pytest.raises(WeightsError, match="1 unexpected: extra"):
    from_torch("deit_tiny", state, strict=False, allow=("params/head/*",), **DEIT)
  done = convert_state("deit_tiny", state, strict=False, allow=("params/head/*", "ext*"), **DEIT)
  assert done.fresh == ("params/head/kernel",)
  assert done.dropped == ("extra",)
  assert done.variables["params"]["head"]["kernel"].shape == (16, 3)
  assert np.any(done.variables["params"]["head"]["kernel"])


def test_a_missing_part_of_a_joined_leaf_is_told():
  state = torch_state("vit_tiny", "transformers")
  del state["vit.layers.0.attention.k_proj.weight"]
  with pytest.raises(WeightsError, match=r"1 missing: vit\.layers\.0\.attention\.k_proj\.weight"):
    from_torch("vit_tiny", state, **DEIT)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad):  # fault 24
  state = torch_state()
  state["blocks.1.mlp.fc1.weight"][0, 0] = bad
  with pytest.raises(WeightsError, match=r"leaf 'params/block01/mlp/fc1/kernel'.*holds 1 NaN or Inf of 1024"):
    from_torch("deit_tiny", state, **DEIT)


def test_zeros_are_warned_of_but_for_those_that_start_so():  # fault 24
  state = torch_state()
  state["blocks.0.attn.proj.weight"][:] = 0
  state["blocks.0.attn.proj.bias"][:] = 0
  with pytest.warns(UserWarning, match="all zero: params/block00/attn/proj/kernel$"):
    from_torch("deit_tiny", state, **DEIT)


def test_positions_of_another_grid():  # fault 25
  state = torch_state()  # 4x4 patches
  other = DEIT | {"image_size": 24}
  with pytest.raises(WeightsError, match="18 positions, the model has 38; interpolate_pos=True"):
    from_torch("deit_tiny", state, **other)
  moved = convert_state("deit_tiny", state, interpolate_pos=True, **other)
  assert moved.variables["params"]["pos_embed"].shape == (1, 38, 16)
  note = next(row.note for row in moved.rows if row.leaf == "params/pos_embed")
  assert note == "4x4 to 6x6 (antialias)"
  kept = {
    k: v for k, v in DEIT.items() if k != "image_size"
  }  # nobody named a size: the model reads the table's
  variables = from_torch("deit_tiny", state, **kept)
  assert variables["params"]["pos_embed"].shape == (1, 18, 16)
  images = np.random.default_rng(0).normal(size=(1, 16, 16, 3)).astype(np.float32)
  logits = [models.create("deit_tiny", **o).apply(variables, images)[0] for o in (DEIT, kept)]
  np.testing.assert_allclose(*logits, atol=1e-6)


def test_positions_with_other_special_tokens():  # fault 25
  state = torch_state("dinov2_vits14_reg", "timm")
  plain = {k: v for k, v in state.items() if k != "reg_token"}
  with pytest.raises(WeightsError, match="9 positions, the model has 10"):
    from_torch("dinov2_vits14", plain, interpolate_pos=True, **OPTIONS["dinov2_vits14"])
  with pytest.raises(WeightsError, match="1 unexpected: reg_token"):
    from_torch("dinov2_vits14", state, **OPTIONS["dinov2_vits14"])


def test_foreign_keys_and_styles_are_told():
  with pytest.raises(WeightsError, match="no key is one of model 'resnet18_cifar'"):
    from_torch("resnet18_cifar", torch_state())
  with pytest.raises(UserError, match="no names in style 'tim'"):
    to_torch("deit_tiny", variables_of("deit_tiny", **DEIT), "tim")
  stem = variables_of("deit_tiny", **DEIT, stem="conv")
  with pytest.raises(WeightsError, match="no name for 'batch_stats/patch_embed/bn1/mean'"):
    to_torch("deit_tiny", stem, "timm")
  assert same(from_torch("deit_tiny", to_torch("deit_tiny", stem, "jaxkd"), **DEIT, stem="conv"), stem)


def test_older_names_of_convnext_are_read():
  state = torch_state("convnextv2_tiny", "transformers")
  old = {k.replace("grn.weight", "grn.gamma").replace("grn.bias", "grn.beta"): v for k, v in state.items()}
  assert old.keys() != state.keys()
  options = OPTIONS["convnextv2_tiny"]
  assert same(*(from_torch("convnextv2_tiny", s, **options) for s in (state, old)))


def test_timm_builds_small_convnexts_with_convolutions():
  state = torch_state("convnextv2_tiny", "timm")  # first width 4: below Tiny's 96
  assert state["stages.0.blocks.0.mlp.fc1.weight"].shape == (16, 4, 1, 1)
  wide = {"widths": (96,), "depths": (1,), "image_size": 8}
  assert to_torch("convnextv2_tiny", variables_of("convnextv2_tiny", **wide), "timm")[
    "stages.0.blocks.0.mlp.fc1.weight"
  ].shape == (384, 96)
