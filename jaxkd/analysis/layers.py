"""The layers of models compared in one pass over images, and what each layer knows of the classes."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxkd.analysis.similarity import (
  CkaEstimate,
  Rows,
  cka_accumulate,
  cka_finish,
  knn_accuracy,
  linear_probe,
  squared_bandwidths,
)
from jaxkd.analysis.statistics import Interval, wilson
from jaxkd.analysis.streaming import layer_names, map_batches, spatial_taps, spread


class Shown(NamedTuple):
  """A model with what it is shown: `images` [b h w c] are in its own size and normalisation."""

  model: nn.Module
  variables: Any
  images: Float[Array, "b h w c"]


class LayerAccuracy(NamedTuple):
  """Accuracy of the two probes on one layer, each with Wilson's interval over the test rows."""

  knn: Interval
  linear: Interval


def layer_grids(shown: Shown) -> dict[str, tuple[int, int]]:
  """Rows and columns of every layer's map, without computing anything."""
  part = jax.ShapeDtypeStruct((1, *shown.images.shape[1:]), jnp.float32)
  maps = jax.eval_shape(partial(spatial_taps, shown.model), shown.variables, part)
  return {name: x.shape[1:3] for name, x in maps.items()}


def common_grid(*shown: Shown) -> tuple[int, int]:
  """The smaller of all layers' rows, and of their columns: the grid on which all of them can be compared."""
  grids = np.array([grid for s in shown for grid in layer_grids(s).values()])
  rows, columns = grids.min(axis=0).tolist()
  return rows, columns


def layer_rows(
  shown: Shown,
  *,
  grid: tuple[int, int] | None = None,
  pooled: bool = False,
  batch_size: int = 128,
) -> dict[str, Float[np.ndarray, "b d"]]:
  """Every layer's spatial features, one row per image, float32: patch tokens or the map of a stage, flattened.

  Args:
    grid: resizes each map (bilinear, antialiased where it shrinks) before it is flattened; None keeps its own.
    pooled: the mean over positions instead.

  Raises:
    ValueError: no images.
  """
  function = partial(_rows, shown.model, shown.variables, grid=grid, pooled=pooled)
  return map_batches(function, shown.images, batch_size=batch_size)


@partial(jax.jit, static_argnames=("model", "grid", "pooled"))
def _rows(
  model: nn.Module, variables: Any, images: Array, *, grid: tuple[int, int] | None, pooled: bool
) -> dict[str, Float[Array, "b d"]]:
  def flat(x: Float[Array, "b h w d"]) -> Float[Array, "b _"]:
    x = x.astype(jnp.float32)
    if pooled:
      return x.mean(axis=(1, 2))
    return (x if grid is None else shrink(x, grid)).reshape(x.shape[0], -1)

  return {name: flat(x) for name, x in spatial_taps(model, variables, images).items()}


def shrink(x: Float[Array, "b h w d"], grid: tuple[int, int]) -> Float[Array, "b H W d"]:
  """Bilinear resize to `grid`, float32; antialiased, so that every cell counts where the map shrinks."""
  shape = (x.shape[0], *grid, x.shape[3])
  return jax.image.resize(x.astype(jnp.float32), shape, method="bilinear", antialias=True)


def model_cka(
  a: Shown,
  b: Shown | None = None,
  *,
  kernel: str = "linear",
  grid: tuple[int, int] | None = None,
  pooled: bool = False,
  batch_size: int = 128,
) -> CkaEstimate:
  """Debiased minibatch CKA, every layer of `a` with every layer of `b` (None: of itself), in one pass over the images.

  One row per image. Grids that differ need not be brought together, a Gram matrix has no grid; `grid=common_grid(a,
  b)` does so where the comparison should be of equally fine maps. The images are cut into equal batches (sizes differ
  by at most one), each of which weighs the same; `batch_size` bounds them, and 64 or more keeps the error small. The
  RBF bandwidth of a layer is the mean over a first pass of the batches' median squared distances, and costs that pass.

  Raises:
    ValueError: different numbers of images, batches below 4 images, or an unknown kernel.
  """
  if b is not None and len(a.images) != len(b.images):
    raise ValueError(f"model_cka: {len(a.images)} images against {len(b.images)}; show both the same ones")
  if kernel not in ("linear", "rbf"):
    raise ValueError(f"CKA: unknown kernel {kernel!r}; known: linear, rbf")
  rows = partial(_batch_rows, a, b, grid=grid, pooled=pooled)
  batches = np.array_split(np.arange(len(a.images)), -(-len(a.images) // batch_size))
  bandwidths = _bandwidths(rows, batches) if kernel == "rbf" else None
  state: tuple = ()
  for index in batches:
    state = cka_accumulate(state, *rows(index), bandwidths=bandwidths)
  return cka_finish(state)


def _batch_rows(
  a: Shown, b: Shown | None, index: np.ndarray, **options: Any
) -> tuple[list[Array], list[Array]]:
  def side(shown: Shown) -> list[Array]:
    rows = _rows(shown.model, shown.variables, spread(shown.images[index[0] : index[-1] + 1]), **options)
    return [rows[name] for name in layer_names(shown.model)]

  first = side(a)
  return first, first if b is None else side(b)


def _bandwidths(rows: Callable[..., Any], batches: list[np.ndarray]) -> tuple[Array, Array]:
  medians = [[squared_bandwidths(side) for side in rows(index)] for index in batches]
  a, b = (jnp.stack(side).mean(axis=0) for side in zip(*medians, strict=True))
  return a, b


def layer_probes(
  train: Mapping[str, Rows],
  train_labels: Int[np.ndarray, " n"],
  test: Mapping[str, Rows],
  test_labels: Int[np.ndarray, " m"],
  *,
  k: int = 20,
) -> dict[str, LayerAccuracy]:
  """Accuracy of k-NN and of logistic regression on the frozen features of every layer (`layer_rows(pooled=True)`).

  Raises:
    ValueError: the layers differ, or what `knn_accuracy` and `linear_probe` refuse.
  """
  if train.keys() != test.keys() or not train:
    raise ValueError(f"layer_probes: train has the layers {list(train)}, test {list(test)}")
  found = {}
  for name, rows in train.items():
    data = rows, train_labels, test[name], test_labels
    correct = [round(score * len(test_labels)) for score in (knn_accuracy(*data, k=k), linear_probe(*data))]
    found[name] = LayerAccuracy(*(wilson(c, len(test_labels)) for c in correct))
  return found
