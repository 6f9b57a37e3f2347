"""Rules between config keys that need neither data nor models. Each failure names the key to set. No jax here."""

from __future__ import annotations

import itertools
import re

from ml_collections import ConfigDict

from jaxkd import schema
from jaxkd.config_terms import validate_objective
from jaxkd.errors import UserError, did_you_mean


def validate(config: ConfigDict) -> None:
  """Cross-field rules of a run or a study; each failure names the field to set.

  Raises:
    UserError: the first rule that does not hold.
  """
  if "study" in config:
    _validate_study(config)
  else:
    _validate_run(config, "")


def _validate_study(config: ConfigDict) -> None:
  study = config.study
  if study.baseline not in study.arms:
    raise UserError(
      f"study.baseline '{study.baseline}' is not an arm", did_you_mean(study.baseline, study.arms)
    )
  if not study.seeds or len(set(study.seeds)) != len(study.seeds):
    raise UserError(
      f"study.seeds {study.seeds} must be distinct and not empty", "e.g. --config.study.seeds=0,1,2"
    )
  for name, teacher in study.teachers.items():
    _validate_run(teacher.run, f"study.teachers.{name}.run.")
    if teacher.run.train.replicas:
      raise UserError(
        f"study.teachers.{name}.run.train.replicas: a teacher is one model", "leave it empty and set its seed"
      )
  for name, arm in study.arms.items():
    validate_objective(arm, config, f"study.arms.{name}.", known_weights=set(study.teachers))
  for claim in study.claims:
    parse_claim(claim, set(study.arms))
  if config.train.replicas:
    raise UserError(
      "train.replicas: a study has its seeds in study.seeds", "set --config.study.replicas=true instead"
    )
  _validate_common(config, "")
  if study.replicas:
    _validate_replicas(config, "study.replicas", "")
  for name, arm in study.arms.items():
    _validate_average(arm, config, f"study.arms.{name}.", "")


def parse_claim(claim: str, arms: set[str]) -> tuple[str, tuple[str, ...]]:
  """`"mean_distance: cnn_kd < none"` -> `("mean_distance", ("cnn_kd", "none"))`."""
  metric, colon, order = claim.partition(":")
  names = tuple(part.strip() for part in order.split("<"))
  unknown = [n for n in names if n not in arms]
  if not colon or len(names) < 2 or unknown:
    raise UserError(
      f"study.claims: cannot read {claim!r}",
      f"write 'metric: armA < armB' with the arms {', '.join(sorted(arms))}",
    )
  return metric.strip(), names


def _validate_run(config: ConfigDict, path: str) -> None:
  validate_objective(config, config, path)
  _validate_average(config, config, path, path)
  _validate_common(config, path)


def _validate_common(config: ConfigDict, path: str) -> None:
  _validate_optim(config, path)
  _validate_train(config, path)
  _validate_views(config.data.views, path)
  name = config.data.name
  if name in schema.NOT_MIRRORED and config.data.augment.flip:
    raise UserError(
      f"{path}data.augment.flip mirrors the images of '{name}', which changes what they show",
      "set it to false",
    )
  validate_augment(config, path)


def _validate_average(arm: ConfigDict, config: ConfigDict, where: str, path: str) -> None:
  """A teacher that is the student's own average needs one."""
  if any(t.weights == "ema" for t in arm.teachers.values()) and config.train.ema == 0:
    raise UserError(
      f"{where}teachers: weights=ema needs a moving average", f"set --config.{path}train.ema=0.996"
    )


def _validate_train(config: ConfigDict, path: str) -> None:
  train = config.train
  if train.ema_end and not train.ema:
    raise UserError(
      f"{path}train.ema_end={train.ema_end:g} without a moving average to end there",
      f"set --config.{path}train.ema=0.996, or ema_end to 0",
    )
  if train.replicas:
    _validate_replicas(config, f"{path}train.replicas", path)
  if config.eval.metric != "none" and config.model.get("num_classes") == 0:
    raise UserError(
      f"{path}eval.metric={config.eval.metric} of a model without classes ({path}model.num_classes=0)",
      f"set --config.{path}eval.metric=none",
    )


def _validate_replicas(config: ConfigDict, key: str, path: str) -> None:
  """What one program for several seeds cannot do, because they would part ways or share what is one's own."""
  train, found = config.train, config.train.replicas
  if len(set(found)) != len(found):
    raise UserError(f"{key} {found} must be distinct", f"e.g. --config.{key}=0,1,2")
  refused = {
    f"train.patience={train.patience}": (train.patience > 0, "each replica would stop at another step"),
    "optim.schedule=plateau": (
      config.optim.schedule == "plateau",
      "each replica would have a learning rate of its own",
    ),
    f"train.swa_start_epoch={train.swa_start_epoch:g}": (
      train.swa_start_epoch > 0,
      "the average's statistics are collected for one model at a time",
    ),
    f"log.wandb={config.log.wandb}": (bool(config.log.wandb), "a process reports one run there"),
  }
  for what, (is_set, why) in refused.items():
    if is_set:
      raise UserError(
        f"{key} with {path}{what}: {why}",
        f"train one run per seed, or leave {what.partition('=')[0]} at its default",
      )


