"""Traces, blocks, heads and products against `jax.hessian` of a tiny DeiT and of a tiny CNN with BatchNorm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.analysis import first_component, ggn_trace, hessian_trace, layer_type, rademacher_like
from jaxkd.analysis.curvature.estimate import t_interval
from jaxkd.analysis.curvature.products import flat, linear_map, unflat
from jaxkd.analysis.curvature.quadratic_form import leaf_forms
from tests.analysis.curved import curved, quadratic

pytestmark = pytest.mark.usefixtures("optax_promotion")
KINDS = ("deit", "cnn")


def close(estimate, exact, errors=4.0):
  mean, stderr = estimate
  return abs(mean - exact) <= errors * stderr + 1e-5 * abs(exact)


def probes(case, key, count):
  """The vectors of the probes as rows, float64."""
  draw = jax.jit(lambda i: flat(rademacher_like(jax.random.fold_in(key, i), case.params)))
  return np.array([draw(jnp.uint32(i)) for i in range(count)], np.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_every_probe_of_every_parameter_is_exact(kind):
  case, key = curved(kind), jax.random.key(1)
  found = hessian_trace(case.loss, case.params, case.batches, key=key, probes=4)
  v = probes(case, key, 4)
  products = np.add.reduceat(v * (v @ case.hessian), [0, *case.ends[:-1]], axis=1)
  values = np.stack(list(found.leaf_values.values()), axis=1)
  scale = np.abs(np.diag(case.hessian)).sum()
  np.testing.assert_allclose(values, products, rtol=0, atol=2e-6 * scale)
  # Negative control: the same with the sample's second half left out.
  half = hessian_trace(case.loss, case.params, case.batches[:1], key=key, probes=4)
  assert np.abs(half.values - v @ case.hessian @ v.T @ np.ones(4) / 4).max() > 1e-3 * scale


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace"])
def test_trace_and_block_traces(kind, method):
  case = curved(kind)
  found = hessian_trace(case.loss, case.params, case.batches, key=jax.random.key(2), probes=60, method=method)
  exact = np.trace(case.hessian)
  assert found.stderr < 0.2 * exact  # otherwise four of them prove nothing
  assert close((found.mean, found.stderr), exact)
  assert not close((found.mean, found.stderr), 2 * exact)
  for of_path in (first_component, layer_type):
    expected, blocks = case.diagonal_sums(of_path), found.by(of_path)
    assert set(blocks) == set(expected)
    assert all(close(blocks[name], expected[name], 5) for name in expected), (blocks, expected)
    np.testing.assert_allclose(sum(mean for mean, _ in blocks.values()), found.mean, rtol=1e-9)


def test_layer_types_of_both_models():
  types = {
    "deit": {"attention qkv", "attention projection", "mlp", "norm", "embedding", "head"},
    "cnn": {"conv", "batch norm", "head"},
  }
  assert {kind: set(curved(kind).diagonal_sums(layer_type)) for kind in KINDS} == types


def test_heads_have_their_own_traces():
  case = curved("deit")
  found = hessian_trace(case.loss, case.params, case.batches, key=jax.random.key(3), probes=150, heads=2)
  diagonal = unflat(jnp.asarray(np.diag(case.hessian)), jax.tree.map(jnp.asarray, case.params))
  for block in ("block00", "block01"):
    attn = diagonal[block]["attn"]
    qkv = np.concatenate([attn["qkv"]["kernel"], attn["qkv"]["bias"][None]]).reshape(9, 3, 2, 4)
    proj = np.asarray(attn["proj"]["kernel"]).reshape(2, 4, 8)
    exact = qkv.sum((0, 1, 3)) + proj.sum((1, 2))
    for h in range(2):
      assert close(found.per_head[f"{block}/head{h}"], exact[h])
  path = "block00/attn/qkv/kernel"
  whole = found.leaf_values[
    path
  ]  # near 0 a probe is a difference of large terms, of whose size its rounding is
  np.testing.assert_allclose(
    found.head_values[path].sum(1), whole, rtol=1e-4, atol=1e-6 * np.abs(whole).max()
  )
  plain = hessian_trace(case.loss, case.params, case.batches, key=jax.random.key(3), probes=150)
  np.testing.assert_allclose(plain.values, found.values, rtol=1e-4, atol=1e-5)


def test_matrix_products_that_are_saved():
  """The identity behind `leaf_forms` is used for every dense kernel but those behind which no token is read."""
  case = curved("deit")
  hvp = linear_map(case.loss, case.params, case.batches[0])

  def whole(h, v):
    return [jnp.sum(a * b) for a, b in zip(jax.tree.leaves(v), jax.tree.leaves(h(v)), strict=True)]

  # Two blocks of four layers and the head: two products less in each, where XLA drops what is not asked for.
  compiled = [
    jax.jit(run).lower(hvp, case.params).compile().as_text().count(" dot(")
    for run in (whole, lambda h, v: leaf_forms(h, v)[0])
  ]
  assert compiled[0] - compiled[1] >= 2 * 4 * 2


@pytest.mark.parametrize("kind", KINDS)
def test_gauss_newton_trace(kind):
  case = curved(kind)

  def flat_logits(vector, batch):
    return case.logits(unflat(vector, case.params), batch)

  exact, diagonal = 0.0, 0.0
  for batch in case.batches:
    jacobian = np.asarray(jax.jit(jax.jacrev(flat_logits))(flat(case.params), batch), np.float64)
    p = np.asarray(jax.nn.softmax(case.logits(case.params, batch)), np.float64)
    middle = np.einsum("bc,cd->bcd", p, np.eye(3)) - np.einsum("bc,bd->bcd", p, p)
    diagonal += np.einsum("bcn,bcd,bdn->n", jacobian, middle, jacobian) / len(p) / len(case.batches)
  exact = diagonal.sum()
  found = ggn_trace(case.logits, case.params, case.batches, key=jax.random.key(4), probes=200)
  assert found.stderr < 0.1 * exact
  assert close((found.mean, found.stderr), exact)
  assert not close((found.mean, found.stderr), exact * len(case.batches))
  assert min(found.values) >= 0
  # A ReLU network is linear in each of its kernels, so its Hessian has the same diagonal; a transformer's has not.
  assert (abs(np.trace(case.hessian) / exact - 1) < 1e-5) == (kind == "cnn")
  ends = [0, *case.ends[:-1]]
  for (name, values), block in zip(found.leaf_values.items(), np.add.reduceat(diagonal, ends), strict=True):
    assert abs(values.mean() - block) <= 5 * values.std(ddof=1) / np.sqrt(200) + 1e-5 * exact, name


def test_unequal_batches_by_their_weights():
  case, key = curved("deit"), jax.random.key(5)
  together = jax.tree.map(
    lambda *x: np.concatenate(x), *[{k: b[k] for k in ("images", "labels")} for b in case.batches]
  )
  cut = [{k: v[s] for k, v in together.items()} | {"stats": {}} for s in (slice(0, 8), slice(8, 12))]
  options = {"key": key, "probes": 3}
  whole = hessian_trace(case.loss, case.params, [together | {"stats": {}}], **options)
  parts = hessian_trace(case.loss, case.params, cut, weights=(8, 4), **options)
  wrong = hessian_trace(case.loss, case.params, cut, weights=(1, 1), **options)
  np.testing.assert_allclose(parts.values, whole.values, rtol=1e-4, atol=1e-5)
  assert np.abs(wrong.values - whole.values).max() > 1e-2
  chunked = hessian_trace(case.loss, case.params, cut, weights=(8, 4), probe_chunk=2, **options)
  np.testing.assert_allclose(chunked.values, parts.values, rtol=1e-4, atol=1e-5)


def coverage(matrix, **options):
  """Of 200 independent 95 % intervals: how many hold the exact trace, how many do when halved, and probes taken."""
  key = jax.random.key(20)
  found = [
    hessian_trace(**quadratic(matrix), key=jax.random.fold_in(key, i), probe_chunk=10, **options)
    for i in range(200)
  ]
  half = np.array([f.interval[1] - f.mean for f in found])
  error = np.abs([f.mean - np.trace(matrix) for f in found])
  return sum(error <= half), sum(error <= half / 2), [f.probes for f in found]


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_cover(kind):
  """95 % of 200 is 190; 180 to 199 leaves three standard deviations. Halved intervals would cover 67 %."""
  hits, halved, _ = coverage(curved(kind).hessian, probes=100)
  assert 180 <= hits <= 199
  assert halved < 180


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_cover_with_the_stop_rule(kind):
  matrix = curved(kind).hessian
  # The standard deviation of one probe, and a tolerance that is reached after about 80 of them.
  deviation = np.sqrt(2 * ((matrix**2).sum() - (np.diag(matrix) ** 2).sum()))
  hits, halved, taken = coverage(matrix, probes=400, rtol=deviation / np.sqrt(80) / np.trace(matrix))
  assert min(taken) >= 30
  assert 40 < np.mean(taken) < 140
  assert 180 <= hits <= 199
  assert halved < 180


def test_student_interval():
  from scipy.stats import t

  assert t_interval(3.0, 0.5, 30) == pytest.approx(t.interval(0.95, 29, 3.0, 0.5), rel=1e-12)
