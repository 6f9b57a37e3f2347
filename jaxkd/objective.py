"""The objective as data: a term = tap names + student-side head + a pure loss + a weight schedule.

`Objective` sums the terms of `config.terms`. It knows no training mode: a baseline, a CNN- or ViT-distilled
student and self-supervised pretraining differ in their terms and teachers only.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxkd import schema
from jaxkd.errors import UserError
from jaxkd.schedules import weight_schedule
from jaxkd.targets import Owner, Taps, Target, form_of, student_taps, teacher_taps
from jaxkd.terms import Inputs, Mix, Term, heads

# A loss over the tokens of one image that has fewer of them is noise; CKA's unbiased estimate does not exist below 4.
FEW_TOKENS, LEAST_ROWS = 16, 4


class Objective:
  """All terms of a run, bound to the models they look at.

  Args:
    terms: `config.terms`. student, teachers: the models' taps (as shapes), tokens and layers.
    steps, steps_per_epoch: turn the schedules' epochs into steps.
    views: `{"global": g, "local": m}` views per image.
    unmixed: teachers whose view is not mixed when the student's is. mixing: whether MixUp or CutMix is on.

  Raises:
    UserError: a tap that its owner does not have, or of a shape the term cannot use.
  """

  def __init__(
    self,
    terms,
    *,
    student: Owner,
    teachers: dict[str, Owner],
    steps: int,
    steps_per_epoch: int,
    views: dict[str, int],
    unmixed: frozenset[str] = frozenset(),
    mixing: bool = False,
  ):
    self.student, self.teachers = student, teachers
    self.steps_per_epoch, self.views = steps_per_epoch, views
    self.terms = [
      _bind(name, options, student, teachers, _schedule(options, steps, steps_per_epoch), unmixed)
      for name, options in terms.items()
    ]
    for term in self.terms:
      _check(term, teachers, mixing)

  def wanted(self) -> tuple[str, ...]:
    """What the student must be asked for besides its usual taps."""
    return ("attn",) if any(term.options.kind == "locality" for term in self.terms) else ()

  def targets_of(self, teacher: str) -> tuple[Target, ...]:
    """Every array that some term takes from this teacher, each once, in a fixed order."""
    found = {t.key: t for term in self.terms for t in term.targets if t.teacher == teacher}
    return tuple(found[key] for key in sorted(found))

  def make_targets(self, teacher: str, taps: Taps) -> Taps:
    """The targets of one teacher from its taps, by key; what a feature bank stores."""
    special = self.teachers[teacher].special
    return {t.key: t.make(taps, special) for t in self.targets_of(teacher)}

  def whitened(self) -> list[tuple[Term, int, Target]]:
    """The layers whose teacher space is to be whitened, as (term, layer, target)."""
    return [
      (term, i, target)
      for term in self.terms
      if getattr(term.options, "whiten", False)
      for i, target in enumerate(term.targets)
    ]

  def init(self, key: jax.Array) -> tuple[dict, dict]:
    """Parameters of the heads and initial state of the terms."""
    params_of, state = {}, {}
    for i, term in enumerate(self.terms):
      modules = heads(term, self.teachers)
      keys = jax.random.split(jax.random.fold_in(key, i), max(len(modules), 1))
      params = {
        n: m.init(k, jnp.zeros(s))["params"] for k, (n, (m, s)) in zip(keys, modules.items(), strict=False)
      }
      if params:
        params_of[term.name] = params
      if term.options.kind == "dino":
        state[term.name] = {"sum": jnp.zeros(term.options.prototypes), "weight": jnp.zeros(())}
    return params_of, state

  def __call__(
    self,
    student: Taps,
    targets: dict[str, Taps],
    labels: jax.Array,
    *,
    heads: dict[str, Any],
    ema_heads: dict[str, Any],
    state: dict[str, Any],
    step: jax.Array,
    mix: Mix | None = None,
    whitening: dict[str, Any] | None = None,
  ) -> tuple[dict[str, jax.Array], dict[str, jax.Array], dict]:
    """Weighted values by term, values to log, new state."""
    epoch = step / self.steps_per_epoch
    inputs = Inputs(student, targets, labels, mix, heads, ema_heads, whitening or {}, epoch, self.views)
    weighted: dict[str, jax.Array] = {}
    logged: dict[str, jax.Array] = {}
    new_state = dict(state)
    for term in self.terms:
      value, extra, after = term(inputs, state.get(term.name))
      weight = term.weight(step)
      weighted[term.name] = weight * value
      logged |= {f"loss/{term.name}": value, f"weight/{term.name}": jnp.asarray(weight, jnp.float32)}
      logged |= {f"{term.name}/{k}": v for k, v in extra.items()}
      if after is not None:
        new_state[term.name] = after
    return weighted, logged, new_state


def _schedule(options, steps: int, steps_per_epoch: int) -> optax.Schedule:
  begin, rise = (round(e * steps_per_epoch) for e in (options.start_epoch, options.warmup_epochs))
  return weight_schedule(
    options.schedule,
    start=options.weight,
    end=options.end_weight,
    before=options.initial_weight,
    begin_step=begin,
    warmup_steps=rise,
    steps=steps,
  )


def _bind(
  name: str, options, student: Owner, teachers: dict[str, Owner], weight, unmixed: frozenset[str]
) -> Term:
  """A term with its taps and targets resolved. Raises UserError for a tap that its owner does not have."""
  taps = student_taps(options)
  for tap in taps:
    student.check(f"terms.{name}.student_taps", tap)
  targets: list[Target] = []
  for teacher in (options.teacher, *options.ensemble) if options.teacher else ():
    owner = teachers[teacher]
    for i, tap in enumerate(teacher_taps(options, student, owner)):
      owner.check(f"terms.{name}.teacher_taps", tap)
      form = form_of(options, owner.taps[tap].shape)
      targets.append(Target(teacher, tap, form, _grid(student, taps[i]) if form == "grid" else None))
  return Term(name, options, weight, student, taps, tuple(targets), unmixed)


def _grid(student: Owner, tap: str) -> tuple[int, int] | None:
  """Rows and columns of the student's tap; None for a feature without positions (told by `_check`)."""
  shape = student.taps[tap].shape
  if len(shape) == 4:
    return shape[1], shape[2]
  return student.grid if len(shape) == 3 else None


