"""The parameter table."""

import pytest

from jaxkd import models

VIT = models.create("vit", width=8, depth=2, heads=2, image_size=8, num_classes=3)


def test_rows_are_counted_by_hand():
  rows = {row["name"]: row for row in models.parameter_table(VIT)}
  assert rows["block01/attn/qkv/kernel"]["shape"] == (8, 24)
  assert rows["block01/attn/qkv/kernel"]["count"] == 192
  block = 2 * 16 + 192 + 24 + 64 + 8 + 256 + 32 + 256 + 8
  total = 2 * block + 8 + 5 * 8 + 48 * 8 + 8 + 16 + 27
  assert sum(row["count"] for row in rows.values()) == total
  assert rows["head/bias"]["share"] == 3 / total
  modules = {row["name"]: row for row in models.parameter_table(VIT, by="module")}
  assert (modules["block00"]["count"], modules["block00"]["shape"]) == (block, None)
  assert sum(row["share"] for row in modules.values()) == pytest.approx(1)


def test_statistics_are_no_parameters():
  names = [
    row["name"] for row in models.parameter_table(models.create("resnet18_cifar", widths=(4,), depths=(1,)))
  ]
  assert "bn1/scale" in names
  assert "bn1/mean" not in names


def test_an_unknown_grouping_is_told():
  with pytest.raises(ValueError, match="unknown by 'blok'"):
    models.parameter_table(VIT, by="blok")
