"""Optimiser and learning-rate schedule from `config.optim`, on optax."""

from __future__ import annotations

import math

import jax
import optax

from jaxkd import lr_schedules
from jaxkd import parameter_groups as groups
from jaxkd.config_rules import check_milestones
from jaxkd.errors import UserError
from jaxkd.muon import muon
from jaxkd.parameter_groups import decay_mask
from jaxkd.plateau import scale_by_plateau

__all__ = ["decay_mask", "make_optimizer", "make_schedule", "peak_lr"]


def make_schedule(
  optim, *, steps: int, steps_per_epoch: int, batch_size: int | None = None
) -> optax.Schedule:
  """The learning rate of each step: a linear warm-up over `warmup_epochs`, then `schedule` over what is left.

  With `accumulate` > 1 all counts are updates: it keeps one value for the steps of an update, and the run has
  the learning rates of one with batches `accumulate` times as large. `batch_size` is needed for `lr_scaling`.

  Raises:
    UserError: milestones that `schedule=step` cannot use, or fewer steps than one update takes.
  """
  if steps < optim.accumulate:
    raise UserError(
      f"optim.accumulate={optim.accumulate}: {steps} steps make no update", "accumulate less or train longer"
    )
  updates, per_epoch = steps // optim.accumulate, steps_per_epoch / optim.accumulate
  warmup = min(round(optim.warmup_epochs * per_epoch), max(updates - 1, 0))
  lr = peak_lr(optim, batch_size)
  after = _after(optim, lr, updates=updates, warmup=warmup, per_epoch=per_epoch)
  start = lr * optim.initial_lr if optim.schedule in ("one_cycle", "cyclic") else lr
  return lr_schedules.held(lr_schedules.with_warmup(after, start=start, updates=warmup), optim.accumulate)


def peak_lr(optim, batch_size: int | None = None) -> float:
  """`lr`, scaled by the images per update where `lr_scaling` says so.

  linear: Goyal et al. (2017), arXiv:1706.02677; sqrt: Krizhevsky (2014), arXiv:1404.5997.

  Raises:
    ValueError: scaling without a batch size.
  """
  if optim.lr_scaling == "none":
    return optim.lr
  if batch_size is None:
    raise ValueError(f"peak_lr: lr_scaling='{optim.lr_scaling}' needs the batch size")
  ratio = batch_size * optim.accumulate / optim.lr_base_batch
  return optim.lr * (ratio if optim.lr_scaling == "linear" else math.sqrt(ratio))


def _after(optim, lr: float, *, updates: int, warmup: int, per_epoch: float) -> optax.Schedule:
  left = max(updates - warmup, 1)
  match optim.schedule:
    case "cosine":
      return optax.cosine_decay_schedule(lr, left, alpha=optim.final_lr)
    case "constant" | "plateau":  # the factor of a plateau is in the optimiser's state, see make_optimizer
      return optax.constant_schedule(lr)
    case "linear":
      return optax.linear_schedule(lr, lr * optim.final_lr, left)
    case "step":
      check_milestones(optim, "optim")
      milestones = [round(epoch * per_epoch) - warmup for epoch in optim.milestones]
      return lr_schedules.multi_step(lr, milestones=milestones, gamma=optim.milestone_gamma)
    case "exponential":
      return lr_schedules.exponential(lr, gamma=optim.epoch_gamma, period=per_epoch)
    case "one_cycle":
      return lr_schedules.one_cycle(
        lr, updates=left, rise=optim.rise, initial=optim.initial_lr, final=optim.final_lr
      )
    case "cyclic":
      return lr_schedules.cyclic(lr, period=optim.cycle_epochs * per_epoch, low=optim.initial_lr)
  raise ValueError(f"make_schedule: unknown schedule '{optim.schedule}'")


def make_optimizer(optim, schedule: optax.Schedule) -> optax.GradientTransformation:
  """Clipping by the global norm, the optimiser, accumulation; all that for trained parameters only.

  Frozen parameters get updates of zero and have no state. `schedule` is that of `make_schedule`, by steps.

  Raises:
    UserError: a `freeze` that is no regular expression; from `init`, one that matches nothing, a model for
      which Muon has no matrices or `layer_decay` no depths.
  """
  groups.compiled(optim.freeze)
  every = optim.accumulate
  tx = _rule(optim, schedule if every == 1 else lambda update: schedule(update * every))
  if optim.schedule == "plateau":
    tx = optax.chain(tx, scale_by_plateau())
  if optim.clip:
    tx = optax.chain(optax.clip_by_global_norm(optim.clip), tx)
  if every > 1:
    tx = optax.MultiSteps(tx, every).gradient_transformation()
  if optim.freeze:
    tx = _trained_only(tx, tuple(optim.freeze))
  return tx if optim.layer_decay == 1 else optax.chain(tx, _scale_by_depth(optim.layer_decay))


def _rule(optim, lr: optax.Schedule) -> optax.GradientTransformation:
  mask = None if optim.decay_all else decay_mask
  into_gradient = optax.add_decayed_weights(optim.weight_decay, mask)
  betas = {"b1": optim.beta1, "b2": optim.beta2, "eps": optim.eps}
  match optim.name:
    case "adamw":
      return optax.adamw(lr, **betas, weight_decay=optim.weight_decay, mask=mask)
    case "adam":
      return optax.chain(into_gradient, optax.adam(lr, **betas))
    case "sgd":
      nesterov = optim.nesterov and optim.momentum > 0
      return optax.chain(into_gradient, optax.sgd(lr, optim.momentum or None, nesterov=nesterov))
    case "rmsprop":
      return optax.chain(into_gradient, _rmsprop(optim), optax.scale_by_learning_rate(lr))
    case "lion":
      return optax.lion(lr, optim.beta1, optim.lion_beta2, weight_decay=optim.weight_decay, mask=mask)
    case "muon":
      rest = optax.adamw(lr, **betas, weight_decay=optim.weight_decay, mask=mask)
      decay = {"weight_decay": optim.weight_decay, "mask": mask}
      return muon(lr, optim.muon_momentum, **decay, groups=_muon_groups, rest=rest)
  raise ValueError(f"make_optimizer: unknown optimiser '{optim.name}'")


def _rmsprop(optim) -> optax.GradientTransformation:
  """torch's: eps outside the root, and a momentum of what comes before the learning rate."""
  scaled = optax.scale_by_rms(optim.rmsprop_decay, optim.eps, eps_in_sqrt=False)
  return optax.chain(scaled, optax.trace(optim.rmsprop_momentum)) if optim.rmsprop_momentum else scaled


def _muon_groups(params) -> dict:
  mask = groups.muon_mask(params)
  if not any(jax.tree.leaves(mask)):
    raise UserError(
      "optim.name=muon: the model has no matrices in its blocks", "set --config.optim.name=adamw"
    )
  return mask


def _trained_only(tx: optax.GradientTransformation, freeze: tuple[str, ...]) -> optax.GradientTransformation:
  def labels(params):
    return jax.tree.map(lambda t: "trained" if t else "frozen", groups.trainable_mask(params, freeze))

  return optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, labels)


def _scale_by_depth(factor: float) -> optax.GradientTransformation:
  """Updates, decoupled weight decay included, times `factor` for each block below the head."""

  def init(params):
    groups.depths(params)  # complains before anything is compiled
    return optax.EmptyState()

  def update(updates, state, _=None):
    return jax.tree.map(lambda u, s: u * s, updates, groups.depth_scales(updates, factor)), state

  return optax.GradientTransformation(init, update)
