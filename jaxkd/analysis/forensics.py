"""All analyses of one model, and what models have in common, on the same images, as plain dicts.

The dicts follow the schema `jaxkd.forensics/2` that `jaxkd.report` documents and draws.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import jax
import numpy as np

from jaxkd import allocator, evaluation
from jaxkd.analysis import alignment, examination, flatness, layers, statistics
from jaxkd.analysis.examination import Subject, short
from jaxkd.analysis.plain import plain
from jaxkd.analysis.streaming import attends, layer_names
from jaxkd.data import Split

__all__ = [
  "METRICS",
  "SCHEMA",
  "STANDARD",
  "Observed",
  "Subject",
  "comparisons",
  "examine",
  "observe",
  "similarities",
]

SCHEMA = "jaxkd.forensics/2"

METRICS = {
  "hessian": "trace of the loss's Hessian, whole, by block and by layer type",
  "heads": "the Hessian's trace by attention head",
  "eigenvalues": "the Hessian's largest eigenvalues and the density of all",
  "landscape": "the loss along eigenvectors and random directions; sharpness; Gauss-Newton trace",
  "attention": "distance, entropy and cls statistics by layer and head, and of the rollout",
  "classes": "attention distance by class",
  "cka": "debiased linear CKA between layers, inside each model and between models",
  "rbf": "the same with the RBF kernel",
  "alignment": "Procrustes similarity and mutual nearest neighbours between layers",
  "probes": "k-NN and linear-probe accuracy of every layer",
  "locality": "effective receptive field and Fourier spectrum of every layer",
  "robustness": "accuracy with shuffled and with hidden patches; cue conflict on synthetic_shapes",
  "saliency": "pictures: Grad-CAM, attention rollout, gradient-weighted attention",
  "features": "pictures: feature maps of a first, a middle and the last layer",
}
STANDARD = ("hessian", "attention", "cka", "locality", "saliency")
KERNELS = {"linear": "linear", "rbf": "RBF"}  # as they are written
PAIRS = ("cka", "rbf", "alignment")  # those that look at two models at once


@dataclasses.dataclass(frozen=True)
class Observed:
  """The entry of one model, and the values by image or by probe on which paired comparisons rest."""

  entry: dict[str, Any]
  values: dict[str, np.ndarray]


def examine(subject: Subject, test: Split, sample: Split, **options: Any) -> dict[str, Any]:
  """The entry of one model; see `observe`."""
  return observe(subject, test, sample, **options).entry


def observe(
  subject: Subject,
  test: Split,
  sample: Split,
  *,
  images: int,
  probes: int,
  key: jax.Array,
  metrics: Collection[str] = ("hessian", "attention"),
  train: Split | None = None,
  batch_size: int = 256,
) -> Observed:
  """Accuracy of one model on `test`, and what `metrics` names.

  Curvature is taken on `sample`, everything else on the first `images` of `test`; `train` is for `probes` only. What
  a model has nothing of (curvature without a classifier, attention of a CNN) is None.

  Raises:
    ValueError: an unknown metric, or `probes` without `train`.
  """
  if unknown := [m for m in metrics if m not in METRICS]:
    raise ValueError(f"unknown metric '{unknown[0]}'; known: {', '.join(METRICS)}")
  part, values = test.images[:images], {}
  entry: dict[str, Any] = {
    "name": subject.name,
    **{k: v for k, v in subject.about.items() if k != "num_classes"},
    "parameters": sum(x.size for x in jax.tree.leaves(subject.variables["params"])),
    "special_tokens": subject.model.special_tokens,
    "grid": list(subject.grid) if attends(subject.model) else None,
    "accuracy": {},
    "hessian": None,
    "attention": None,
  }
  if subject.classifies:
    entry["accuracy"], values["accuracy_cls"] = _accuracy(subject, test, batch_size)
    allocator.give_back()
  if subject.classifies and set(metrics) & set(flatness.PARTS):
    entry |= flatness.examined(subject, sample, metrics, probes=probes, key=key)
    values |= {"hessian_trace": v} if (v := entry.pop("probe_values", None)) is not None else {}
    allocator.give_back()  # the largest programs' buffers, before the next kind of program
  if {"attention", "classes"} & set(metrics) and attends(subject.model):
    by_class = "classes" in metrics
    entry["attention"], values["mean_distance"] = examination.attention(
      subject, test, images, key=key, by_class=by_class
    )
  if "locality" in metrics:
    entry["receptive_field"] = examination.receptive(subject, part, key=key)
    entry["spectrum"] = examination.fourier(subject, part, key=key)
  if "robustness" in metrics:
    entry["robustness"] = examination.disturbed(subject, test, images, key=key)
  if "probes" in metrics:
    if train is None:
      raise ValueError("probes of layers need training images")
    entry["probes"] = examination.probed(subject, train, test)
  return Observed(entry, values)


def _accuracy(subject: Subject, test: Split, batch_size: int) -> tuple[dict[str, Any], np.ndarray]:
  """Accuracy of every head with Wilson's interval, and which images the cls head gets right, [n] of 0 and 1."""
  seen = Split(subject.levels(test.images[:]), test.labels)
  logits = evaluation.head_logits(
    subject.model, subject.variables, seen, mean=subject.mean, std=subject.std, batch_size=batch_size
  )
  right = {head: z.argmax(1) == test.labels for head, z in logits.items()}
  out = {}
  for head, hits in right.items():
    interval = statistics.wilson(int(hits.sum()), len(test))
    out[head] = {"value": interval.mean, "low": interval.low, "high": interval.high}
  return out, right["cls"].astype(np.float64)


