"""What a teacher of a study knows, beside controls that know nothing: its students can take no more than that."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxkd import checkpoint, data, evaluation, subjects
from jaxkd.analysis import knn_accuracy, linear_probe
from jaxkd.data.sources import balanced_sample
from jaxkd.step import model_init

METHODS = ("k-NN (k=20)", "linear probe")
PROBED = (
  10_000  # training images, class-balanced, of k-NN and linear probes: logistic regression of more takes long
)


def quality(found: checkpoint.Checkpoint, label: str, config: ConfigDict) -> dict[str, Any]:
  """Accuracy, k-NN and linear probe on the test split, beside the same of random weights and of raw pixels."""
  subject = subjects.as_subject(label, found)
  train_split, test = data.load(config.data).train, data.load_test(config.data)
  rows: list[list[Any]] = []
  known = train_split if len(train_split) <= PROBED else balanced_sample(train_split, PROBED)
  if found.meta["num_classes"]:
    logits = evaluation.head_logits(
      subject.model,
      subject.variables,
      test,
      mean=subject.mean,
      std=subject.std,
      batch_size=config.eval.batch_size,
    )
    rows.append(["test accuracy", evaluation.accuracy(logits["cls"], test.labels)])
  for what, variables in (
    ("frozen features", subject.variables),
    ("random initialisation", _random(subject, config)),
  ):
    a, b = (_features(subject, variables, s.images) for s in (known, test))
    rows += _probes(what, a, known.labels, b, test.labels)
  pixels = [s.images[:].reshape(len(s), -1).astype(np.float32) / 255 for s in (known, test)]
  rows += _probes("raw pixels", pixels[0], known.labels, pixels[1], test.labels)
  parameters = int(sum(x.size for x in jax.tree.leaves(subject.variables["params"])))
  trained_on = f"{config.data.name}, {len(train_split)} training images"
  trained_on += ", labels used" if found.meta["num_classes"] else ", labels not used"
  return {
    "label": label,
    "model": subject.about["model"],
    "parameters": parameters,
    "trained_on": trained_on,
    "probed_with": f"{len(known)} training images",
    "rows": rows,
  }


def _random(subject, config: ConfigDict):
  init = model_init(subject.model, (*subject.model.image_size, subject.model.in_channels))
  return init(jax.random.key(config.seed))


def _features(subject, variables, images: np.ndarray) -> np.ndarray:
  taps = evaluation.collect(
    subject.model, variables, images, names=("features",), mean=subject.mean, std=subject.std, batch_size=256
  )
  return taps["features"]


def _probes(what: str, a, a_labels, b, b_labels) -> list[list[Any]]:
  return [
    [f"{METHODS[0]}, {what}", float(knn_accuracy(a, a_labels, b, b_labels, k=20))],
    [f"{METHODS[1]}, {what}", float(linear_probe(a, a_labels, b, b_labels))],
  ]


def weak(teachers: list[dict[str, Any]]) -> list[str]:
  """A warning for each teacher (`quality`) whose frozen features tell the classes apart worse than raw pixels do."""
  out = []
  for t in teachers:
    share = {what: value for what, value in t["rows"] if isinstance(value, float)}
    pairs = [(m, share.get(f"{m}, frozen features"), share.get(f"{m}, raw pixels")) for m in METHODS]
    worse = [f"{m} {a:.1%} against {b:.1%}" for m, a, b in pairs if a is not None and b is not None and a < b]
    if worse:
      out.append(
        f"Weak teacher: by its frozen features {t['label']} tells the classes apart worse than raw pixels do "
        f"({', '.join(worse)}). What its students gain or lose says little about good teachers of its kind."
      )
  return out
