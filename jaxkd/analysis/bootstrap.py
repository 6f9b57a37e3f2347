"""Bootstrap intervals of means over images, for many statistics at once.

The unit that is drawn is the image, and all statistics of one call share the draws. So do calls with the same key,
number of images and number of resamples: intervals of two models on the same images come from the same resamples.
Of a handful of values, such as one for each seed, all resamples there are can be had.
"""

import itertools
import math
from functools import cache, partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.special import ndtr, ndtri

Method = Literal["percentile", "bca"]
_CHUNK = 128  # resamples at once
_ALL = 8  # values up to which every resample is looked at: 6,435 different ones
AnyArray = Array | np.ndarray


class Estimate(NamedTuple):
  """A value with the bounds of its confidence interval, float64 arrays of one shape."""

  value: Float[np.ndarray, "..."]
  low: Float[np.ndarray, "..."]
  high: Float[np.ndarray, "..."]


def bootstrap_mean(
  values: Float[AnyArray, "b ..."],
  *,
  key: Array,
  resamples: int = 2000,
  confidence: float = 0.95,
  method: Method = "percentile",
) -> Estimate:
  """Mean over images with its bootstrap interval, for every entry of the other axes: `shape` each.

  `percentile` takes quantiles of the resampled means; `bca` corrects their bias and skewness (Efron, 1987). The
  percentile interval of a mean is too short by the factor `sqrt((b - 1) / b)` and the missing t quantile: by 18 % at
  10 images, 4 % at 50, 0.3 % at 512. A NaN in `values` makes its entries NaN.

  Raises:
    ValueError: fewer than 2 images, an unknown method, or resamples or a confidence out of range.
  """
  values = np.asarray(values, np.float64)
  if values.ndim < 1 or len(values) < 2:
    raise ValueError(f"values have shape {values.shape}; a bootstrap over images needs at least 2 of them")
  one = bootstrap_class_means(
    values,
    np.zeros(len(values), int),
    classes=1,
    key=key,
    resamples=resamples,
    confidence=confidence,
    method=method,
  )
  return Estimate(*(x[0] for x in one))


def bootstrap_class_means(
  values: Float[AnyArray, "b ..."],
  labels: Int[AnyArray, " b"],
  *,
  classes: int,
  key: Array,
  resamples: int = 2000,
  confidence: float = 0.95,
  method: Method = "percentile",
) -> Estimate:
  """Mean over the images of each class, with intervals from resampling within the class: [c *shape] each.

  A class with one image has infinite bounds, one without images is NaN.

  Raises:
    ValueError: labels that do not fit the values or the classes, and what `bootstrap_mean` refuses.
  """
  values, labels = np.asarray(values, np.float64), np.asarray(labels)
  _check(values, labels, classes, resamples, confidence, method)
  order, sizes = np.argsort(labels, kind="stable"), np.bincount(labels, minlength=classes)
  flat = values.reshape(len(values), -1)[order]
  mean = np.zeros((classes, flat.shape[1]))
  np.add.at(mean, labels[order], flat)
  mean = np.where(sizes[:, None] == 0, np.nan, mean / np.maximum(sizes, 1)[:, None])
  deviations = flat - mean[labels[order]]
  draws = _resampled_means(deviations, sizes, key, resamples)
  low, high = _bounds(draws, deviations, labels[order], confidence, method)
  low, high = mean + low, mean + high
  low[sizes == 1], high[sizes == 1] = -np.inf, np.inf
  low[sizes == 0], high[sizes == 0] = np.nan, np.nan
  shape = (classes, *values.shape[1:])
  return Estimate(mean.reshape(shape), low.reshape(shape), high.reshape(shape))


def resampled_means(
  values: Float[AnyArray, "b ..."], *, key: Array, resamples: int = 2000
) -> Float[np.ndarray, "r ..."]:
  """Means over images in each resample, the draws behind `bootstrap_mean`: for intervals of functions of means.

  Raises:
    ValueError: fewer than 2 images, or no resamples.
  """
  values = np.asarray(values, np.float64)
  _check(values, np.zeros(len(values), int), 1, resamples, 0.5, "percentile")
  flat = values.reshape(len(values), -1)
  draws = _resampled_means(flat - flat.mean(0), np.array([len(values)]), key, resamples)
  return (draws[:, 0] + flat.mean(0)).reshape(resamples, *values.shape[1:])


def bootstrap_few(
  values: Float[AnyArray, " n"], *, confidence: float = 0.95, resamples: int = 10_000
) -> tuple[float, float]:
  """Percentile bootstrap interval of the mean of a few values, exact up to 8 of them: no key, no noise.

  Of few values it is too short whatever their distribution: the mean of a resample cannot leave their range, and at 3
  values the range is the interval. Of normal values a 95 % interval covers the mean in 75 % of cases at 3 values,
  83 % at 5 and 91 % at 10, where a t interval covers 95 %. One value has an infinite interval.

  Raises:
    ValueError: no values, values that are not one-dimensional or not finite, or a confidence outside (0, 1).

  Source: Efron (1979), "Bootstrap methods: another look at the jackknife"; Fisher and Hall (1991), "Bootstrap
    algorithms for small samples".
  """
  x = np.asarray(values, np.float64)
  if x.ndim != 1 or not x.size or not np.isfinite(x).all() or not 0 < confidence < 1:
    raise ValueError(f"values {x.tolist()} must be finite numbers, confidence = {confidence} between 0 and 1")
  if len(x) < 2:
    return -math.inf, math.inf
  if len(x) > _ALL:
    found = bootstrap_mean(x, key=jax.random.key(0), resamples=resamples, confidence=confidence)
    return float(found.low), float(found.high)
  counts, probability = _multisets(len(x))
  means = x.mean() + counts @ (x - x.mean()) / len(x)  # of deviations: equal values have equal means
  order = np.argsort(means, kind="stable")
  below = np.cumsum(probability[order])
  # A hair's breadth: a sum that should be the tail must not miss it by rounding.
  tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2]) - 1e-12
  low, high = means[order][np.minimum(np.searchsorted(below, tails), len(means) - 1)]
  return float(low), float(high)


