"""Checkpoints made ready for evaluation and analysis from their path alone."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from jaxkd import checkpoint, config, models
from jaxkd.analysis.forensics import Subject
from jaxkd.checkpoint import Checkpoint
from jaxkd.data.augment import changes_images
from jaxkd.errors import UserError

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
  model = models.create(**options)
  return Subject(name, model, found.variables, tuple(meta["mean"]), tuple(meta["std"]), about)


def load_subjects(paths: list[str], names: list[str]) -> tuple[list[Subject], ConfigDict]:
  """The checkpoints at `paths` under `names`, and the config of the first."""
  found = [checkpoint.load(p) for p in paths]
  first = run_config(found[0])
  return [
    as_subject(n, f, first if i else None) for i, (n, f) in enumerate(zip(names, found, strict=True))
  ], first


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