def similarities(
  subjects: Sequence[Subject], images: np.ndarray, *, kernels: Sequence[str] = ("linear",)
) -> list[dict[str, Any]]:
  """Debiased minibatch CKA, layer by layer, of every model with itself and with every other one, for each kernel."""
  seen = [s.shown(images) for s in subjects]
  out = []
  for kernel in kernels:
    for i, a in enumerate(subjects):
      for j in range(i, len(subjects)):
        found = layers.model_cka(seen[i], None if i == j else seen[j], kernel=kernel)
        batches = f"{found.batches} batches" if found.batches > 1 else "one batch"
        out.append(
          {
            **_pair(a, subjects[j]),
            "matrix": plain(found.value),
            "stderr": plain(found.stderr),
            "kernel": kernel,
            "images": len(images),
            "estimator": f"debiased {KERNELS[kernel]}, {batches}, flattened patch tokens, one row per image",
          }
        )
  return out


def alignments(subjects: Sequence[Subject], images: np.ndarray, *, k: int = 10) -> list[dict[str, Any]]:
  """Procrustes similarity and the share of mutual nearest neighbours of every two models' pooled layers."""
  rows = [list(layers.layer_rows(s.shown(images), pooled=True).values()) for s in subjects]
  return [
    {
      **_pair(a, subjects[j]),
      "procrustes": plain(alignment.procrustes_matrix(rows[i], rows[j])),
      "mutual_knn": plain(alignment.mutual_knn_matrix(rows[i], rows[j], k=k)),
      "k": k,
      "images": len(images),
    }
    for i, a in enumerate(subjects)
    for j in range(i + 1, len(subjects))
  ]


def _pair(a: Subject, b: Subject) -> dict[str, Any]:
  return {
    "a": a.name,
    "b": b.name,
    "layers_a": [short(n) for n in layer_names(a.model)],
    "layers_b": [short(n) for n in layer_names(b.model)],
  }


def comparisons(observed: Sequence[Observed]) -> list[dict[str, Any]]:
  """Every model against the first, paired by image (accuracy, attention distance) or by probe (Hessian trace), with
  t intervals at the level that Holm's procedure gives each over all of them.

  They cover the choice of images and probes for these checkpoints, and say nothing of other training runs. Attention
  distances of different grids are not compared.
  """
  first = observed[0]
  values: dict[str, dict[str, dict[int, float]]] = {}
  pairs = []
  for other in observed[1:]:
    for metric, mine in first.values.items():
      theirs = other.values.get(metric)
      if theirs is None or len(theirs) != len(mine) or len(mine) < 2 or not _comparable(metric, first, other):
        continue
      for one, data in ((first, mine), (other, theirs)):
        values.setdefault(metric, {})[one.entry["name"]] = dict(enumerate(data.tolist()))
      pairs.append((metric, first.entry["name"], other.entry["name"]))
  if not pairs:
    return []
  found = statistics.compare(values, pairs)
  fields = ("metric", "a", "b", "low", "high", "level", "p", "p_holm", "n")
  return [plain({"difference": c.difference, **{k: getattr(c, k) for k in fields}}) for c in found]


def _comparable(metric: str, a: Observed, b: Observed) -> bool:
  return metric != "mean_distance" or a.entry["grid"] == b.entry["grid"]
