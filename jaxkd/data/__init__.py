"""Data sets as uint8 arrays, seeded splits, and augmentation that runs inside the training step."""

from jaxkd.data.augment import make_views
from jaxkd.data.order import batch_indices, steps_per_epoch
from jaxkd.data.sources import Dataset, Split, load, load_test

__all__ = ["Dataset", "Split", "batch_indices", "load", "load_test", "make_views", "steps_per_epoch"]
