"""The conversion commands in a checkout: `python -m convert`. Everything lives in `jaxkd.weights`."""

from jaxkd.weights import convert_state, from_torch, to_torch

__all__ = ["convert_state", "from_torch", "to_torch"]
