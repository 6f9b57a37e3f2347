"""Data sets that need no files: scikit-learn's digits and seeded noise patterns."""

from __future__ import annotations

import numpy as np

from jaxkd.data.source import Arrays, Source

SIDE = 16  # of both, where `data.image_size` is 0


def open_digits(options) -> Source:
  """1,797 handwritten digits, 8x8 with 17 grey levels (Alpaydin and Kaynak, 1998; bundled with scikit-learn)."""

  def read() -> Arrays:
    from sklearn import datasets  # slow to import

    raw = datasets.load_digits()
    return np.round(raw.images * (255 / 16)).astype(np.uint8), raw.target

  return Source(tuple("0123456789"), read, size=SIDE)


def open_synthetic(options) -> Source:
  """Seeded noise around one random pattern per class: for smoke runs and tests, not for claims."""

  def read() -> Arrays:
    rng = np.random.default_rng(20)
    side = options.image_size or SIDE
    shape = (side, side, options.channels or 3)
    patterns = rng.integers(40, 216, (options.classes, *shape))
    labels = np.arange(options.examples, dtype=np.int32) % options.classes
    images = patterns[labels] + rng.normal(0, 20, (options.examples, *shape))
    return np.clip(images, 0, 255).astype(np.uint8), labels

  return Source(tuple(f"class{i}" for i in range(options.classes)), read, size=SIDE)
