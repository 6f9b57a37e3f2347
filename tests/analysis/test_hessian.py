"""Hutchinson's estimator against exact Hessians of models small enough to have one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.analysis import hessian
from jaxkd.analysis.curvature.products import linear_map
from jaxkd.analysis.hessian import hessian_trace, hessian_vector_product, rademacher_like


def mlp_loss(params, batch):
  """Softmax cross-entropy of a two-layer tanh network, mean over the batch."""
  x, y = batch
  hidden = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"][None])
  log_p = jax.nn.log_softmax(hidden @ params["head"]["kernel"])
  return -jnp.take_along_axis(log_p, y[:, None], axis=1).mean()


def quadratic_loss(params, batch):
  return 0.5 * jnp.sum(batch["curvature"] * params["w"] ** 2)


def mlp(key, inputs, hidden, classes):
  k = jax.random.split(key, 3)
  return {
    "first": {
      "kernel": jax.random.normal(k[0], (inputs, hidden)),
      "bias": jax.random.normal(k[1], (hidden,)),
    },
    "head": {"kernel": jax.random.normal(k[2], (hidden, classes))},
  }


def sample(key, n, inputs, classes):
  return jax.random.normal(key, (n, inputs)), jnp.arange(n) % classes


def halves(batch):
  return [jax.tree.map(lambda x: x[:6], batch), jax.tree.map(lambda x: x[6:], batch)]


PARAMS = mlp(jax.random.key(0), 3, 4, 3)  # 28 parameters
BATCH = sample(jax.random.key(1), 12, 3, 3)


def exact_hessian(loss, params, batch):
  """jax.hessian in float64, as a numpy matrix in flattening order."""
  with jax.enable_x64(True):
    leaves, treedef = jax.tree.flatten(jax.tree.map(lambda x: np.asarray(x, np.float64), params))
    shapes, ends = [x.shape for x in leaves], np.cumsum([x.size for x in leaves])[:-1]
    batch = jax.tree.map(
      lambda x: np.asarray(x, np.float64) if np.asarray(x).dtype == np.float32 else x, batch
    )

    def flat_loss(vector):
      parts = [x.reshape(s) for x, s in zip(jnp.split(vector, ends), shapes, strict=True)]
      return loss(jax.tree.unflatten(treedef, parts), batch)

    return np.asarray(jax.jit(jax.hessian(flat_loss))(np.concatenate([x.ravel() for x in leaves])))


def flat(tree):
  return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


EXACT = exact_hessian(mlp_loss, PARAMS, BATCH)


def test_trace_is_within_four_standard_errors_of_the_exact_one():
  found = hessian_trace(mlp_loss, PARAMS, [BATCH], key=jax.random.key(2), probes=200)
  assert found.probes == 200
  assert found.stderr < 0.15 * abs(np.trace(EXACT))  # otherwise four of them prove nothing
  assert abs(found.mean - np.trace(EXACT)) < 4 * found.stderr
  # Negative control: the sum over examples instead of their mean.
  assert abs(12 * found.mean - np.trace(EXACT)) > 4 * found.stderr


def test_each_probe_is_the_quadratic_form_of_its_own_signs():
  key = jax.random.key(3)
  found = hessian_trace(mlp_loss, PARAMS, halves(BATCH), key=key, probes=5)
  draw = jax.jit(rademacher_like)
  vectors = [flat(draw(jax.random.fold_in(key, i), PARAMS)) for i in range(5)]
  np.testing.assert_allclose(found.values, [v @ EXACT @ v for v in vectors], rtol=2e-5, atol=2e-6)
  np.testing.assert_allclose(found.mean, found.values.mean(), rtol=1e-12)
  np.testing.assert_allclose(found.stderr, found.values.std(ddof=1) / np.sqrt(5), rtol=1e-12)
  assert set(np.unique(vectors)) == {-1.0, 1.0}


def test_all_sign_vectors_average_to_the_exact_trace():
  params, batch = mlp(jax.random.key(4), 1, 1, 4), sample(jax.random.key(5), 6, 1, 4)  # 6 parameters
  leaves, treedef = jax.tree.flatten(params)
  ends = np.cumsum([x.size for x in leaves])[:-1]
  forms, scaled = [], []
  for signs in itertools.product([-1.0, 1.0], repeat=6):
    parts = np.split(np.float32(signs), ends)
    vector = jax.tree.unflatten(treedef, [p.reshape(x.shape) for p, x in zip(parts, leaves, strict=True)])
    product = hessian_vector_product(mlp_loss, params, [batch], vector)
    forms.append(flat(vector) @ flat(product))
    scaled.append(flat(vector) @ flat(product) * (1 + 1e-3))
  trace = np.trace(exact_hessian(mlp_loss, params, batch))
  np.testing.assert_allclose(np.mean(forms), trace, rtol=1e-5)
  assert abs(np.mean(scaled) / trace - 1) > 1e-5  # negative control: 0.1 % off is seen


def test_vector_product_is_the_exact_one_on_any_vector():
  vector = jax.tree.map(lambda x: jax.random.normal(jax.random.key(6), x.shape), PARAMS)
  product = hessian_vector_product(mlp_loss, PARAMS, halves(BATCH), vector)
  np.testing.assert_allclose(flat(product), EXACT @ flat(vector), rtol=1e-4, atol=2e-6)
  assert jax.tree.structure(product) == jax.tree.structure(PARAMS)


def test_diagonal_hessian_has_no_variance():
  curvature = jnp.array([3.0, -1.0, 0.5, 4.0])
  params, batches = {"w": jnp.ones(4)}, [{"curvature": curvature}, {"curvature": 3 * curvature}]
  found = hessian_trace(quadratic_loss, params, batches, key=jax.random.key(0), probes=7)
  assert (found.mean, found.stderr) == (13.0, 0.0)  # the mean of 6.5 and 19.5


def test_gaussian_probes_would_be_noisier():
  """Negative control: the zero variance above is a property of signs, lost with Gaussian vectors."""
  curvature, v = np.array([3.0, -1.0, 0.5, 4.0]), np.random.default_rng(0).normal(size=(7, 4))
  assert np.einsum("pi,i,pi->p", v, curvature, v).std() > 1


def test_blocks_add_up_and_match_the_diagonal_blocks():
  found = hessian_trace(mlp_loss, PARAMS, [BATCH], key=jax.random.key(7), probes=150)
  assert list(found.per_block) == ["first", "head"]
  np.testing.assert_allclose(sum(mean for mean, _ in found.per_block.values()), found.mean, rtol=1e-12)
  diagonal = np.diag(EXACT)
  for (mean, stderr), exact in zip(
    found.per_block.values(), (diagonal[:16].sum(), diagonal[16:].sum()), strict=True
  ):
    assert abs(mean - exact) < 4 * stderr


def test_blocks_follow_the_given_rule_from_the_same_probes():
  kind = lambda path: path.split("/")[-1]  # noqa: E731
  found = hessian_trace(mlp_loss, PARAMS, [BATCH], key=jax.random.key(7), probes=20, block_of=kind)
  assert set(found.per_block) == {"kernel", "bias"}
  assert set(found.leaf_values) == {"first/kernel", "first/bias", "head/kernel"}
  default = hessian_trace(mlp_loss, PARAMS, [BATCH], key=jax.random.key(7), probes=20)
  assert default.by(kind) == found.per_block
  assert default.mean == found.mean


def test_cutting_the_sample_differently_changes_no_probe():
  key = jax.random.key(8)
  runs = []
  for parts in (1, 2, 4):
    batches = [jax.tree.map(lambda x, i=i: x[i::parts], BATCH) for i in range(parts)]  # noqa: B023
    runs.append(hessian_trace(mlp_loss, PARAMS, batches, key=key, probes=4).values)
  np.testing.assert_allclose(runs[1], runs[0], rtol=1e-5, atol=2e-6)
  np.testing.assert_allclose(runs[2], runs[0], rtol=1e-5, atol=2e-6)
  # Negative control: fresh probes on the second half would not agree.
  first, second = halves(BATCH)
  mixed = [
    hessian_trace(mlp_loss, PARAMS, [b], key=jax.random.key(k), probes=4)
    for k, b in ((8, first), (9, second))
  ]
  assert np.abs((mixed[0].values + mixed[1].values) / 2 - runs[0]).max() > 0.01


def test_deterministic_in_the_key_only():
  a, b = (hessian_trace(mlp_loss, PARAMS, [BATCH], key=jax.random.key(10), probes=3) for _ in range(2))
  c = hessian_trace(mlp_loss, PARAMS, [BATCH], key=jax.random.key(11), probes=3)
  assert (a.values == b.values).all()
  assert (a.values != c.values).any()


def test_two_standard_errors_cover_about_95_percent():
  estimates = [
    hessian_trace(mlp_loss, PARAMS, [BATCH], key=jax.random.key(100 + i), probes=40) for i in range(60)
  ]
  z = np.array([(e.mean - np.trace(EXACT)) / e.stderr for e in estimates])
  assert 0.85 <= np.mean(np.abs(z) < 2) <= 1.0
  assert 0.75 < z.std() < 1.3  # an error bar too long or too short by a third fails


def test_adaptive_rule_stops_and_shares_its_probes_with_the_fixed_form():
  key = jax.random.key(12)
  found = hessian_trace(mlp_loss, PARAMS, [BATCH], key=key, probes=400, rtol=0.1)
  assert 30 < found.probes < 400
  assert found.stderr <= 0.1 * abs(found.mean)
  fixed = hessian_trace(mlp_loss, PARAMS, [BATCH], key=key, probes=found.probes)
  assert (fixed.values == found.values).all()
  pilot = hessian_trace(mlp_loss, PARAMS, [BATCH], key=key, probes=30)
  assert pilot.stderr > 0.1 * abs(pilot.mean)
  strict = hessian_trace(mlp_loss, PARAMS, [BATCH], key=key, probes=45, rtol=1e-9)
  assert strict.probes == 45
  exact = {"w": jnp.ones(4)}, [{"curvature": jnp.arange(4.0)}]
  assert hessian_trace(quadratic_loss, *exact, key=key, rtol=0.01).probes == 30


def test_another_model_of_the_same_shapes_compiles_nothing():
  key = jax.random.key(13)
  hessian_trace(mlp_loss, PARAMS, halves(BATCH), key=key, probes=2)
  sizes = linear_map._cache_size(), hessian._probes._cache_size()
  other = mlp(jax.random.key(14), 3, 4, 3)
  hessian_trace(mlp_loss, other, halves(sample(jax.random.key(15), 12, 3, 3)), key=key, probes=5)
  assert (linear_map._cache_size(), hessian._probes._cache_size()) == sizes
  hessian_trace(
    lambda p, b: mlp_loss(p, b), other, halves(BATCH), key=key, probes=2
  )  # control: a new function does
  assert linear_map._cache_size() == sizes[0] + 1


def test_low_precision_parameters_are_measured_in_float32():
  low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
  back = jax.tree.map(lambda x: x.astype(jnp.float32), low)
  a, b = (hessian_trace(mlp_loss, p, [BATCH], key=jax.random.key(16), probes=2) for p in (low, back))
  assert (a.values == b.values).all()


@pytest.mark.parametrize(
  ("options", "error", "message"),
  [
    ({"probes": 1}, ValueError, "at least 2 probes"),
    ({"rtol": 0.0}, ValueError, "must be positive"),
    ({"rtol": 0.1, "min_probes": 200}, ValueError, "min_probes = 200"),
    ({"rtol": 0.1, "min_probes": 29}, ValueError, "between 30"),
    ({"method": "hutch"}, ValueError, "known: hutchinson"),
    ({"method": "xtrace", "rtol": 0.1}, ValueError, "no rtol"),
    ({"method": "xtrace", "probes": 28}, ValueError, "exact trace"),
    ({"method": "hutch++", "probes": 5}, ValueError, "at least 6"),
    ({"weights": [1.0, 2.0]}, ValueError, "one positive number for each of 1"),
    ({"probe_chunk": 0}, ValueError, "must be positive"),
    ({"batches": []}, ValueError, "no batches"),
    ({"batches": {"x": 1}}, TypeError, "list or tuple"),
    ({"batches": [BATCH, halves(BATCH)[0]]}, ValueError, "batch 1 differs"),
    ({"params": PARAMS | {"step": jnp.int32(3)}}, TypeError, "parameter 'step' has dtype int32"),
    ({"params": jax.tree.map(lambda x: x * jnp.nan, PARAMS)}, FloatingPointError, "probe 0 is not finite"),
  ],
)
def test_refusals(options, error, message):
  arguments = {"params": PARAMS, "batches": [BATCH], "key": jax.random.key(0)} | options
  with pytest.raises(error, match=message):
    hessian_trace(mlp_loss, **arguments)


def test_vector_of_other_shapes_is_refused():
  with pytest.raises(ValueError, match="tree structure and shapes"):
    hessian_vector_product(mlp_loss, PARAMS, [BATCH], PARAMS["first"])


def test_random_signs_are_balanced_and_independent():
  """32 signs come out of one word: no sign may tell another, in its word, in its row or in another leaf."""
  params = {"a": jnp.zeros((129, 127)), "b": jnp.zeros((64, 257)), "c": jnp.zeros(())}
  draw = jax.jit(rademacher_like)
  found = draw(jax.random.key(5), params)
  assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, params)
  a, b = (np.ravel(found[k]) for k in "ab")
  np.testing.assert_array_equal(np.abs(np.concatenate([a, b])), 1)
  products = {f"lag {lag}": a[lag:] * a[:-lag] for lag in (1, 2, 31, 32, 33, 127, 128)}
  products |= {
    "mean": a,
    "leaves": a * b[: len(a)],
    "keys": a * np.ravel(draw(jax.random.key(6), params)["a"]),
  }
  assert {k: v for k, v in products.items() if abs(v.mean()) > 4.5 / len(v) ** 0.5} == {}
  repeated = np.resize(a[:4096], len(a))  # negative control: words used twice are seen
  assert abs((repeated[4096:] * repeated[:-4096]).mean()) > 0.9