def _check(term: Term, teachers: dict[str, Owner], mixing: bool) -> None:
  """Raises UserError for shapes that the term cannot use."""
  where, kind = f"terms.{term.name}", term.options.kind
  owned = [("student_taps", term.student, tap) for tap in term.student_taps]
  owned += [("teacher_taps", teachers[t.teacher], t.tap) for t in term.targets]
  spatial = kind == "attention_transfer" or any(t.form == "grid" for t in term.targets)
  for field, owner, tap in owned:
    if spatial and len(owner.taps[tap].shape) == 2:
      raise UserError(
        f"{where}.{field}: '{tap}' of {owner.name} has no tokens",
        "name a tap with tokens (blockNN/tokens, stageN) or set over=samples",
      )
  if mixing and kind == "cross_entropy" and term.options.smoothing:
    raise UserError(
      f"{where}.smoothing={term.options.smoothing} with MixUp or CutMix, whose labels are soft already",
      f"set --config.{where}.smoothing=0",
    )
  if kind in schema.LOGIT_KINDS:
    _check_logits(term, teachers, mixing)
  if kind == "locality" and any(not tap.endswith("/attn") for tap in term.student_taps):
    raise UserError(f"{where}.student_taps: {term.student_taps} are no attention maps", "name blockNN/attn")
  if kind in ("cka", "correlation", "gram") and spatial:
    rows = min(t.grid[0] * t.grid[1] for t in term.targets if t.grid)
    if rows < LEAST_ROWS:
      raise UserError(f"{where}: '{kind}' over {rows} tokens", f"use at least {LEAST_ROWS} patches")


def _check_logits(term: Term, teachers: dict[str, Owner], mixing: bool) -> None:
  where = f"terms.{term.name}"
  classes = term.student.taps["logits/cls"].shape[-1]
  for target in term.targets:
    found = teachers[target.teacher].taps[target.tap].shape[-1]
    if found != classes:
      raise UserError(
        f"{where}: the student has {classes} classes, {teachers[target.teacher].name} has {found}",
        "use a teacher trained on the same classes",
      )
  if mixing and term.options.kind in ("dkd", "ofa"):
    raise UserError(
      f"{where}: '{term.options.kind}' singles out one class, MixUp and CutMix give two",
      "set data.augment.mixup and data.augment.cutmix to 0, or use soft_kd",
    )
