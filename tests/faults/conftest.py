"""One undisturbed run, with which the disturbed ones are compared."""

import jax
import pytest

from jaxkd import train
from tests import tiny


@pytest.fixture(scope="package")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("reference") / "run"
  with jax.numpy_dtype_promotion("standard"):
    train.train(tiny.config(), folder)
  return folder
