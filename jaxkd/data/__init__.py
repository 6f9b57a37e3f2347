"""Data sets as uint8 arrays, seeded splits, and augmentation that runs inside the training step."""

from jaxkd.data.augment import make_views
from jaxkd.data.order import batch_indices, geometry_indices, steps_per_epoch
from jaxkd.data.shapes import cue_conflict
from jaxkd.data.sources import Dataset, Split, balanced_sample, load, load_test

__all__ = [
  "Dataset",
  "Split",
  "balanced_sample",
  "batch_indices",
  "cue_conflict",
  "geometry_indices",
  "load",
  "load_test",
  "make_views",
  "steps_per_epoch",
]
