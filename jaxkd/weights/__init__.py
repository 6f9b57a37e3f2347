"""Torch <-> jaxkd weights: key tables, strict conversion, readers of weight files, official weights by name."""

from jaxkd.weights.convert import Conversion, WeightsError, convert_state, from_torch, to_torch
from jaxkd.weights.tables import styles

__all__ = ["Conversion", "WeightsError", "convert_state", "from_torch", "styles", "to_torch"]
