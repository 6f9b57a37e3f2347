"""What a validation changes: the count of early stopping, the learning rate's factor on a plateau.

Both are arrays of the training state. So they are saved and restored with it, and processes, which compute the same
validation from the same state, agree without asking each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxkd import plateau, sharding

if TYPE_CHECKING:
  from jaxkd.experiment import Experiment
  from jaxkd.step import TrainState


def fresh() -> dict[str, jax.Array]:
  """Before the first validation: the best value (float32) and the validations since (int32)."""
  return {"best": jnp.full((), -jnp.inf, jnp.float32), "bad": jnp.zeros((), jnp.int32)}


def observe(watch: dict[str, jax.Array], value: float) -> dict[str, jax.Array]:
  """`watch` after a validation whose metric (larger is better) was `value`; an equal one or a NaN is no improvement."""
  new, watch = jnp.asarray(value, jnp.float32), jax.device_get(watch)
  better = new > watch["best"]
  return {
    "best": jnp.where(better, new, watch["best"]),
    "bad": jnp.where(better, 0, watch["bad"] + 1).astype(jnp.int32),
  }


def is_over(experiment: Experiment, state: TrainState) -> bool:
  """True once `train.patience` validations in a row were no improvement."""
  patience = experiment.config.train.patience
  return bool(patience) and int(jax.device_get(state.watch["bad"])) >= patience


def after_validation(experiment: Experiment, state: TrainState, value: float) -> TrainState:
  """`state` with `value`, the run's metric on validation, taken note of."""
  optim, new = experiment.config.optim, state
  if optim.schedule == "plateau":
    seen = plateau.observe(
      state.opt,
      value,
      factor=optim.plateau_factor,
      patience=optim.plateau_patience,
      threshold=optim.plateau_threshold,
      cooldown=optim.plateau_cooldown,
      min_scale=optim.final_lr,
    )
    new = new.replace(opt=_placed(seen, state.opt))
  if experiment.config.train.patience:
    new = new.replace(watch=_placed(observe(state.watch, value), state.watch))
  return new


def _placed(new, old):
  """`new` where `old` is on the mesh; a step compiled for the one takes the other."""
  return jax.tree.map(lambda n, o: n if n is o else sharding.put(n, o.sharding), new, old)