@cache
def _multisets(n: int) -> tuple[np.ndarray, np.ndarray]:
  """How often each of n values is drawn in each different resample, [r n], and the resamples' probabilities."""
  drawn = itertools.combinations_with_replacement(range(n), n)
  counts = np.array([np.bincount(d, minlength=n) for d in drawn])
  ways = [math.factorial(n) / math.prod(map(math.factorial, row)) for row in counts.tolist()]
  return counts.astype(np.float64), np.array(ways) / float(n) ** n


def _starts(sizes: np.ndarray) -> np.ndarray:
  return np.concatenate([[0], np.cumsum(sizes)[:-1]])


def _resampled_means(deviations: np.ndarray, sizes: np.ndarray, key: Array, resamples: int) -> np.ndarray:
  """float64 [r c k] from deviations [b k] sorted by class; of deviations, so that float32 rounds their size only."""
  members = np.repeat(np.arange(len(sizes)), sizes)
  scale = np.abs(deviations).max(axis=0, initial=0.0)
  scale = np.where(scale > 0, scale, 1.0)
  draws = _draw(
    jnp.asarray(deviations / scale, jnp.float32),
    jnp.asarray(members[None] == np.arange(len(sizes))[:, None], jnp.float32),
    jnp.asarray(_starts(sizes)[members], jnp.int32),
    jnp.asarray(sizes[members], jnp.int32),
    key,
    resamples=resamples,
  )
  return np.asarray(draws, np.float64) / np.maximum(sizes, 1)[:, None] * scale


@partial(jax.jit, static_argnames="resamples")
def _draw(
  values: Float[Array, "b k"],
  membership: Float[Array, "c b"],
  starts: Int[Array, " b"],
  sizes: Int[Array, " b"],
  key: Array,
  *,
  resamples: int,
) -> Float[Array, "r c k"]:
  """Sums by class over images drawn with replacement within their class."""
  b = values.shape[0]

  def one(k: Array) -> Float[Array, "c k"]:
    place = jnp.floor(jax.random.uniform(k, (b,)) * sizes.astype(jnp.float32)).astype(jnp.int32)
    index = starts + jnp.minimum(place, sizes - 1)
    counts = jnp.zeros(b).at[index].add(1.0)
    return jnp.einsum("cb,bk->ck", membership * counts[None], values, precision="highest")

  return jax.lax.map(one, jax.random.split(key, resamples), batch_size=_CHUNK)


def _bounds(
  draws: np.ndarray, deviations: np.ndarray, labels: np.ndarray, confidence: float, method: Method
) -> tuple[np.ndarray, np.ndarray]:
  tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
  if method == "percentile":
    low, high = np.quantile(draws, tails, axis=0)
    return low, high
  resamples, classes, _ = draws.shape
  below = ((draws < 0).mean(0) + (draws <= 0).mean(0)) / 2
  bias = ndtri(np.clip(below, 0.5 / resamples, 1 - 0.5 / resamples))
  members = labels[None] == np.arange(classes)[:, None]
  square, cube = (np.einsum("cb,bk->ck", members, deviations**p) for p in (2, 3))
  acceleration = np.where(square > 0, cube / (6 * np.where(square > 0, square, 1.0) ** 1.5), 0.0)
  ordered = np.sort(draws, axis=0)
  low, high = (_quantile(ordered, _shifted(tail, bias, acceleration)) for tail in tails)
  return low, high


def _shifted(tail: float, bias: np.ndarray, acceleration: np.ndarray) -> np.ndarray:
  z = bias + ndtri(tail)
  return ndtr(bias + z / (1 - acceleration * z))


def _quantile(ordered: np.ndarray, probability: np.ndarray) -> np.ndarray:
  """Linear interpolation between order statistics along axis 0, with a probability for each column."""
  place = np.where(np.isnan(probability), 0.0, probability) * (len(ordered) - 1)
  lower = np.floor(place).astype(int)
  upper = np.minimum(lower + 1, len(ordered) - 1)
  below, above = (np.take_along_axis(ordered, i[None], axis=0)[0] for i in (lower, upper))
  return below + (place - lower) * (above - below)


def _check(
  values: np.ndarray, labels: np.ndarray, classes: int, resamples: int, confidence: float, method: str
) -> None:
  if method not in ("percentile", "bca"):
    raise ValueError(f"method = {method!r}; known: 'percentile', 'bca'")
  if resamples < 1 or not 0 < confidence < 1:
    raise ValueError(f"resamples = {resamples} must be at least 1, confidence = {confidence} between 0 and 1")
  if labels.shape != values.shape[:1] or len(values) < 2:
    raise ValueError(
      f"values {values.shape} and labels {labels.shape} need one label for each of 2 or more images"
    )
  if labels.min() < 0 or labels.max() >= classes:
    raise ValueError(f"labels {labels.min()} .. {labels.max()} do not fit {classes} classes")
