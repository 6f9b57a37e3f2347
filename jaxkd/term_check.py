"""Every term once on shapes, before anything is compiled: what a loss cannot take is a user error, not a traceback."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd.errors import UserError
from jaxkd.objective import Objective
from jaxkd.targets import Taps
from jaxkd.terms import Inputs, Term, heads


def check_terms(objective: Objective, *, batch_size: int) -> None:
  """Traces each term's loss on taps of the run's batch. DINO's takes any features, so it is left out.

  Raises:
    UserError: sizes or widths that a loss cannot compare; it names the term.
  """
  rows = batch_size * objective.views["global"]
  for term in objective.terms:
    if term.options.kind == "dino":
      continue
    try:
      jax.eval_shape(lambda term=term: _value(objective, term, rows))
    except (ValueError, TypeError) as e:
      raise UserError(
        f"terms.{term.name}: {e}", "choose other taps, a head (token_cosine), or over=samples"
      ) from e


def _value(objective: Objective, term: Term, rows: int) -> jax.Array:
  owners = {target.teacher: objective.teachers[target.teacher] for target in term.targets}
  targets = {n: objective.make_targets(n, _zeros(owner.taps, rows)) for n, owner in owners.items()}
  modules = heads(term, objective.teachers)
  params = {n: m.init(jax.random.key(0), jnp.zeros(s))["params"] for n, (m, s) in modules.items()}
  whitening = {}
  for i, target in enumerate(term.targets):
    width = targets[target.teacher][target.key].shape[-1]
    whitening[f"layer{i}"] = (jnp.zeros(width), jnp.eye(width))
  inputs = Inputs(
    student=_zeros(term.student.taps, rows),
    targets=targets,
    labels=jnp.zeros(rows, jnp.int32),
    mix=None,
    heads={term.name: params},
    ema_heads={},
    whitening={term.name: whitening},
    epoch=jnp.zeros(()),
    views=objective.views,
  )
  return term(inputs, None)[0]


def _zeros(taps: Taps, rows: int) -> Taps:
  return {name: jnp.zeros((rows, *tap.shape[1:]), tap.dtype) for name, tap in taps.items()}
