"""Measures of classification from logits and labels, each with its uncertainty over images.

Shares have Wilson 95 % intervals; other measures have percentile bootstrap intervals over images (Efron and
Tibshirani, 1993). A resample is a vector of counts, so every measure of it is a weighted sum: nothing is sorted or
copied per resample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn import metrics as sk

from jaxkd.analysis.statistics import wilson
from jaxkd.calibration import calibration

RESAMPLES = 1000
CHUNK = 100  # resamples whose counts are in memory at once
ROC_POINTS = 300  # a curve is stored with at most about this many points; its area is exact

Measured = dict[str, float]


def probabilities(logits: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
  """Softmax by row, float64."""
  z = logits.astype(np.float64)
  return np.exp(z - np.logaddexp.reduce(z, axis=1, keepdims=True))


def classification_report(
  logits: Float[np.ndarray, "n c"],
  labels: Int[np.ndarray, " n"],
  class_names: tuple[str, ...],
  *,
  resamples: int = RESAMPLES,
  seed: int = 0,
) -> dict[str, Any]:
  """Everything `evaluate` says of one head.

  Shares are in [0, 1]; `{value, low, high}` is an estimate with its 95 % interval over images: Wilson's for accuracy,
  top-k, recall and precision by class, the bootstrap's for macro scores, AUC, loss and Brier score. ROC curves are
  one-vs-rest. Macro averages are over the classes that occur; a class without an image has recall and F1 None, and one
  that is never predicted has precision 0.

  Returns:
    dict of examples, accuracy, top_k {k: ...}, loss (nats), brier (0 to 2; Brier, 1950), macro {precision, recall, f1,
    auc}, per_class {name: {precision, recall, f1, auc, examples, predicted}}, confusion [c c] (rows: true), roc
    {name: {auc, fpr, tpr}}, calibration (see `jaxkd.calibration.calibration`).

  Raises:
    ValueError: shapes do not fit, no rows, or a label outside the classes.
  """
  _check(logits, labels, class_names)
  p, predicted = probabilities(logits), logits.argmax(1)
  confusion = sk.confusion_matrix(labels, predicted, labels=np.arange(len(class_names)))
  curves = [_Ranked(p[:, i], labels == i) for i in range(len(class_names))]
  present = [i for i, r in enumerate(curves) if 0 < r.positive.sum() < len(labels)]
  brier = ((p - np.eye(len(class_names))[labels]) ** 2).sum(1)
  intervals = _bootstrap(
    len(labels),
    {
      "loss": lambda w: w @ _losses(logits, labels) / len(labels),
      "brier": lambda w: w @ brier / len(labels),
      "auc": lambda w: _nan_mean([curves[i].area(w) for i in present], len(w)),
      **_macro_scores(labels * len(class_names) + predicted, len(class_names)),
    },
    resamples=resamples,
    seed=seed,
  )
  return {
    "examples": len(labels),
    "accuracy": _share(predicted == labels),
    "top_k": {str(k): _share(_in_top(logits, labels, k)) for k in (2, 3, 5) if k < len(class_names)},
    "loss": intervals["loss"],
    "brier": intervals["brier"],
    "macro": {k: intervals[k] for k in ("precision", "recall", "f1", "auc")},
    "per_class": {n: _of_class(i, confusion, curves[i]) for i, n in enumerate(class_names)},
    "confusion": confusion.tolist(),
    "roc": {class_names[i]: _roc(p[:, i], labels == i) for i in present},
    "calibration": calibration(p.max(1), predicted == labels, seed=seed),
  }


def confident_mistakes(
  logits: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"], count: int
) -> list[dict[str, Any]]:
  """The wrongly classified rows with the highest probability of the wrong class, highest first.

  Each is {index, true, predicted: int, confidence, probability_of_true}.
  """
  p, predicted = probabilities(logits), logits.argmax(1)
  wrong = np.flatnonzero(predicted != labels)
  order = wrong[np.argsort(-p[wrong, predicted[wrong]], kind="stable")][:count]
  return [
    {
      "index": int(i),
      "true": int(labels[i]),
      "predicted": int(predicted[i]),
      "confidence": float(p[i, predicted[i]]),
      "probability_of_true": float(p[i, labels[i]]),
    }
    for i in order
  ]


def _check(logits: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> None:
  if logits.shape != (len(labels), len(class_names)) or not len(labels):
    raise ValueError(
      f"logits {logits.shape} must be [n c] for {len(labels)} labels and {len(class_names)} classes, n > 0"
    )
  if labels.min() < 0 or labels.max() >= len(class_names):
    raise ValueError(
      f"labels reach from {labels.min()} to {labels.max()}, but there are {len(class_names)} classes"
    )


def _losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  z = logits.astype(np.float64)
  return np.logaddexp.reduce(z, axis=1) - z[np.arange(len(labels)), labels]


def _share(hits: np.ndarray) -> Measured:
  found = wilson(int(hits.sum()), len(hits))
  return {"value": found.mean, "low": found.low, "high": found.high}


def _in_top(logits: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
  """Whether each row's label is among its k largest logits."""
  best = np.argpartition(-logits, k - 1, axis=1)[:, :k]
  return (best == labels[:, None]).any(1)


