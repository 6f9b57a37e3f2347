"""Whether a classifier is right as often as it says: reliability bins and calibration errors.

A binned calibration error is above 0 even for a perfectly calibrated model, because every bin is a finite sample, so
it is reported beside what such a model would show on the same confidences (consistency resampling; Broecker and
Smith, 2007, Weather and Forecasting 22(3)).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jaxkd.analysis.statistics import wilson

BINS = 15
RESAMPLES = 1000


def calibration(
  confidence: Float[np.ndarray, " n"],
  correct: Bool[np.ndarray, " n"],
  *,
  bins: int = BINS,
  resamples: int = RESAMPLES,
  seed: int = 0,
) -> dict[str, Any]:
  """Reliability of top-label confidences.

  - ece: `sum_b n_b/n |accuracy_b - confidence_b|` over `bins` intervals of equal width (Guo et al., ICML 2017,
    arXiv:1706.04599); an interval holds its upper end;
  - ece_adaptive: the same over bins of equal counts (Nguyen and O'Connor, EMNLP 2015, arXiv:1508.05154);
  - mce: the largest gap of a bin of equal width that holds an image;
  - ece_if_calibrated: {mean, high} (mean and 95 % quantile) of ece where outcomes are drawn with the stated
    confidences; an ece below `high` is no evidence of miscalibration;
  - mean_confidence, and bins: [{low, high, count, confidence, accuracy, accuracy_low, accuracy_high}], the last two
    from Wilson's 95 % interval; numbers of an empty bin are None.

  Raises:
    ValueError: no rows, shapes that differ, or confidences outside [0, 1].
  """
  if confidence.shape != correct.shape or confidence.ndim != 1 or not len(confidence):
    raise ValueError(f"confidence {confidence.shape} and correct {correct.shape} must be [n], n > 0")
  if confidence.min() < 0 or confidence.max() > 1 + 1e-6:
    raise ValueError(f"confidences reach from {confidence.min()} to {confidence.max()}, not within [0, 1]")
  place = equal_width(confidence, bins)
  drawn = np.random.default_rng(seed).random((resamples, len(confidence))) < confidence
  null = _errors(place, confidence, drawn, bins)
  return {
    "ece": float(_errors(place, confidence, correct[None], bins)[0]),
    "ece_adaptive": float(_errors(equal_count(confidence, bins), confidence, correct[None], bins)[0]),
    "mce": float(_gaps(place, confidence, correct, bins).max()),
    "ece_if_calibrated": {"mean": float(null.mean()), "high": float(np.quantile(null, 0.95))},
    "mean_confidence": float(confidence.mean()),
    "bins": [_bin(k, place == k, confidence, correct, bins) for k in range(bins)],
  }


def equal_width(confidence: np.ndarray, bins: int) -> np.ndarray:
  """The bin of each confidence among `bins` intervals (k/bins, (k+1)/bins]; 0 belongs to the first."""
  return np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)


def equal_count(confidence: np.ndarray, bins: int) -> np.ndarray:
  """The bin of each confidence when the sorted rows are cut into `bins` parts of equal size (up to one row)."""
  place = np.empty(len(confidence), int)
  order = np.argsort(confidence, kind="stable")
  for k, part in enumerate(np.array_split(order, bins)):
    place[part] = k
  return place


def _errors(place: np.ndarray, confidence: np.ndarray, correct: np.ndarray, bins: int) -> np.ndarray:
  """Expected calibration errors [r] of outcomes [r n]: per bin |sum of (outcome - confidence)|, over n."""
  member = (place[:, None] == np.arange(bins)).astype(np.float64)
  return np.abs((correct.astype(np.float64) - confidence) @ member).sum(1) / len(confidence)


def _gaps(place: np.ndarray, confidence: np.ndarray, correct: np.ndarray, bins: int) -> np.ndarray:
  count = np.bincount(place, minlength=bins)
  total = np.bincount(place, weights=correct - confidence, minlength=bins)
  return np.abs(total) / np.maximum(count, 1)


def _bin(
  k: int, inside: np.ndarray, confidence: np.ndarray, correct: np.ndarray, bins: int
) -> dict[str, Any]:
  count = int(inside.sum())
  found = wilson(int(correct[inside].sum()), count) if count else None
  return {
    "low": k / bins,
    "high": (k + 1) / bins,
    "count": count,
    "confidence": float(confidence[inside].mean()) if count else None,
    "accuracy": found.mean if found else None,
    "accuracy_low": found.low if found else None,
    "accuracy_high": found.high if found else None,
  }
