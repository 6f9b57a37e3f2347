"""The kinds of terms: which pure loss, on what, with which student-side head.

Each is a function (term, inputs, state) -> (value [], values to log, new state). Formulas live in `jaxkd.losses`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxkd import losses
from jaxkd.data.mixing import mix_targets, soft_labels
from jaxkd.models.heads import Projector, PrototypeHead
from jaxkd.targets import Owner, Taps, Target, pooled, spatial

Mix = tuple[jax.Array, jax.Array]  # partner [b] int32, weight [b] float32


@dataclasses.dataclass(frozen=True)
class Inputs:
  """What a term may look at."""

  student: Taps
  targets: dict[str, Taps]  # by teacher and `Target.key`
  labels: jax.Array  # int32 [b]
  mix: Mix | None  # MixUp or CutMix of the student's images
  heads: dict[str, Any]  # the student's heads
  ema_heads: dict[str, Any]  # their moving average, for a teacher that is the student's own
  whitening: dict[str, Any]  # fitted maps, by term and layer
  epoch: jax.Array
  views: dict[str, int]  # global and local views per image


@dataclasses.dataclass(frozen=True)
class Term:
  """One summand of the objective. `unmixed` teachers see images that were not mixed: their targets are."""

  name: str
  options: Any
  weight: optax.Schedule
  student: Owner
  student_taps: tuple[str, ...]
  targets: tuple[Target, ...]  # one for each student tap; then, for logits, those of the ensemble
  unmixed: frozenset[str] = frozenset()

  def __call__(self, inputs: Inputs, state: Any) -> tuple[jax.Array, dict[str, jax.Array], Any]:
    return LOSSES[self.options.kind](self, inputs, state)


def _apply(head: nn.Module, params, x: jax.Array) -> Any:
  return head.apply({"params": params}, x)


def _compute(inputs: Inputs) -> Any:
  """What the student multiplies in, and its heads too: the dtype of its tokens or maps; features and logits are
  float32 in any case, as all statistics are."""
  low = any(tap.dtype == jnp.bfloat16 for tap in inputs.student.values())
  return jnp.bfloat16 if low else jnp.float32


# --- on logits ---


def _student_logits(term: Term, inputs: Inputs) -> jax.Array:
  return inputs.student[term.student_taps[0]]


def _teacher_logits(term: Term, inputs: Inputs, temperature: float) -> jax.Array:
  """The teacher's logits; of an ensemble or of mixed images, logits whose softened softmax is the averaged one."""
  logits = [(t.teacher, inputs.targets[t.teacher][t.key].astype(jnp.float32)) for t in term.targets]
  mixed = inputs.mix is not None and any(name in term.unmixed for name, _ in logits)
  if len(logits) == 1 and not mixed:
    return logits[0][1]
  shares = [_mixed(jax.nn.softmax(z / temperature), term, name, inputs) for name, z in logits]
  return temperature * jnp.log(jnp.maximum(sum(shares) / len(shares), 1e-30))


def _mixed(shares: jax.Array, term: Term, teacher: str, inputs: Inputs) -> jax.Array:
  if inputs.mix is None or teacher not in term.unmixed:
    return shares
  return mix_targets(shares, *inputs.mix)


def _cross_entropy(term: Term, inputs: Inputs, state):
  logits, labels = _student_logits(term, inputs), inputs.labels
  if inputs.mix is not None:
    labels = soft_labels(labels, *inputs.mix, logits.shape[-1])
  return losses.cross_entropy(logits, labels, smoothing=term.options.smoothing).mean(), {}, None


def _soft_kd(term: Term, inputs: Inputs, state):
  tau = term.options.temperature
  value = losses.soft_kd(_student_logits(term, inputs), _teacher_logits(term, inputs, tau), temperature=tau)
  return value.mean(), {}, None


def _hard_kd(term: Term, inputs: Inputs, state):
  return losses.hard_kd(_student_logits(term, inputs), _teacher_logits(term, inputs, 1.0)).mean(), {}, None


