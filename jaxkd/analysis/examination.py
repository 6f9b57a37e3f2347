"""Each kind of evidence about one model as plain data: the parts from which `analysis.forensics` makes an entry.

A part takes what it looks at and gives a dict in the schema `jaxkd.forensics/2`, or None where the model has nothing
of that kind. Images are uint8; `shown` brings them into the model's own normalisation.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import flax.linen as nn
import jax
import numpy as np

from jaxkd.analysis import layers, locality, receptive_field, robustness, spectrum
from jaxkd.analysis.attention import COLLAPSED, uniform_distance
from jaxkd.analysis.bootstrap import bootstrap_mean
from jaxkd.analysis.layers import Shown
from jaxkd.analysis.plain import measured, plain
from jaxkd.analysis.saliency import METHODS, feature_maps, saliency
from jaxkd.analysis.streaming import attends, layer_names
from jaxkd.data import Split
from jaxkd.teachers import normalize

ERF_IMAGES = 32  # images whose gradients make a receptive field
PICTURES = 4  # images explained, and shown as feature maps
CHANNELS = 8  # feature maps of each of them
PROBE_IMAGES = 2000  # training images of the k-NN and linear probes
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the patches that are disturbed


@dataclasses.dataclass(frozen=True)
class Subject:
  """A model under examination, built in float32 with XLA attention. `about` is copied into its entry.

  `input_size` is the side of the images it is shown, 0 for the model's own `image_size`.
  """

  name: str
  model: nn.Module
  variables: Any
  mean: tuple[float, ...]
  std: tuple[float, ...]
  about: dict[str, Any]
  input_size: int = 0

  @property
  def classifies(self) -> bool:
    return bool(self.about["num_classes"])

  @property
  def side(self) -> tuple[int, int]:
    """Rows and columns of pixels of its images."""
    return (self.input_size, self.input_size) if self.input_size else self.model.image_size

  @property
  def grid(self) -> tuple[int, int]:
    """Rows and columns of a transformer's patches on them."""
    rows, columns = (side // self.model.patch_size for side in self.side)
    return rows, columns

  def levels(self, images: np.ndarray) -> np.ndarray:
    """uint8 images [b h w c] in this model's channels and size: as they are, or float32 in [0, 1] where grey had to be
    repeated or the size brought to `side` (cubic, as a teacher sees them)."""
    images = np.asarray(images)
    if images.shape[-1] == 1 and len(self.mean) == 3:
      images = np.repeat(images, 3, axis=-1)
    if images.shape[1:3] == tuple(self.side):
      return images
    shape = (images.shape[0], *self.side, images.shape[-1])
    return np.clip(jax.image.resize(images.astype(np.float32) / np.float32(255), shape, "cubic"), 0, 1)

  def shown(self, images: np.ndarray) -> Shown:
    """uint8 images [b h w c] as this model sees them: `levels`, normalised."""
    levels = self.levels(images)
    levels = levels.astype(np.float32) / np.float32(255) if levels.dtype == np.uint8 else levels
    on_host = np.asarray(normalize(levels, self.mean, self.std))  # batches of it go to the devices
    return Shown(self.model, self.variables, cast(jax.Array, on_host))


def short(layer: str) -> str:
  """`block03/tokens` -> `block03`."""
  return layer.removesuffix("/tokens")


def attention(
  subject: Subject, test: Split, images: int, *, key: jax.Array, by_class: bool
) -> tuple[dict[str, Any], np.ndarray]:
  """Statistics of a transformer's attention by layer and head with intervals over images; distances [b] by image."""
  seen = subject.shown(test.images[:images])
  per_image = locality.attention_per_image(*seen)
  found = locality.summarize_attention(per_image, key=key)
  distance = per_image["mean_distance"].mean(2)
  uniform = uniform_distance(subject.grid)
  heads = {name: plain(e.value) for name, e in found["heads"].items()}
  out = {
    "images": images,
    "uniform_distance": uniform,
    **{name: value for name, value in heads.items() if not name.startswith("rollout_")},
    "collapsed": (per_image["mean_distance"].mean(1) < COLLAPSED * uniform).tolist(),
    "layer_distance": {
      "mean": distance.mean(1).tolist(),
      "stderr": (distance.std(1, ddof=1) / np.sqrt(images)).tolist(),
    },
    "model": {name: measured(e) for name, e in found["model"].items()},
    "layers": {name: measured(e) for name, e in found["layers"].items()},
  }
  if by_class:
    labels = np.asarray(test.labels[:images])
    classes = int(labels.max()) + 1
    sorted_out = locality.attention_by_class(per_image, labels, classes=classes, key=key)["model"]
    out["by_class"] = {
      name: measured(sorted_out[name]) for name in ("mean_distance", "cls_dispersion") if name in sorted_out
    }
  return out, distance.mean(0)


def receptive(subject: Subject, images: np.ndarray, *, key: jax.Array) -> dict[str, Any]:
  """How far the centre token of each layer looks, in pixels, and where (`energy` of the last layer, largest 1)."""
  seen = subject.shown(images[:ERF_IMAGES])
  found = receptive_field.effective_receptive_field(*seen, key=key)
  distance = bootstrap_mean(found.mean_distance.T, key=key)
  last = found.energy[-1] / max(found.energy[-1].max(), 1e-30)
  return {
    "images": len(seen.images),
    "layers": [short(n) for n in found.layers],
    "mean_distance": measured(distance),
    "uniform_distance": plain(found.uniform_distance),
    "radius": plain(found.radius),
    "energy": plain(last.round(5)),
  }


def fourier(subject: Subject, images: np.ndarray, *, key: jax.Array) -> dict[str, Any]:
  """Log amplitude by spatial frequency of every layer whose map has at least 2 x 2 cells."""
  seen = subject.shown(images)
  found = spectrum.feature_spectra(*seen)
  grids = layers.layer_grids(seen)
  return {
    "images": len(images),
    "layers": {
      short(name): {
        "frequencies": plain(spectrum.spectrum_frequencies(grids[name])),
        **measured(bootstrap_mean(x, key=key)),
      }
      for name, x in found.items()
    },
  }


def disturbed(subject: Subject, test: Split, images: int, *, key: jax.Array) -> dict[str, Any] | None:
  """Accuracy when patches trade places, and when they are hidden."""
  if not subject.classifies:
    return None
  seen, labels = subject.shown(test.images[:images]), np.asarray(test.labels[:images])
  side = seen.images.shape[1]
  patches = [p for p in (side // 8, side // 4) if p > 0 and side % p == 0][-2:] or [1]
  out: dict[str, Any] = {"images": images}
  for disturbance in ("shuffle", "occlude"):
    rows = robustness.robustness_curve(
      *seen, labels, disturbance=disturbance, patches=patches, shares=SHARES, key=key
    )
    out[disturbance] = [
      {"patch": r.patch, "share": r.share, "moved": r.moved, **measured(r.accuracy)} for r in rows
    ]
  return out


def probed(subject: Subject, train: Split, test: Split) -> dict[str, Any]:
  """k-NN and linear-probe accuracy on the pooled features of every layer."""
  rows = [
    layers.layer_rows(subject.shown(split.images[:PROBE_IMAGES]), pooled=True) for split in (train, test)
  ]
  labels = [np.asarray(split.labels[:PROBE_IMAGES]) for split in (train, test)]
  found = layers.layer_probes(rows[0], labels[0], rows[1], labels[1])
  return {
    "train_images": len(labels[0]),
    "images": len(labels[1]),
    "layers": [short(n) for n in found],
    **{
      kind: [measured(getattr(accuracy, kind)) for accuracy in found.values()] for kind in ("knn", "linear")
    },
  }


def explained(subject: Subject, images: np.ndarray) -> dict[str, np.ndarray]:
  """Heat maps [b h w] in [0, 1] of the class the model names, by method: those the model can serve."""
  if not subject.classifies:
    return {}
  methods = METHODS if attends(subject.model) else ("grad_cam",)
  seen = subject.shown(images)
  return {method: saliency(*seen, method=method) for method in methods}


def features(subject: Subject, images: np.ndarray) -> dict[str, np.ndarray]:
  """Feature maps [b k y x] in [0, 1] of a first, a middle and the last layer, most varied channels first."""
  names = layer_names(subject.model)
  chosen = dict.fromkeys((names[0], names[len(names) // 2], names[-1]))
  seen = subject.shown(images)
  return {short(n): feature_maps(*seen, layer=n, count=CHANNELS)[0] for n in chosen}


def conflict(
  subject: Subject, images: np.ndarray, by_global: np.ndarray, by_local: np.ndarray
) -> dict[str, Any]:
  """Which cue the decisions follow on images whose two cues say different classes."""
  found = robustness.cue_conflict(*subject.shown(images), np.asarray(by_global), np.asarray(by_local))
  counts = {k: getattr(found, k) for k in ("follow_global", "follow_local", "neither")}
  return {"global_share": measured(found.global_share), **counts}
