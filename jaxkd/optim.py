"""Optimiser and learning-rate schedule from `config.optim`, on optax."""

from __future__ import annotations

import re

import jax
import optax

# Matrices and convolution kernels decay; biases, norms, tokens and positions do not (DeiT's rule).
DECAYED = re.compile(r".*kernel$")


def make_schedule(optim, *, steps: int, steps_per_epoch: int) -> optax.Schedule:
  """Linear warm-up from 0 over `warmup_epochs`, then cosine to `final_lr * lr`, or constant. lr per step."""
  warmup = min(round(optim.warmup_epochs * steps_per_epoch), max(steps - 1, 0))
  if optim.schedule == "cosine":
    after = optax.cosine_decay_schedule(optim.lr, max(steps - warmup, 1), alpha=optim.final_lr)
  else:
    after = optax.constant_schedule(optim.lr)
  if not warmup:
    return after
  return optax.join_schedules(
    [optax.linear_schedule(optim.lr / warmup, optim.lr, warmup - 1), after], [warmup]
  )


def decay_mask(params) -> dict:
  """True where weight decay applies, by parameter path."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: bool(DECAYED.fullmatch(jax.tree_util.keystr(path, simple=True, separator="/"))), params
  )


def make_optimizer(optim, schedule: optax.Schedule) -> optax.GradientTransformation:
  """Clipping by the global norm of all trainable parameters, then AdamW or SGD with Nesterov momentum."""
  mask = None if optim.decay_all else decay_mask
  if optim.name == "adamw":
    update = optax.adamw(schedule, optim.beta1, optim.beta2, weight_decay=optim.weight_decay, mask=mask)
  else:
    update = optax.chain(
      optax.add_decayed_weights(optim.weight_decay, mask),
      optax.sgd(schedule, optim.momentum or None, nesterov=optim.momentum > 0),
    )
  return optax.chain(optax.clip_by_global_norm(optim.clip), update) if optim.clip else update
