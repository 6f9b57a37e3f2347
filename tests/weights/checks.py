"""What tests of weight files share: bitwise equality, and the form of a refusal."""

import pytest

from jaxkd.errors import UserError
from jaxkd.weights.read import read_weights


def equal(a, b):
  assert a.keys() == b.keys()
  for name in a:
    assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
    assert a[name].tobytes() == b[name].tobytes(), name


def refused(path, *words):
  """The error of reading `path`, after checking that it says `words` in one line and has a one-line hint."""
  with pytest.raises(UserError) as caught:
    read_weights(path)
  error = caught.value
  assert error.hint
  for text in (error.message, error.hint):
    assert "\n" not in text
    assert "weights_only" not in text
    assert "arbitrary code" not in text
  for word in words:
    assert word in error.message, error.message
  return error
