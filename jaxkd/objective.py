"""The objective as data: a term = tap names + student-side head + a pure loss + a weight schedule.

`Objective` sums the terms of `config.terms`. It knows no training mode: a baseline, a CNN- or ViT-distilled
student and self-supervised pretraining differ in their terms and teachers only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxkd import losses, schema
from jaxkd.errors import UserError, did_you_mean
from jaxkd.models.heads import Projector, PrototypeHead

Taps = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Inputs:
  """What a term may look at. `special` counts the leading non-patch tokens by owner ("student" or a teacher)."""

  student: Taps
  teachers: dict[str, Taps]
  labels: jax.Array
  heads: dict[str, Any]  # the student's heads
  ema_heads: dict[str, Any]  # their moving average, for a teacher that is the student's own
  special: dict[str, int]
  epoch: jax.Array
  views: dict[str, int]  # global and local views per image


@dataclasses.dataclass(frozen=True)
class Term:
  """One summand. `loss(term, inputs, state) -> (value [], logged {}, new state)`."""

  name: str
  options: Any
  loss: Callable
  weight: optax.Schedule


class Objective:
  """All terms of a run.

  Args:
    terms: `config.terms`. steps_per_epoch: turns the schedules' epochs into steps.
    special: leading non-patch tokens of "student" and of each teacher.
    views: `{"global": g, "local": m}` views per image.
  """

  def __init__(self, terms, *, steps_per_epoch: int, special: dict[str, int], views: dict[str, int]):
    self.terms = [
      Term(name, options, LOSSES[options.kind], _weight_schedule(options, steps_per_epoch))
      for name, options in terms.items()
    ]
    self.steps_per_epoch, self.special, self.views = steps_per_epoch, special, views

  def check(self, student: Taps, teachers: dict[str, Taps]) -> None:
    """Raises UserError for a tap (given as shapes) that its owner does not have, or of the wrong shape."""
    for term in self.terms:
      _check_taps(term, student, teachers)

  def init(self, key: jax.Array, student: Taps, teachers: dict[str, Taps]) -> tuple[dict, dict]:
    """Parameters of the heads and initial state of the terms, from the shapes of the taps."""
    heads, state = {}, {}
    for i, term in enumerate(self.terms):
      modules = _heads(term, student, teachers)
      keys = jax.random.split(jax.random.fold_in(key, i), max(len(modules), 1))
      params = {
        n: m.init(k, jnp.zeros(s))["params"] for k, (n, (m, s)) in zip(keys, modules.items(), strict=False)
      }
      if params:
        heads[term.name] = params
      if term.options.kind == "dino":
        state[term.name] = {"sum": jnp.zeros(term.options.prototypes), "weight": jnp.zeros(())}
    return heads, state

  def __call__(
    self, student: Taps, teachers: dict[str, Taps], labels, *, heads, ema_heads, state, step
  ) -> tuple[dict[str, jax.Array], dict[str, jax.Array], dict]:
    """Weighted values by term, values to log, new state."""
    epoch = step / self.steps_per_epoch
    inputs = Inputs(student, teachers, labels, heads, ema_heads, self.special, epoch, self.views)
    weighted: dict[str, jax.Array] = {}
    logged: dict[str, jax.Array] = {}
    new_state = dict(state)
    for term in self.terms:
      value, extra, after = term.loss(term, inputs, state.get(term.name))
      weight = term.weight(step)
      weighted[term.name] = weight * value
      logged |= {f"loss/{term.name}": value, f"weight/{term.name}": jnp.asarray(weight, jnp.float32)}
      logged |= {f"{term.name}/{k}": v for k, v in extra.items()}
      if after is not None:
        new_state[term.name] = after
    return weighted, logged, new_state


def _weight_schedule(options, steps_per_epoch: int) -> optax.Schedule:
  """0 before `start_epoch`, then a linear rise over `warmup_epochs` to `weight`."""
  start, rise = (round(e * steps_per_epoch) for e in (options.start_epoch, options.warmup_epochs))
  if not start and not rise:
    return optax.constant_schedule(options.weight)
  after = (
    optax.linear_schedule(0.0, options.weight, rise) if rise else optax.constant_schedule(options.weight)
  )
  return optax.join_schedules([optax.constant_schedule(0.0), after], [start])


# --- taps ---


def _default_taps(options) -> tuple[tuple[str, ...], tuple[str, ...]]:
  student = {"soft_kd": "logits/dist", "hard_kd": "logits/dist", "dino": "features"}.get(
    options.kind, "logits/cls"
  )
  teacher = "features" if options.kind == "dino" else "logits"
  return tuple(options.student_taps) or (student,), tuple(options.teacher_taps) or (teacher,)


def _check_taps(term: Term, student: Taps, teachers: dict[str, Taps]) -> None:
  students, targets = _default_taps(term.options)
  owners = [("student_taps", "the student", student, students)]
  if term.options.teacher:
    owners.append(
      ("teacher_taps", f"teacher '{term.options.teacher}'", teachers[term.options.teacher], targets)
    )
  for field, owner, taps, names in owners:
    for name in names:
      if name not in taps:
        raise UserError(f"terms.{term.name}.{field}: {owner} has no '{name}'", did_you_mean(name, taps))
      _check_shape(term, f"terms.{term.name}.{field}: {owner}'s '{name}'", taps[name].shape)
  if term.options.kind in schema.LOGIT_KINDS:
    a, b = student[students[0]].shape[-1], teachers[term.options.teacher][targets[0]].shape[-1]
    if a != b:
      raise UserError(
        f"terms.{term.name}: the student has {a} classes, teacher '{term.options.teacher}' has {b}",
        "use a teacher trained on the same classes",
      )


def _check_shape(term: Term, what: str, shape: tuple[int, ...]) -> None:
  over = getattr(term.options, "over", "tokens")
  if term.options.kind in schema.TOKEN_KINDS and over == "tokens" and len(shape) == 2:
    raise UserError(
      f"{what} has no tokens", "name a tap with tokens (blockNN/tokens, stageN) or set over=samples"
    )


def spatial(tap: jax.Array, special: int) -> jax.Array:
  """Tokens [b n d] (special ones dropped, the rest on a square grid) or maps [b h w c], as float32 [b h w d]."""
  tap = tap.astype(jnp.float32)
  if tap.ndim == 4:
    return tap
  patches = tap[:, special:]
  side = round(patches.shape[1] ** 0.5)
  if side * side != patches.shape[1]:
    raise UserError(f"{patches.shape[1]} patch tokens are no square grid", "use square images")
  return patches.reshape(patches.shape[0], side, side, -1)


def _token_pairs(term: Term, inputs: Inputs) -> list[tuple[jax.Array, jax.Array]]:
  """(student, teacher) for each pair of taps: [b n d] on the student's grid, or [b d] over samples."""
  students, targets = _default_taps(term.options)
  pairs = []
  for s_name, t_name in zip(students, targets, strict=True):
    s, t = inputs.student[s_name], inputs.teachers[term.options.teacher][t_name]
    if getattr(term.options, "over", "tokens") == "samples":
      pairs.append((_pooled(s, inputs.special["student"]), _pooled(t, inputs.special[term.options.teacher])))
      continue
    s = spatial(s, inputs.special["student"])
    t = losses.resize_grid(spatial(t, inputs.special[term.options.teacher]), (s.shape[1], s.shape[2]))
    pairs.append((_rows(s), _rows(t)))
  return pairs


