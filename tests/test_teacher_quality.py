"""A teacher that knows less than raw pixels is named; one that knows as much is not."""

import pytest

from jaxkd.teacher_quality import METHODS, weak


def teacher(frozen, pixels=(0.8, 0.79)):
  rows = [["test accuracy", "not measured"]]
  rows += [[f"{m}, frozen features", value] for m, value in zip(METHODS, frozen, strict=True)]
  rows += [[f"{m}, raw pixels", value] for m, value in zip(METHODS, pixels, strict=True)]
  return {"label": "SSL ViT", "rows": rows}


@pytest.mark.parametrize(
  ("frozen", "said"),
  [
    ((0.786, 0.81), "(k-NN (k=20) 78.6% against 80.0%)"),
    ((0.9, 0.5), "(linear probe 50.0% against 79.0%)"),
    ((0.7, 0.7), "(k-NN (k=20) 70.0% against 80.0%, linear probe 70.0% against 79.0%)"),
  ],
)
def test_a_teacher_below_raw_pixels_is_weak(frozen, said):
  (warning,) = weak([teacher(frozen)])
  assert "SSL ViT tells the classes apart worse than raw pixels" in warning
  assert said in warning


def test_others_are_not():
  assert weak([teacher((0.8, 0.79)), teacher((0.9, 0.9)), {"label": "unmeasured", "rows": []}]) == []
