"""Checkpoints, and weights of other origin, made ready for evaluation and analysis from their path alone."""

from __future__ import annotations

import logging
from typing import Any

from ml_collections import ConfigDict

from jaxkd import checkpoint, config, models
from jaxkd.analysis.forensics import Subject
from jaxkd.checkpoint import Checkpoint
from jaxkd.data.augment import changes_images
from jaxkd.errors import UserError

log = logging.getLogger("jaxkd")
# Analyses run in float32 and differentiate twice, which fused attention cannot.
ANALYSIS = {"dtype": "float32", "attention": "xla"}


def run_config(found: Checkpoint) -> ConfigDict:
  """The config a checkpoint was trained with."""
  return config.complete(found.config)


def as_subject(name: str, found: Checkpoint, reference: ConfigDict | None = None) -> Subject:
  """`found` as something to examine.

  Args:
    reference: a config; keys in which `found`'s differs are reported as `differs`.
  """
  known = models.options(found.model_options["name"])
  options = {**found.model_options, **{k: v for k, v in ANALYSIS.items() if k in known}}
  meta = found.meta
  differs = config.difference(reference, run_config(found)) if reference is not None else {}
  about: dict[str, Any] = {
    "checkpoint": str(found.path),
    "model": options["name"],
    "digest": found.digest,
    "step": found.step,
    "num_classes": meta["num_classes"],
    "differs": {
      k: new for k, (_, new) in differs.items() if not k.startswith(("seed", "log.", "checkpoint."))
    },
  }
  model, own = models.create(**options), meta.get("input_size", 0)
  size = own if own and (own, own) != tuple(model.image_size) else 0
  return Subject(name, model, found.variables, tuple(meta["mean"]), tuple(meta["std"]), about, size)


def load_subjects(paths: list[str], names: list[str]) -> tuple[list[Subject], ConfigDict]:
  """The checkpoints at `paths` under `names`, and the config of the first, whose test images all of them see.

  A model of other classes than the first's is taken as one without classifier, which is said.

  Raises:
    UserError: no such checkpoint, or a model of grey images where those of the first have colour.
  """
  found = [checkpoint.load(p) for p in paths]
  first, classes = run_config(found[0]), list(found[0].meta["class_names"])
  subjects = []
  for i, (name, one) in enumerate(zip(names, found, strict=True)):
    subject = as_subject(name, one, first if i else None)
    _check_channels(subject, found[0])
    if subject.classifies and list(one.meta["class_names"]) != classes:
      log.warning("%s has other classes than %s: no accuracy, no curvature", name, names[0])
      subject.about["num_classes"] = 0
    subjects.append(subject)
  return subjects, first


def _check_channels(subject: Subject, first: Checkpoint) -> None:
  """Grey images may be repeated for a model of three channels; colour is not thrown away for one of one."""
  channels, wanted = first.meta["image_shape"][2], subject.model.in_channels
  if channels != wanted and not (channels == 1 and wanted == 3):
    raise UserError(
      f"{subject.name} takes {wanted} channels, the images of the first checkpoint have {channels}",
      "compare models of the same data, or name the other one first",
    )


def classifier(name: str, found: Checkpoint) -> Subject:
  """`as_subject` for what predicts classes.

  Raises:
    UserError: a checkpoint without a classifier.
  """
  if not found.meta["num_classes"]:
    raise UserError(f"{found.path} has no classifier", "use forensics, or study for its features")
  return as_subject(name, found)


def augmentation(path: str, trained: ConfigDict) -> dict[str, Any]:
  """The augmentation of training, for test-time views: arguments of `evaluation.augmented_probabilities`.

  Raises:
    UserError: the training images were not augmented, so that all views would be the same.
  """
  augment, views = trained.data.augment.to_dict(), trained.data.views.to_dict()
  if not changes_images(augment, views):
    raise UserError(f"{path} was trained without augmentation: all its views are the same", "leave out --tta")
  return {"augment": augment, "views": views}