def _dkd(term: Term, inputs: Inputs, state):
  o = term.options
  s, t = _student_logits(term, inputs), _teacher_logits(term, inputs, o.temperature)
  value = losses.dkd(s, t, inputs.labels, alpha=o.alpha, beta=o.beta, temperature=o.temperature)
  return value.mean(), {}, None


def _dist(term: Term, inputs: Inputs, state):
  o = term.options
  s, t = _student_logits(term, inputs), _teacher_logits(term, inputs, o.temperature)
  return losses.dist(s, t, beta=o.beta, gamma=o.gamma, temperature=o.temperature), {}, None


def _ofa(term: Term, inputs: Inputs, state):
  o = term.options
  t, values = _teacher_logits(term, inputs, o.temperature), []
  for i, tap in enumerate(term.student_taps):
    x = inputs.student[tap].astype(jnp.float32)
    if not tap.startswith("logits"):
      head = Projector(kind=_stage_head(o), features=t.shape[-1], dtype=_compute(inputs))
      x = _apply(head, inputs.heads[term.name][f"layer{i}"], pooled(x, term.student.special))
    values.append(losses.ofa(x, t, inputs.labels, epsilon=o.epsilon, temperature=o.temperature))
  return _mean_over_pairs(term, values), {}, None


def _stage_head(options) -> str:
  return "linear" if options.head == "none" else options.head


# --- on tokens, maps and features ---


def _pairs(term: Term, inputs: Inputs) -> list[tuple[jax.Array, jax.Array]]:
  """(student, teacher) for each pair of taps, in the form of the target; tokens as [b n d]."""
  pairs = []
  for tap, target in zip(term.student_taps, term.targets, strict=True):
    s, t = inputs.student[tap], inputs.targets[target.teacher][target.key].astype(jnp.float32)
    if target.form == "pooled":
      pairs.append((pooled(s, term.student.special), t))
    else:
      pairs.append((_rows(spatial(s, term.student.special)), _rows(t)))
  return pairs


def _rows(maps: jax.Array) -> jax.Array:
  """Maps [b h w d] as tokens [b n d]."""
  return maps.reshape(maps.shape[0], -1, maps.shape[-1])


def _mean_over_pairs(term: Term, values: list[jax.Array]) -> jax.Array:
  weights = term.options.layer_weights or (1 / len(values),) * len(values)
  return sum(w * v.mean() for w, v in zip(weights, values, strict=True))


def _token_cosine(term: Term, inputs: Inputs, state):
  values, spread = [], []
  for i, (s, t) in enumerate(_pairs(term, inputs)):
    t = losses.normalize_tokens(t)
    if term.options.whiten:
      t = losses.whiten(t, losses.Whitening(*inputs.whitening[term.name][f"layer{i}"]))
    if term.options.head == "none":
      s = losses.normalize_tokens(s)
    else:
      head = Projector(kind=term.options.head, features=t.shape[-1], dtype=_compute(inputs))
      s = _apply(head, inputs.heads[term.name][f"layer{i}"], s)
    values.append(losses.token_cosine(s, t, metric=term.options.metric))
    spread.append((_spread(s), _spread(t)))
  prediction, target = (sum(x) / len(spread) for x in zip(*spread, strict=True))
  return _mean_over_pairs(term, values), {"prediction_spread": prediction, "target_spread": target}, None


def _spread(x: jax.Array) -> jax.Array:
  """Standard deviation of unit tokens over batch and positions; near 0 means a collapsed projection.

  The mean square minus the square of the mean, which reads `x` twice and writes nothing of its size: this is
  computed in every step. Below 1e-3 it is rounding.
  """
  rows = jax.lax.stop_gradient(x.astype(jnp.float32)).reshape(-1, x.shape[-1])
  square = (rows * rows).sum(-1)
  scale = jax.lax.rsqrt(square + 1e-12)
  mean = scale @ rows / rows.shape[0]
  return jnp.sqrt(jnp.maximum((square * scale**2).mean() - (mean * mean).sum(), 0.0))


