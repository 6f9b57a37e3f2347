"""Curvature beside live torch: the stored models on other images, and the twin in float64. Needs `make parity`."""

import numpy as np
import pytest

pytest.importorskip("torch")

from . import hessian_cases as cases
from .make_hessian_goldens import build, measure, twin

pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.mark.parametrize("name", cases.NAMES)
def test_converted_models(name):
  state, _ = cases.golden(name)
  images = np.random.default_rng(3).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
  labels = np.array([4, 0])
  problem = cases.ours(name, state, images, labels)
  cases.check(name, problem, *measure(name, build(name, state), problem[1], images, labels))


def test_stored_twin_is_todays():
  with np.load(cases.FILE) as stored:
    np.testing.assert_allclose(twin(), stored["twin"], rtol=1e-10)
