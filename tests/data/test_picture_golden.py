"""Every operation and policy draws the committed picture."""

import numpy as np
import pytest
from PIL import Image

from tests.data import make_picture_golden as golden


@pytest.fixture(scope="module")
def found():
  return golden.rows()


def test_the_picture_is_the_committed_one(found):
  drawn, expected = golden.grid(found).astype(int), np.asarray(Image.open(golden.GOLDEN)).astype(int)
  assert drawn.shape == expected.shape
  rows = np.abs(drawn - expected).reshape(len(found), -1).max(axis=1)
  differs = {name: int(most) for name, most in zip(found, rows, strict=True) if most > 1}
  assert not differs, "look at the picture that tests/data/make_picture_golden.py draws"


def test_every_row_shows_something_of_its_own(found):
  rows = {name: row.tobytes() for name, row in found.items()}
  assert len(set(rows.values())) == len(rows), "no operation does nothing, no two do the same"
