"""How similar two representations are (CKA), and what a frozen one knows of classes (k-NN, linear probe)."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxkd.losses.cka import centered_gram, median_squared_distance, unit_scale
from jaxkd.losses.tokens import unit_tokens

# Temperature of the k-NN vote (DINO, Caron et al., ICCV 2021).
_VOTE_TEMPERATURE = 0.07
_VOTE_CHUNK = 256

AnyArray = Array | np.ndarray
Rows = Float[AnyArray, "n _"]  # one layer: the same n rows as every other, of its own width

_bandwidth = jax.jit(median_squared_distance)


def cka_matrix(
  features_a: Sequence[Rows],
  features_b: Sequence[Rows],
  *,
  kernel: str = "linear",
  debiased: bool = True,
) -> Float[Array, "la lb"]:
  """CKA of every layer of one model with every layer of another on the same n rows, float32, full batch.

  Each layer's Gram matrix is made once: memory is `(la + lb) n^2` floats. `jaxkd.losses.cka` explains the
  options; a layer without structure has CKA 0 with everything.

  Raises:
    ValueError: no layers, row counts differ or are below 4, or the kernel is unknown.
  """
  check_rows("cka_matrix", features_a, features_b)
  same = features_b is features_a
  grams_a = _unit_grams(features_a, kernel, debiased)
  grams_b = grams_a if same else _unit_grams(features_b, kernel, debiased)
  return jnp.einsum("an,bn->ab", grams_a, grams_b, precision="highest")


def _unit_grams(features: Sequence[Rows], kernel: str, debiased: bool) -> Float[Array, "l nn"]:
  return jnp.stack([_unit_gram(jnp.asarray(x), kernel=kernel, debiased=debiased) for x in features])


@partial(jax.jit, static_argnames=("kernel", "debiased"))
def _unit_gram(x: Float[Array, "n d"], *, kernel: str, debiased: bool) -> Float[Array, " nn"]:
  gram = centered_gram(unit_scale(x), kernel=kernel, debiased=debiased).ravel()
  square = jnp.sum(gram * gram)
  return gram / jnp.sqrt(jnp.where(square <= 0.0, 1.0, square))


def check_rows(name: str, features_a: Sequence[Rows], features_b: Sequence[Rows]) -> None:
  """Raises ValueError unless there are layers on both sides, all [n d] with the same n rows."""
  shapes = [x.shape for x in (*features_a, *features_b)]
  if not features_a or not features_b:
    raise ValueError(f"{name}: no layers to compare ({len(features_a)} and {len(features_b)})")
  if any(len(s) != 2 for s in shapes) or len({s[0] for s in shapes}) != 1:
    raise ValueError(f"{name}: every layer must be [n d] with the same n rows, got {shapes}")


class BatchHsic(NamedTuple):
  """Unbiased HSIC of one batch, float32 on the device: between the models, and of each layer with itself."""

  cross: Float[Array, "la lb"]
  own_a: Float[Array, " la"]
  own_b: Float[Array, " lb"]


class CkaEstimate(NamedTuple):
  """Minibatch CKA and its jackknife standard error over batches (NaN from a single batch)."""

  value: Float[np.ndarray, "la lb"]
  stderr: Float[np.ndarray, "la lb"]
  batches: int


def squared_bandwidths(features: Sequence[Rows]) -> Float[Array, " l"]:
  """Squared RBF bandwidths, float32: the median squared distance of the rows seen in a first pass."""
  return jnp.stack([_bandwidth(jnp.asarray(x)) for x in features])


def cka_accumulate(
  state: tuple[BatchHsic, ...],
  features_a: Sequence[Rows],
  features_b: Sequence[Rows],
  *,
  bandwidths: tuple[Float[Array, " la"], Float[Array, " lb"]] | None = None,
) -> tuple[BatchHsic, ...]:
  """Adds one batch to the debiased minibatch estimator of Nguyen et al., ICLR 2021 (arXiv:2010.15327).

  Start from the empty tuple. What is kept of a batch is `la lb + la + lb` numbers, so one pass over any number of
  images does; nothing waits for the device before `cka_finish`. The kernel is linear without `bandwidths`, RBF with
  them (`squared_bandwidths`; the same ones for every batch, or the batches would be measured with different kernels).
  `features_b is features_a` saves half the work.

  Raises:
    ValueError: no layers, row counts differ or are below 4, or earlier batches had other layer counts.
  """
  check_rows("cka_accumulate", features_a, features_b)
  if state and state[0].cross.shape != (len(features_a), len(features_b)):
    raise ValueError(
      f"cka_accumulate: {len(features_a)} x {len(features_b)} layers after a batch of {state[0].cross.shape}"
    )
  sigma_a, sigma_b = bandwidths or (None, None)
  a = [jnp.asarray(x) for x in features_a]
  b = None if features_b is features_a else [jnp.asarray(x) for x in features_b]
  return (*state, BatchHsic(*_batch_hsic(a, b, sigma_a, sigma_b)))


def cka_finish(state: tuple[BatchHsic, ...]) -> CkaEstimate:
  """Ratio of the summed HSIC, with leave-one-batch-out standard errors.

  Raises:
    ValueError: no batch was accumulated.
  """
  if not state:
    raise ValueError("cka_finish: no batch was accumulated; call cka_accumulate first")
  batches = len(state)
  cross, own_a, own_b = (np.stack(v).astype(np.float64) for v in zip(*jax.device_get(state), strict=True))
  value = _ratio(cross.sum(0), own_a.sum(0), own_b.sum(0))
  if batches == 1:
    return CkaEstimate(value, np.full_like(value, np.nan), batches)
  left_out = np.stack(
    [_ratio(*(np.delete(v, i, 0).sum(0) for v in (cross, own_a, own_b))) for i in range(batches)]
  )
  return CkaEstimate(value, np.sqrt((batches - 1) * left_out.var(axis=0)), batches)


def _ratio(cross: np.ndarray, own_a: np.ndarray, own_b: np.ndarray) -> np.ndarray:
  square = own_a[:, None] * own_b[None, :]
  return np.where(square <= 0.0, 0.0, cross / np.sqrt(np.where(square <= 0.0, 1.0, square)))


@jax.jit
def _batch_hsic(features_a, features_b, sigma_a, sigma_b):
  n = features_a[0].shape[0]
  a = _raw_grams(features_a, sigma_a)
  b = a if features_b is None else _raw_grams(features_b, sigma_b)
  pairs = n * (n - 3)
  cross = jnp.einsum("an,bn->ab", a, b, precision="highest")
  return cross / pairs, jnp.sum(a * a, axis=1) / pairs, jnp.sum(b * b, axis=1) / pairs


def _raw_grams(features: Sequence[Array], sigma2: Array | None) -> Float[Array, "l nn"]:
  if sigma2 is None:
    return jnp.stack([centered_gram(x).ravel() for x in features])
  return jnp.stack(
    [centered_gram(x, kernel="rbf", sigma2=s).ravel() for x, s in zip(features, sigma2, strict=True)]
  )


def knn_accuracy(
  train_features: Float[AnyArray, "n d"],
  train_labels: Int[AnyArray, " n"],
  test_features: Float[AnyArray, "m d"],
  test_labels: Int[AnyArray, " m"],
  *,
  k: int = 20,
) -> float:
  """Accuracy in [0, 1] of the weighted k-nearest-neighbour vote of DINO (Caron et al., ICCV 2021).

  Neighbours by cosine similarity; each votes for its class with `exp(similarity / 0.07)`; of equal classes
  the lower number wins. Test rows go through in chunks of 256, so memory is 256 n floats.

  Raises:
    ValueError: shapes do not fit, or `k` is not in 1 .. n.
  """
  _check_labelled("knn_accuracy", train_features, train_labels, test_features, test_labels)
  if not 1 <= k <= len(train_features):
    raise ValueError(f"knn_accuracy: k is {k}; it must be in 1 .. {len(train_features)} (the training rows)")
  classes = int(np.max(train_labels)) + 1
  train, test = (jnp.asarray(x) for x in (train_features, test_features))
  votes = np.asarray(_vote(train, jnp.asarray(train_labels), test, k=k, classes=classes))
  return float(np.mean(votes == np.asarray(test_labels)))


def _check_labelled(
  name: str, train: AnyArray, train_labels: AnyArray, test: AnyArray, test_labels: AnyArray
) -> None:
  rows_fit = train.shape[:1] == train_labels.shape and test.shape[:1] == test_labels.shape
  if (
    train.ndim != 2 or test.ndim != 2 or train.shape[1] != test.shape[1] or not rows_fit or not test.shape[0]
  ):
    raise ValueError(
      f"{name}: features {train.shape} and {test.shape} must be [n d] and [m d], m > 0, "
      f"labels {train_labels.shape} and {test_labels.shape} [n] and [m]"
    )


@partial(jax.jit, static_argnames=("k", "classes"))
def _vote(train: Array, labels: Array, test: Array, *, k: int, classes: int) -> Int[Array, " m"]:
  train = unit_tokens(train)

  def winner(row: Float[Array, " d"]) -> Int[Array, ""]:
    similarity = jnp.einsum("nd,d->n", train, unit_tokens(row), precision="highest")
    nearest, index = jax.lax.top_k(similarity, k)
    votes = jnp.exp(nearest / _VOTE_TEMPERATURE)
    return jnp.zeros(classes).at[labels[index]].add(votes).argmax()

  return jax.lax.map(winner, test, batch_size=_VOTE_CHUNK)


def linear_probe(
  train_features: Float[AnyArray, "n d"],
  train_labels: Int[AnyArray, " n"],
  test_features: Float[AnyArray, "m d"],
  test_labels: Int[AnyArray, " m"],
) -> float:
  """Accuracy in [0, 1] of logistic regression (scikit-learn, C = 1) on standardised features.

  Mean and deviation of the standardisation come from the training rows.

  Raises:
    ValueError: shapes do not fit, or there are fewer than two classes.
  """
  _check_labelled("linear_probe", train_features, train_labels, test_features, test_labels)
  # A second to import, and nothing else here needs it.
  from sklearn.linear_model import LogisticRegression
  from sklearn.pipeline import make_pipeline
  from sklearn.preprocessing import StandardScaler

  arrays = [np.asarray(x, np.float64) for x in (train_features, test_features)]
  probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
  probe.fit(arrays[0], np.asarray(train_labels))
  return float(probe.score(arrays[1], np.asarray(test_labels)))