def _validate_optim(config: ConfigDict, path: str) -> None:
  optim, key = config.optim, f"{path}optim"
  for text in optim.freeze:
    try:
      re.compile(text)
    except (re.error, RecursionError) as e:
      raise UserError(f"{key}.freeze: {text!r} is not a regular expression: {e}", "e.g. 'block00/.*'") from e
  if optim.schedule == "step":
    check_milestones(optim, key)


def check_milestones(optim: ConfigDict, key: str) -> None:
  """Raises UserError for milestones that `schedule=step` cannot use; `key` is the path of `optim`."""
  found, warmup = optim.milestones, optim.warmup_epochs
  if not found or any(b <= a for a, b in itertools.pairwise((0.0, *found))):
    raise UserError(
      f"{key}.milestones {found} are not increasing numbers of epochs",
      f"schedule=step needs some, e.g. --config.{key}.milestones=15,25",
    )
  if found[0] < warmup:
    raise UserError(
      f"{key}.milestones: {found[0]:g} lies in the warm-up of {warmup:g} epochs",
      "warm up for a shorter time or drop the learning rate later",
    )


def _validate_views(views: ConfigDict, path: str) -> None:
  for key in ("global_scale", "local_scale"):
    low, high = views[key] if len(views[key]) == 2 else (1, 0)
    if not 0 < low <= high <= 1:
      raise UserError(
        f"config key '{path}data.views.{key}': {views[key]} is not a range", "0 < low <= high <= 1"
      )


def validate_augment(config: ConfigDict, path: str) -> None:
  """Geometry that changes what a class looks like, mixing and banks that contradict the terms.

  Raises:
    UserError: the first rule that does not hold.
  """
  augment, key = config.data.augment, f"{path}data.augment"
  if len(augment.scale) != 2 or not 0 < augment.scale[0] <= augment.scale[1]:
    raise UserError(f"config key '{key}.scale': {augment.scale} is not a range", "0 < low <= high")
  bends = [f"policy={augment.policy}"] * (augment.policy in schema.POLICIES)
  bends += [k for k in ("rotation", "shear") if augment[k]] + ["scale"] * (tuple(augment.scale) != (1.0, 1.0))
  name = config.data.name
  if name == "synthetic_shapes" and bends:
    raise UserError(
      f"{key}.{bends[0]} turns the textures of '{name}' into another class's",
      "leave it out; translate and `_color` policies keep the class",
    )
  if name in schema.NOT_MIRRORED and augment.rotation > 45:
    raise UserError(
      f"{key}.rotation of {augment.rotation:g} degrees changes what the images of '{name}' show",
      "45 at the most",
    )
  _validate_repeats_and_recipe(config, path)
  study = config.get("study")
  arms = {f"{path}study.arms.{k}.": v for k, v in study.arms.items()} if study else {path: config}
  for where, arm in arms.items():
    _validate_mixing(augment, arm, key, where, alike=bool(study))
    _validate_bank(augment, arm, key, where, bends + ["translate"] * bool(augment.translate))


def _validate_repeats_and_recipe(config: ConfigDict, path: str) -> None:
  augment, recipe, size = config.data.augment, config.data.views.recipe, config.train.batch_size
  if size % augment.repeats:
    raise UserError(
      f"{path}train.batch_size {size} is not divisible by {path}data.augment.repeats {augment.repeats}",
      f"e.g. --config.{path}train.batch_size={-(-size // augment.repeats) * augment.repeats}",
    )
  named = [k for k in ("blur", "solarize") if augment[k]]
  if recipe != "none" and named:
    raise UserError(
      f"{path}data.augment.{named[0]} and {path}data.views.recipe={recipe} both say how often to {named[0]}",
      f"set --config.{path}data.augment.{named[0]}=0, or the recipe to 'none'",
    )


def _validate_mixing(augment: ConfigDict, arm: ConfigDict, key: str, where: str, *, alike: bool) -> None:
  """Token terms compare pixels of one image; with `alike` all arms must see the same, so none may mix."""
  mixes = [k for k in ("mixup", "cutmix") if augment[k]]
  for name, term in arm.terms.items():
    if not mixes or term.kind not in schema.TOKEN_KINDS or term.teacher not in arm.teachers:
      continue
    if alike:
      raise UserError(
        f"{key}.{mixes[0]}: a study with a token term ({where}terms.{name}) mixes images in no arm",
        f"set --config.{key}.{mixes[0]}=0",
      )
    if arm.teachers[term.teacher].view != "same":
      raise UserError(
        f"{key}.{mixes[0]}: the token term {where}terms.{name} needs a teacher that sees the mixed image",
        f"set {where}teachers.{term.teacher}.view to 'same', or --config.{key}.{mixes[0]}=0",
      )


def _validate_bank(augment: ConfigDict, arm: ConfigDict, key: str, where: str, moving: list[str]) -> None:
  """A bank knows crops and mirrors only, and its teacher would see another geometry than the student."""
  for name, teacher in arm.teachers.items():
    if teacher.get("bank", "") and teacher.view == "aligned" and moving:
      option = moving[0]
      instead = f"{option}_color" if option.startswith("policy=") else f"{option} at its default"
      raise UserError(
        f"{key}.{option} moves pixels, and the bank of {where}teachers.{name} holds crops and mirrors only",
        f"use {instead}, or no bank",
      )