def _rows(maps: jax.Array) -> jax.Array:
  """Maps [b h w d] as tokens [b n d]."""
  return maps.reshape(maps.shape[0], -1, maps.shape[-1])


def _pooled(tap: jax.Array, special: int) -> jax.Array:
  return tap.astype(jnp.float32) if tap.ndim == 2 else spatial(tap, special).mean((1, 2))


def _mean_over_pairs(term: Term, values: list[jax.Array]) -> jax.Array:
  weights = term.options.layer_weights or (1 / len(values),) * len(values)
  return sum(w * v.mean() for w, v in zip(weights, values, strict=True))


# --- heads ---


def _heads(
  term: Term, student: Taps, teachers: dict[str, Taps]
) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
  """The term's student-side modules with the input shape that initialises each."""
  o = term.options
  students, targets = _default_taps(o)
  if o.kind == "dino":
    head = PrototypeHead(prototypes=o.prototypes, hidden=o.hidden, bottleneck=o.bottleneck)
    return {"prototypes": (head, (1, student[students[0]].shape[-1]))}
  if o.kind != "token_cosine" or o.head == "none":
    return {}
  return {
    f"layer{i}": (
      Projector(kind=o.head, features=teachers[o.teacher][t].shape[-1]),
      (1, 1, student[s].shape[-1]),
    )
    for i, (s, t) in enumerate(zip(students, targets, strict=True))
  }


def _apply_head(module: nn.Module, params, x: jax.Array) -> Any:
  return module.apply({"params": params}, x)


