"""Layers of two models over the same images: rows, grids, one-pass CKA, probes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.analysis.layers import Shown, common_grid, layer_grids, layer_probes, layer_rows, model_cka, shrink
from jaxkd.analysis.similarity import cka_accumulate, cka_finish, cka_matrix, squared_bandwidths
from jaxkd.analysis.statistics import wilson
from jaxkd.analysis.streaming import map_batches, spatial_map


def shown(name, size, count=24, **options):
  """A model and its own view of the same `count` pictures."""
  pictures = np.random.default_rng(0).normal(size=(count, 4, 4, 3)).astype(np.float32)
  images = np.asarray(jax.image.resize(pictures, (count, *size, 3), "linear"))
  model = models.create(name, image_size=size, num_classes=3, **options)
  return Shown(model, jax.jit(model.init)(jax.random.key(1), images), images)


def student():
  return shown("deit", (8, 8), patch_size=2, width=16, depth=2, heads=2, init_std=0.2)


def teacher():
  return shown("vit", (12, 8), patch_size=4, width=12, depth=2, heads=2, init_std=0.2)


def cnn():
  return shown("resnet18_cifar", (8, 8), widths=(4, 6, 8), depths=(1, 1, 1))


def test_rows_are_patch_tokens_or_maps():
  s = student()
  taps = jax.jit(s.model.apply)(s.variables, s.images)[1]
  found = layer_rows(s, batch_size=10)
  assert list(found) == ["block00/tokens", "block01/tokens"]
  for name, rows in found.items():
    patches = np.asarray(taps[name])[:, 2:]
    np.testing.assert_allclose(rows, patches.reshape(24, -1), atol=1e-5)
    np.testing.assert_allclose(layer_rows(s, pooled=True)[name], patches.mean(1), atol=1e-5)
    small = shrink(jnp.asarray(patches.reshape(24, 4, 4, 16)), (2, 3)).reshape(24, -1)
    np.testing.assert_allclose(layer_rows(s, grid=(2, 3))[name], small, atol=1e-5)


def test_grids_of_transformers_and_cnns():
  assert layer_grids(student()) == {"block00/tokens": (4, 4), "block01/tokens": (4, 4)}
  assert layer_grids(cnn()) == {"stage0": (8, 8), "stage1": (4, 4), "stage2": (2, 2)}
  assert common_grid(student(), teacher()) == (3, 2)
  assert common_grid(student(), cnn()) == (2, 2)


def triangle(old, new):
  """Bilinear weights whose triangle is as wide as the step, so that shrinking averages."""
  step = old / new
  distance = np.abs((np.arange(new) + 0.5)[:, None] * step - 0.5 - np.arange(old)[None]) / max(step, 1)
  weights = np.maximum(0, 1 - distance)
  return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("grid", [(3, 2), (2, 4), (6, 8)])
def test_shrinking_weighs_every_cell(grid):
  maps = np.random.default_rng(1).normal(size=(2, 6, 8, 3)).astype(np.float32)
  expected = np.einsum(
    "yi,bijd,xj->byxd", triangle(6, grid[0]), maps.astype(np.float64), triangle(8, grid[1])
  )
  np.testing.assert_allclose(shrink(jnp.asarray(maps), grid), expected, atol=1e-5)


@pytest.mark.parametrize("other", [teacher, cnn])
def test_one_batch_is_the_full_matrix_whatever_the_grids(other):
  a, b = student(), other()
  for options in ({}, {"grid": common_grid(a, b)}, {"pooled": True}):
    found = model_cka(a, b, batch_size=24, **options)
    rows = [list(layer_rows(x, **options).values()) for x in (a, b)]
    np.testing.assert_allclose(found.value, cka_matrix(*rows), atol=2e-5)
    assert found.value.shape == (2, len(rows[1]))


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_batches_in_one_pass_equal_the_accumulation_of_kept_features(kernel):
  a, b = student(), teacher()
  found = model_cka(a, b, batch_size=10, kernel=kernel)
  assert found.batches == 3
  rows = [list(layer_rows(x).values()) for x in (a, b)]
  parts = [[[x[i : i + 8] for x in side] for side in rows] for i in (0, 8, 16)]
  bandwidths = tuple(jnp.stack([squared_bandwidths(p[side]) for p in parts]).mean(0) for side in (0, 1))
  state = ()
  for part in parts:
    state = cka_accumulate(state, *part, bandwidths=bandwidths if kernel == "rbf" else None)
  expected = cka_finish(state)
  np.testing.assert_allclose(found.value, expected.value, atol=2e-5)
  np.testing.assert_allclose(found.stderr, expected.stderr, atol=1e-4)


def test_a_model_with_itself_is_symmetric_with_unit_diagonal():
  found = model_cka(cnn(), batch_size=12).value
  np.testing.assert_allclose(found, found.T, atol=1e-6)
  np.testing.assert_allclose(np.diag(found), 1.0, rtol=1e-6)
  np.testing.assert_allclose(found, model_cka(cnn(), cnn(), batch_size=12).value, atol=1e-6)
  assert found[0, 2] < 0.999


def test_probes_of_layers_know_what_the_layer_knows():
  rng = np.random.default_rng(2)
  labels, truth = rng.integers(0, 3, 120), rng.integers(0, 3, 90)
  knows = [np.float32(np.eye(3)[x] * 4 + rng.normal(size=(len(x), 3))) for x in (labels, truth)]
  noise = [np.float32(rng.normal(size=(len(x), 3))) for x in (labels, truth)]
  train, test = ({"stage0": n, "stage1": k} for n, k in zip(noise, knows, strict=True))
  found = layer_probes(train, labels, test, truth, k=5)
  assert list(found) == ["stage0", "stage1"]
  for kind in ("knn", "linear"):
    assert getattr(found["stage1"], kind).low > 0.9
    assert getattr(found["stage0"], kind).low < 1 / 3 + 0.05
    assert getattr(found["stage0"], kind).high < 0.6
  correct = round(found["stage1"].knn.mean * 90)
  assert found["stage1"].knn == wilson(correct, 90)


def test_last_batch_is_moved_back_and_cut():
  calls = []

  def double(x, y):
    calls.append(len(x))
    return {"sum": x + y}

  found = map_batches(double, np.arange(7), np.arange(7), batch_size=3)
  np.testing.assert_array_equal(found["sum"], 2 * np.arange(7))
  assert calls == [3, 3, 3]


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: model_cka(student(), student()._replace(images=np.ones((9, 8, 8, 3)))), "24 images against 9"),
    (lambda: model_cka(cnn(), kernel="poly"), "unknown kernel 'poly'"),
    (lambda: model_cka(cnn(), batch_size=3), "at least 4 rows"),
    (lambda: layer_probes({"a": np.ones((4, 2))}, np.arange(4), {}, np.arange(4)), "train has the layers"),
    (lambda: map_batches(np.copy, np.ones((0, 2)), batch_size=2), "cannot batch"),
    (lambda: spatial_map(jnp.ones((2, 10, 4)), 1, (2, 4)), r"neither a map \[b h w c\]"),
  ],
)  # fmt: skip
def test_refusals(call, message):
  with pytest.raises(ValueError, match=message):
    call()