def _structural(loss: Callable, *names: str) -> Callable:
  """A loss on the rows of two arrays, with the options it takes."""

  def term_loss(term: Term, inputs: Inputs, state):
    options = {n: term.options[n] for n in names}
    pairs = _pairs(term, inputs)
    spread = {
      "prediction_spread": sum(_spread(s) for s, _ in pairs) / len(pairs),
      "target_spread": sum(_spread(t) for _, t in pairs) / len(pairs),
    }
    return _mean_over_pairs(term, [loss(s, t, **options) for s, t in pairs]), spread, None

  return term_loss


def _attention_transfer(student: jax.Array, teacher: jax.Array) -> jax.Array:
  return losses.attention_transfer(student[:, :, None], teacher[:, :, None])


def _locality(term: Term, inputs: Inputs, state):
  o, owner = term.options, term.student
  values, logged = [], {}
  for tap, target in zip(term.student_taps, o.targets, strict=True):
    maps = inputs.student[tap]
    values.append(
      losses.locality(maps, float(target), grid=owner.grid, special_tokens=owner.special, relative=o.relative)
    )
    distance = losses.attention_distance(maps, grid=owner.grid, special_tokens=owner.special)
    logged[f"{tap.partition('/')[0]}_distance"] = jax.lax.stop_gradient(distance.mean())
  return _mean_over_pairs(term, values), logged, None


# --- self-supervised ---


def _dino(term: Term, inputs: Inputs, state):
  o, target_of = term.options, term.targets[0]
  sizes = {"prototypes": o.prototypes, "hidden": o.hidden, "bottleneck": o.bottleneck}
  head = PrototypeHead(**sizes, dtype=_compute(inputs))
  own, ema = inputs.heads[term.name]["prototypes"], inputs.ema_heads[term.name]["prototypes"]
  tap, features = term.student_taps[0], inputs.targets[target_of.teacher][target_of.key]
  target = _by_view(_apply(head, ema, features), inputs.views["global"])
  student = _by_view(_apply(head, own, inputs.student[tap]), inputs.views["global"])
  if inputs.views["local"]:
    local = _by_view(_apply(head, own, inputs.student[f"local/{tap}"]), inputs.views["local"])
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
  "soft_kd": _soft_kd,
  "hard_kd": _hard_kd,
  "dkd": _dkd,
  "dist": _dist,
  "ofa": _ofa,
  "token_cosine": _token_cosine,
  "correlation": _structural(
    losses.correlation_kl, "temperature", "direction", "over", "metric", "keep_diagonal"
  ),
  "cka": _structural(losses.cka_loss, "kernel", "debiased", "over"),
  "gram": _structural(losses.gram, "published"),
  "rkd": _structural(losses.rkd, "distance_weight", "angle_weight"),
  "attention_transfer": _structural(_attention_transfer),
  "similarity_preserving": _structural(losses.similarity_preserving),
  "locality": _locality,
  "dino": _dino,
}


# --- student-side heads ---


def heads(term: Term, teachers: dict[str, Owner]) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
  """The term's student-side modules by name, each with the input shape that initialises it."""
  o, taps = term.options, term.student.taps
  if o.kind == "dino":
    head = PrototypeHead(prototypes=o.prototypes, hidden=o.hidden, bottleneck=o.bottleneck)
    return {"prototypes": (head, (1, taps[term.student_taps[0]].shape[-1]))}
  if o.kind == "ofa":
    classes = teachers[o.teacher].taps[term.targets[0].tap].shape[-1]
    stages = [(i, tap) for i, tap in enumerate(term.student_taps) if not tap.startswith("logits")]
    return {
      f"layer{i}": (Projector(kind=_stage_head(o), features=classes), (1, taps[tap].shape[-1]))
      for i, tap in stages
    }
  if o.kind != "token_cosine" or o.head == "none":
    return {}
  pairs = zip(term.student_taps, term.targets, strict=True)
  return {
    f"layer{i}": (
      Projector(kind=o.head, features=teachers[t.teacher].taps[t.tap].shape[-1]),
      (1, 1, taps[tap].shape[-1]),
    )
    for i, (tap, t) in enumerate(pairs)
  }