def _of_class(i: int, confusion: np.ndarray, ranked: _Ranked) -> dict[str, Any]:
  right, true, predicted = (int(x) for x in (confusion[i, i], confusion[i].sum(), confusion[:, i].sum()))
  area = float(ranked.area(np.ones((1, len(ranked.positive))))[0])
  return {
    "precision": _wilson_of(right, predicted) if predicted else {"value": 0.0, "low": None, "high": None},
    "recall": _wilson_of(right, true) if true else None,
    "f1": 2 * right / (true + predicted) if true else None,
    "auc": area if np.isfinite(area) else None,
    "examples": true,
    "predicted": predicted,
  }


def _wilson_of(right: int, total: int) -> Measured:
  found = wilson(right, total)
  return {"value": found.mean, "low": found.low, "high": found.high}


def _macro_scores(cell: np.ndarray, classes: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
  """Macro precision, recall and F1 of weights [r n]; `cell` is true * classes + predicted."""

  def tables(weights: np.ndarray) -> tuple[np.ndarray, ...]:
    counts = np.stack([np.bincount(cell, weights=w, minlength=classes**2) for w in weights])
    table = counts.reshape(-1, classes, classes)
    return np.diagonal(table, axis1=1, axis2=2), table.sum(2), table.sum(1)

  def over_present(values: np.ndarray, true: np.ndarray) -> np.ndarray:
    return (values * (true > 0)).sum(1) / (true > 0).sum(1)

  def precision(weights: np.ndarray) -> np.ndarray:
    right, true, predicted = tables(weights)
    return over_present(right / np.maximum(predicted, 1), true)

  def recall(weights: np.ndarray) -> np.ndarray:
    right, true, _ = tables(weights)
    return over_present(right / np.maximum(true, 1), true)

  def f1(weights: np.ndarray) -> np.ndarray:
    right, true, predicted = tables(weights)
    return over_present(2 * right / np.maximum(true + predicted, 1), true)

  return {"precision": precision, "recall": recall, "f1": f1}


class _Ranked:
  """Scores of one class sorted once, for the area under the ROC curve of any weighting of the rows."""

  def __init__(self, score: np.ndarray, positive: np.ndarray):
    self.order = np.argsort(score, kind="stable")
    self.positive = positive[self.order].astype(np.float64)
    ordered = score[self.order]
    self.starts = np.flatnonzero(np.r_[True, ordered[1:] > ordered[:-1]])  # of each group of equal scores

  def area(self, weights: np.ndarray) -> np.ndarray:
    """[r n] weights -> [r]: the share of (positive, negative) pairs in the right order, ties counting half."""
    w = weights[:, self.order]
    positive = np.add.reduceat(w * self.positive, self.starts, axis=1)
    negative = np.add.reduceat(w * (1 - self.positive), self.starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative
    pairs = positive.sum(1) * negative.sum(1)
    won = (positive * (below + negative / 2)).sum(1)
    return np.where(pairs > 0, won / np.where(pairs > 0, pairs, 1), np.nan)


def _nan_mean(columns: list[np.ndarray], rows: int) -> np.ndarray:
  """Mean over the classes that a resample kept; NaN where it kept none."""
  if not columns:
    return np.full(rows, np.nan)
  stacked = np.stack(columns)
  kept = np.isfinite(stacked)
  return np.where(kept.any(0), np.where(kept, stacked, 0).sum(0) / np.maximum(kept.sum(0), 1), np.nan)


def _bootstrap(
  n: int, measures: dict[str, Callable[[np.ndarray], np.ndarray]], *, resamples: int, seed: int
) -> dict[str, dict[str, float | None]]:
  """Value on the sample and percentile interval over resamples for each measure of weights [r n] -> [r]."""
  rng = np.random.default_rng(seed)
  draws: dict[str, list[np.ndarray]] = {name: [] for name in measures}
  for start in range(0, resamples, CHUNK):
    rows = rng.integers(0, n, (min(CHUNK, resamples - start), n))
    weights = np.stack([np.bincount(r, minlength=n) for r in rows]).astype(np.float64)
    for name, measure in measures.items():
      draws[name].append(measure(weights))
  out = {}
  for name, measure in measures.items():
    values = np.concatenate(draws[name])
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, (0.025, 0.975)) if len(values) else (None, None)
    value = float(measure(np.ones((1, n)))[0])
    out[name] = {
      "value": value if np.isfinite(value) else None,
      "low": None if low is None else float(low),
      "high": None if high is None else float(high),
    }
  return out


def _roc(score: np.ndarray, positive: np.ndarray) -> dict[str, Any]:
  false_positive, true_positive, _ = sk.roc_curve(positive, score)
  area = float(sk.auc(false_positive, true_positive))
  kept = np.unique(np.linspace(0, len(false_positive) - 1, ROC_POINTS).round().astype(int))
  return {"auc": area, "fpr": false_positive[kept].tolist(), "tpr": true_positive[kept].tolist()}
