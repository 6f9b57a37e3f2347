"""Rules for teachers and terms: who needs whom, which taps, how many. No jax here."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from jaxkd import schema
from jaxkd.errors import UserError, did_you_mean

# Kinds on logits that take one tap of each side; `ofa` takes several of the student's.
ONE_PAIR = tuple(kind for kind in (*schema.LOGIT_KINDS, "dino") if kind != "ofa")
NEEDS_CLASSES = ("cross_entropy", *schema.LOGIT_KINDS)


def validate_objective(
  arm: ConfigDict, config: ConfigDict, path: str, known_weights: set[str] | None = None
) -> None:
  """The teachers and terms of `arm` (a run, or an arm of a study), which belongs to the run `config`.

  Raises:
    UserError: the first rule that does not hold.
  """
  if not arm.terms:
    raise UserError(
      f"{path}terms is empty: nothing to train on", "add e.g. terms=dict(ce=dict(kind='cross_entropy'))"
    )
  for name, teacher in arm.teachers.items():
    _validate_teacher(teacher, f"{path}teachers.{name}", known_weights)
  for name, term in arm.terms.items():
    _validate_term(term, arm.teachers, f"{path}terms.{name}")
    if term.kind in NEEDS_CLASSES and config.model.get("num_classes") == 0:
      raise UserError(
        f"{path}terms.{name}: '{term.kind}' needs classes, and model.num_classes=0",
        "leave model.num_classes out to have the data set's",
      )
    views = config.data.views
    if term.kind == "dino" and views.global_count + views.local_count < 2:
      raise UserError(
        f"{path}terms.{name}: 'dino' compares views of an image, and there is 1",
        "set --config.data.views.global_count=2",
      )
  if not any(t.weight or t.initial_weight or t.end_weight for t in arm.terms.values()):
    raise UserError(
      f"{path}terms: every weight is 0, nothing to train on", f"set e.g. --config.{path}terms.{name}.weight=1"
    )


def _validate_teacher(teacher: ConfigDict, path: str, known_weights: set[str] | None) -> None:
  if not teacher.weights:
    raise UserError(f"{path}.weights is empty", "name a run folder, a weights file, hub:NAME or `ema`")
  if teacher.weights == "random" and not teacher.model.name:
    raise UserError(
      f"{path}.weights=random without a model", f"name it, e.g. --config.{path}.model.name=resnet18_cifar"
    )
  if known_weights is None or teacher.weights in known_weights or teacher.weights == "ema":
    return
  if not teacher.weights.startswith("hub:") and not Path(teacher.weights).exists():
    hint = did_you_mean(teacher.weights, known_weights)
    if "/" in teacher.weights:
      hint = f"train it first, or set --config.{path}.weights to a run or weights file"
    raise UserError(
      f"{path}.weights: '{teacher.weights}' is no teacher of the study and does not exist", hint
    )


def _validate_term(term: ConfigDict, teachers: ConfigDict, path: str) -> None:
  needs_teacher = term.kind not in schema.LABEL_KINDS
  if needs_teacher and not term.teacher:
    raise UserError(f"{path}: '{term.kind}' needs a teacher", f"set {path}.teacher to one of teachers.*")
  if term.teacher and not needs_teacher:
    raise UserError(
      f"{path}.teacher: '{term.kind}' has no teacher, '{term.teacher}' was given",
      "leave it out, or use a kind that distils, e.g. soft_kd",
    )
  if term.teacher and term.teacher not in teachers:
    raise UserError(
      f"{path}.teacher: no teacher '{term.teacher}'",
      f"add teachers.{term.teacher}, or {did_you_mean(term.teacher, teachers)}",
    )
  for extra in term.ensemble:
    if extra not in teachers or term.kind not in schema.LOGIT_KINDS:
      raise UserError(
        f"{path}.ensemble: '{extra}' is no teacher of a term on logits",
        f"name teachers of soft_kd, hard_kd, dkd, dist or ofa; {did_you_mean(extra, teachers)}",
      )
  if term.kind == "dino" and teachers[term.teacher].weights != "ema":
    raise UserError(
      f"{path}.teacher: 'dino' learns from the student's own average, '{term.teacher}' is another network",
      f"set --config.{path.rpartition('terms.')[0]}teachers.{term.teacher}.weights=ema",
    )
  _validate_taps(term, path)


def _validate_taps(term: ConfigDict, path: str) -> None:
  """How many taps, weights and targets; whether a model has them is seen when it is built."""
  own, theirs = len(term.student_taps), len(term.teacher_taps)
  if term.kind in (*schema.TOKEN_KINDS, "locality") and not own:
    raise UserError(f"{path}.student_taps is empty", "list some, e.g. student_taps=('block05/tokens',)")
  if theirs and own != theirs and term.kind in schema.TOKEN_KINDS:
    raise UserError(
      f"{path}: {own} student_taps and {theirs} teacher_taps",
      "list as many of each, or no teacher_taps to pair layers by relative depth",
    )
  most = {"teacher_taps": 0 if term.kind in schema.LABEL_KINDS else None}
  if term.kind in (*ONE_PAIR, "ofa"):
    most["teacher_taps"] = 1
  if term.kind in (*ONE_PAIR, "cross_entropy"):
    most["student_taps"] = 1
  for key, limit in most.items():
    if limit is not None and len(term[key]) > limit:
      raise UserError(
        f"{path}.{key}: {len(term[key])} taps, and '{term.kind}' takes {limit or 'none'}",
        "leave it out" if not limit else "list one, or none for its own",
      )
  if term.layer_weights and len(term.layer_weights) != max(own, 1):
    raise UserError(
      f"{path}: {len(term.layer_weights)} layer_weights for {max(own, 1)} layers", "one for each pair"
    )
  if term.kind == "locality" and len(term.targets) != own:
    raise UserError(f"{path}: {len(term.targets)} targets for {own} layers", "one distance for each layer")
