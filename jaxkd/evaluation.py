"""Logits of a model over a split, and the measures of classification computed from them."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from sklearn import metrics as sk

from jaxkd.data import Split
from jaxkd.teachers import normalize

HEADS = {"cls": "logits/cls", "mean": "logits", "dist": "logits/dist"}


@functools.partial(jax.jit, static_argnames=("model", "names", "mean", "std"))
def _taps(model: nn.Module, variables, images, names: tuple[str, ...], mean, std) -> dict[str, jax.Array]:
  x = normalize(images.astype(jnp.float32) / 255, mean, std)
  _, taps = model.apply(variables, x, train=False)
  return {name: taps[name] for name in names if name in taps}


def collect(
  model: nn.Module, variables, images: np.ndarray, *, names: tuple[str, ...], mean, std, batch_size: int
) -> dict[str, np.ndarray]:
  """Taps `names` over uint8 `images` [n h w c] as numpy [n ...]; names the model lacks are left out.

  Every call runs one compiled shape: the last batch is padded and cut.
  """
  size = min(batch_size, len(images))
  parts = []
  for i in range(0, len(images), size):
    part = images[i : i + size]
    padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
    taps = jax.device_get(_taps(model, variables, padded, names, tuple(mean), tuple(std)))
    parts.append({k: v[: len(part)] for k, v in taps.items()})
  return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


def head_logits(
  model: nn.Module, variables, split: Split, *, mean, std, batch_size: int
) -> dict[str, np.ndarray]:
  """`{"cls": [n c], "mean": ..., "dist": ...}`: cls always, the others for a model with a distillation head."""
  taps = collect(
    model, variables, split.images, names=tuple(HEADS.values()), mean=mean, std=std, batch_size=batch_size
  )
  heads = HEADS if "logits/dist" in taps else {"cls": "logits/cls"}
  logits = {head: taps[name] for head, name in heads.items()}
  if "mean" in logits:
    logits["mean"] = (taps["logits/cls"] + taps["logits/dist"]) / 2
  return logits


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
  """Share of rows whose largest logit is the label's."""
  return float((logits.argmax(1) == labels).mean())


def log_likelihood_loss(logits: np.ndarray, labels: np.ndarray) -> float:
  """Mean cross entropy in nats."""
  log_p = logits - np.logaddexp.reduce(logits.astype(np.float64), axis=1, keepdims=True)
  return float(-log_p[np.arange(len(labels)), labels].mean())


def classification_report(
  logits: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]
) -> dict[str, Any]:
  """Everything `evaluate` says of one head: accuracy, top-k, macro scores, AUC, confusion, ROC, per class.

  logits float [n c], labels int [n]. Shares are in [0, 1]. ROC curves are one-vs-rest.
  """
  classes = np.arange(len(class_names))
  p = np.exp(logits - np.logaddexp.reduce(logits.astype(np.float64), axis=1, keepdims=True))
  predicted = logits.argmax(1)
  precision, recall, f1, support = sk.precision_recall_fscore_support(
    labels, predicted, labels=classes, zero_division=0.0
  )
  return {
    "examples": len(labels),
    "accuracy": accuracy(logits, labels),
    "top_k": {str(k): _top_k(logits, labels, k) for k in (2, 3, 5) if k < len(classes)},
    "loss": log_likelihood_loss(logits, labels),
    "macro": {"precision": precision.mean(), "recall": recall.mean(), "f1": f1.mean()},
    "per_class": {
      name: {"precision": precision[i], "recall": recall[i], "f1": f1[i], "examples": int(support[i])}
      for i, name in enumerate(class_names)
    },
    "confusion": sk.confusion_matrix(labels, predicted, labels=classes).tolist(),
    "roc": {
      name: _roc(p[:, i], labels == i) for i, name in enumerate(class_names) if 0 < support[i] < len(labels)
    },
  }


def _top_k(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
  """Share of rows whose label is among the k largest logits."""
  best = np.argpartition(-logits, k - 1, axis=1)[:, :k]
  return float((best == labels[:, None]).any(1).mean())


def _roc(score: np.ndarray, positive: np.ndarray) -> dict[str, Any]:
  false_positive, true_positive, _ = sk.roc_curve(positive, score)
  area = sk.auc(false_positive, true_positive)
  return {"auc": float(area), "fpr": false_positive.tolist(), "tpr": true_positive.tolist()}