# --- the losses as terms: (term, inputs, state) -> (value, logged, new state) ---


def _cross_entropy(term, inputs, state):
  logits = inputs.student[_default_taps(term.options)[0][0]]
  return losses.cross_entropy(logits, inputs.labels, smoothing=term.options.smoothing).mean(), {}, None


def _logit_kd(term, inputs, state):
  students, targets = _default_taps(term.options)
  s, t = inputs.student[students[0]], inputs.teachers[term.options.teacher][targets[0]]
  if term.options.kind == "hard_kd":
    return losses.hard_kd(s, t).mean(), {}, None
  return losses.soft_kd(s, t, temperature=term.options.temperature).mean(), {}, None


def _token_cosine(term, inputs, state):
  values, spread = [], []
  for i, (s, t) in enumerate(_token_pairs(term, inputs)):
    t = losses.normalize_tokens(t)
    if term.options.head == "none":
      s = losses.normalize_tokens(s)
    else:
      head = Projector(kind=term.options.head, features=t.shape[-1])
      s = _apply_head(head, inputs.heads[term.name][f"layer{i}"], s)
    values.append(losses.token_cosine(s, t, metric=term.options.metric))
    spread.append((_spread(s), _spread(t)))
  prediction, target = (sum(x) / len(spread) for x in zip(*spread, strict=True))
  return _mean_over_pairs(term, values), {"prediction_spread": prediction, "target_spread": target}, None


def _spread(x: jax.Array) -> jax.Array:
  """Standard deviation of unit tokens over batch and positions; near 0 means a collapsed projection."""
  unit = x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True) + 1e-12)
  return jax.lax.stop_gradient(jnp.sqrt(unit.var(axis=(0, 1)).sum()))


def _structural(loss: Callable, *names: str) -> Callable:
  def term_loss(term, inputs, state):
    options = {n: term.options[n] for n in names}
    values = [loss(s, t, **options) for s, t in _token_pairs(term, inputs)]
    return _mean_over_pairs(term, values), {}, None

  return term_loss


def _dino(term, inputs, state):
  o = term.options
  head = PrototypeHead(prototypes=o.prototypes, hidden=o.hidden, bottleneck=o.bottleneck)
  own, ema = inputs.heads[term.name]["prototypes"], inputs.ema_heads[term.name]["prototypes"]
  students, targets = _default_taps(o)
  features = inputs.teachers[o.teacher][targets[0]]
  target = _by_view(_apply_head(head, ema, features), inputs.views["global"])
  student = _by_view(_apply_head(head, own, inputs.student[students[0]]), inputs.views["global"])
  if inputs.views["local"]:
    local = _by_view(_apply_head(head, own, inputs.student[f"local/{students[0]}"]), inputs.views["local"])
    student = jnp.concatenate([student, local])
  rise = jnp.clip(inputs.epoch / max(o.temperature_warmup_epochs, 1e-6), 0, 1)
  tau = o.teacher_temperature_start + (o.teacher_temperature - o.teacher_temperature_start) * rise
  target = jax.lax.stop_gradient(target)
  # The running centre holds this batch too and is corrected for its start at 0. Started at 0 uncorrected, as in the
  # reference code, a narrow model first learns the component that all outputs share, and a sharp target collapses.
  total = losses.update_center(state["sum"], target, momentum=o.center_momentum)
  weight = o.center_momentum * state["weight"] + 1 - o.center_momentum
  center = total / weight
  value = losses.dino(
    student, target, center, student_temperature=o.student_temperature, teacher_temperature=tau
  )
  sample, marginal = losses.output_entropy(target, center, teacher_temperature=tau)
  logged = {"entropy": sample, "marginal_entropy": marginal, "feature_spread": _spread(features[:, None])}
  return value.mean(), logged, {"sum": total, "weight": weight}


def _by_view(x: jax.Array, views: int) -> jax.Array:
  return x.reshape(views, -1, x.shape[-1])


LOSSES: dict[str, Callable] = {
  "cross_entropy": _cross_entropy,
  "soft_kd": _logit_kd,
  "hard_kd": _logit_kd,
  "token_cosine": _token_cosine,
  "correlation": _structural(
    losses.correlation_kl, "temperature", "direction", "over", "metric", "keep_diagonal"
  ),
  "cka": _structural(losses.cka_loss, "kernel", "debiased", "over"),
  "gram": _structural(losses.gram, "published"),
  "dino": _dino,
}
