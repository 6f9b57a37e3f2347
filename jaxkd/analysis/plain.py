"""Results of analyses as plain JSON data: lists, numbers, None where a number does not exist."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jaxkd.analysis.statistics import Interval


def plain(value: Any) -> Any:
  """Arrays as nested lists, numpy scalars as numbers, tuples as lists, NaN and infinities as None."""
  if isinstance(value, dict):
    return {str(k): plain(v) for k, v in value.items()}
  if isinstance(value, np.ndarray) or hasattr(value, "__array__"):
    return plain(np.asarray(value).tolist())
  if isinstance(value, (list, tuple)):
    return [plain(v) for v in value]
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  return value


def measured(estimate: Any) -> dict[str, Any]:
  """An estimate (value or mean, low, high) as {value, low, high}."""
  value = estimate.mean if isinstance(estimate, Interval) else estimate.value
  return plain({"value": value, "low": estimate.low, "high": estimate.high})
