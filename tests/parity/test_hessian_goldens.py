"""Curvature against stored results of torch's double backward; see make_hessian_goldens.py. No torch needed."""

import jax
import numpy as np
import pytest

from jaxkd.analysis import hessian_vector_product
from jaxkd.analysis.curvature.products import linear_map
from jaxkd.analysis.curvature.quadratic_form import leaf_forms

from . import hessian_cases as cases

pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.fixture(scope="module")
def stored():
  with np.load(cases.FILE) as arrays:
    return dict(arrays)


@pytest.mark.parametrize("name", cases.NAMES)
def test_converted_models(name, stored):
  problem = cases.ours(name, *cases.golden(name))
  check = {key: stored[f"{name}/{key}"] for key in ("forms", "values", "keys")}
  cases.check(name, problem, **check)


def test_float64(stored):
  """Both ways to v'Hv, parameter by parameter; float32 would be a million times further off."""
  params, x, y, vectors = cases.twin_arrays()
  expected = stored["twin"]
  with jax.enable_x64(True):
    hvp = linear_map(cases.twin_loss, jax.tree.map(jax.numpy.asarray, params), (x, y))
    for vector, row in zip(vectors, expected, strict=True):
      vector = jax.tree.map(jax.numpy.asarray, vector)
      product = hessian_vector_product(cases.twin_loss, params, [(x, y)], vector)
      assert product["qkv"].dtype == np.float64
      names = sorted(cases.LEAVES)
      order = [names.index(k) for k in cases.LEAVES]
      whole = np.array([np.vdot(vector[k], product[k]) for k in names])
      forms = np.array(jax.jit(lambda h, v: leaf_forms(h, v)[0])(hvp, vector))
      for found in (whole, forms):
        np.testing.assert_allclose(found[order], row, rtol=1e-8, atol=1e-10)
      np.testing.assert_allclose(forms.sum(), row.sum(), rtol=1e-8)
  single = jax.tree.map(np.float32, params), [(np.float32(x), y)], jax.tree.map(np.float32, vectors[-1])
  low = hessian_vector_product(cases.twin_loss, *single)
  assert abs(sum(np.vdot(single[2][k], low[k]) for k in cases.LEAVES) / row.sum() - 1) > 1e-8
