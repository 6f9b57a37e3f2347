"""Values that were set and do nothing beside the others: said, not refused, so that one override never needs two.

A value counts as set when it differs from its default. No jax here.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from jaxkd import schema
from jaxkd.schema import Field

ADAM = ("adam", "adamw", "muon")
# Option of config.optim -> the optimisers that read it.
READ_BY_OPTIMISER = {
  "momentum": ("sgd",),
  "nesterov": ("sgd",),
  "beta1": (*ADAM, "lion"),
  "beta2": ADAM,
  "eps": (*ADAM, "rmsprop"),
  "rmsprop_decay": ("rmsprop",),
  "rmsprop_momentum": ("rmsprop",),
  "lion_beta2": ("lion",),
  "muon_momentum": ("muon",),
}
# Option of config.optim -> the schedules that read it.
READ_BY_SCHEDULE = {
  "final_lr": ("cosine", "linear", "one_cycle", "plateau"),
  "initial_lr": ("one_cycle", "cyclic"),
  "milestones": ("step",),
  "milestone_gamma": ("step",),
  "epoch_gamma": ("exponential",),
  "rise": ("one_cycle",),
  "cycle_epochs": ("cyclic",),
  "plateau_factor": ("plateau",),
  "plateau_patience": ("plateau",),
  "plateau_threshold": ("plateau",),
  "plateau_cooldown": ("plateau",),
}
SYNTHETIC = ("synthetic", "synthetic_shapes")
COLOR_FACTORS = ("brightness", "contrast", "saturation", "hue")
SHAPES_ONLY = ("local_strength", "global_strength", "global_shift")
# Kinds that read a field which every term has.
READ_BY_KIND = {
  "head": ("token_cosine", "ofa"),
  "layer_weights": ("ofa", "locality", *schema.TOKEN_KINDS),
}


def notes(config: ConfigDict) -> list[str]:
  """One line for each value of a validated config that was set and changes nothing."""
  if "study" not in config:
    return _run_notes(config, "")
  found = _common_notes(config, "")
  for name, teacher in config.study.teachers.items():
    found += _run_notes(teacher.run, f"study.teachers.{name}.run.")
  for name, arm in config.study.arms.items():
    found += _term_notes(arm, config, f"study.arms.{name}.")
  return found


def _run_notes(config: ConfigDict, path: str) -> list[str]:
  return _common_notes(config, path) + _term_notes(config, config, path)


def _common_notes(config: ConfigDict, path: str) -> list[str]:
  return _optim_notes(config, path) + _data_notes(config.data, f"{path}data")


def _optim_notes(config: ConfigDict, path: str) -> list[str]:
  optim, key, found = config.optim, f"{path}optim", []
  for option in (k for k in optim if _is_set(optim, schema.OPTIM, k)):
    for chosen, table in (("name", READ_BY_OPTIMISER), ("schedule", READ_BY_SCHEDULE)):
      if optim[chosen] not in table.get(option, (optim[chosen],)):
        readers = ", ".join(table[option])
        found.append(_inert(key, optim, option, f"with {chosen}={optim[chosen]} (it is for {readers})"))
  if _is_set(optim, schema.OPTIM, "lr_base_batch") and optim.lr_scaling == "none":
    found.append(_inert(key, optim, "lr_base_batch", "with lr_scaling=none"))
  if optim.decay_all and not optim.weight_decay:
    found.append(_inert(key, optim, "decay_all", "with weight_decay=0"))
  epochs = _epochs(config)
  if epochs is None:
    return found
  if optim.warmup_epochs >= epochs:
    found.append(
      f"{key}.warmup_epochs={optim.warmup_epochs:g} takes all of the {epochs:g} epochs: the learning rate only rises"
    )
  late = [m for m in optim.milestones if m >= epochs] if optim.schedule == "step" else []
  if late:
    found.append(f"{key}.milestones: {late[0]:g} is never reached in {epochs:g} epochs")
  return found


def _data_notes(data: ConfigDict, key: str) -> list[str]:
  augment, views, found = data.augment, data.views, []
  for option in ("examples", "classes", *SHAPES_ONLY):
    readers = ("synthetic_shapes",) if option in SHAPES_ONLY else SYNTHETIC
    if data.name not in readers and _is_set(data, schema.DATA, option):
      found.append(_inert(key, data, option, f"with data set '{data.name}' (it is for {', '.join(readers)})"))
  if augment.mix_per_sample and not (augment.mixup or augment.cutmix):
    found.append(_inert(f"{key}.augment", augment, "mix_per_sample", "without mixup or cutmix"))
  if _is_set(augment, schema.DATA["augment"], "jitter") and not any(augment[k] for k in COLOR_FACTORS):
    found.append(_inert(f"{key}.augment", augment, "jitter", f"without {', '.join(COLOR_FACTORS)}"))
  for option in ("policy_count", "policy_magnitude"):
    if not augment.policy.startswith("randaugment") and _is_set(augment, schema.DATA["augment"], option):
      found.append(_inert(f"{key}.augment", augment, option, f"with policy={augment.policy}"))
  for option in ("local_size", "local_scale"):
    if not views.local_count and _is_set(views, schema.DATA["views"], option):
      found.append(_inert(f"{key}.views", views, option, "with local_count=0"))
  return found


def _term_notes(arm: ConfigDict, config: ConfigDict, path: str) -> list[str]:
  found, epochs = [], _epochs(config)
  used = {name for term in arm.terms.values() for name in (term.teacher, *term.ensemble)}
  found += [f"{path}teachers.{name}: no term uses this teacher" for name in arm.teachers if name not in used]
  for name, term in arm.terms.items():
    key = f"{path}terms.{name}"
    for option, kinds in READ_BY_KIND.items():
      if term.kind not in kinds and _is_set(term, schema.TERM, option):
        found.append(_inert(key, term, option, f"with kind={term.kind}"))
    if term.end_weight and term.schedule == "constant":
      found.append(_inert(key, term, "end_weight", "with schedule=constant"))
    if term.initial_weight and not (term.start_epoch or term.warmup_epochs):
      found.append(_inert(key, term, "initial_weight", "without start_epoch or warmup_epochs"))
    if epochs is not None and term.start_epoch >= epochs:
      found.append(f"{key}.start_epoch={term.start_epoch:g} is never reached in {epochs:g} epochs")
  if config.eval.metric != "none" and not any(
    t.kind == "cross_entropy" or t.kind in schema.LOGIT_KINDS for t in arm.terms.values()
  ):
    found.append(
      f"{path}terms: none trains the classifier whose accuracy eval.metric={config.eval.metric} compares; "
      "`none` takes the last checkpoint"
    )
  return found


def _epochs(config: ConfigDict) -> float | None:
  """The length of training where the config alone says it."""
  return None if config.train.steps else config.train.epochs


def _is_set(section: ConfigDict, fields: Any, option: str) -> bool:
  field = fields.get(option)
  return isinstance(field, Field) and section[option] != field.default


def _inert(key: str, section: ConfigDict, option: str, why: str) -> str:
  value = section[option]
  return f"{key}.{option}={f'{value:g}' if type(value) is float else value} does nothing {why}"
