"""From a config to the objects of a run: data, model, teachers, objective, optimiser, mesh. Nothing is compiled."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxkd import config as configs
from jaxkd import data, optim, schema, sharding, teachers
from jaxkd.data import Dataset
from jaxkd.errors import UserError
from jaxkd.model_options import create_model
from jaxkd.models.parameters import variable_shapes
from jaxkd.objective import Objective
from jaxkd.targets import Owner
from jaxkd.teachers import Teacher
from jaxkd.term_check import check_terms

SEEDS = ("seed", "data.order_seed", "train.replicas")  # what no compiled program depends on but in number


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
  """Everything a training run is made of.

  Two experiments are equal when they differ in nothing but seeds: such runs share their compiled programs.
  """

  config: ConfigDict
  dataset: Dataset
  model: nn.Module
  model_options: dict[str, Any]
  teachers: dict[str, Teacher]
  objective: Objective
  tx: optax.GradientTransformation
  schedule: optax.Schedule
  mesh: Mesh
  steps: int
  steps_per_epoch: int

  @functools.cached_property
  def signature(self) -> str:
    """The config but for its seeds, the data and the teachers."""
    keys = {k: v for k, v in configs.flat(self.config).items() if k not in SEEDS}
    digests = {name: (t.digest, t.view, t.size, bool(t.bank)) for name, t in self.teachers.items()}
    return repr((keys, len(self.replicas), self.dataset.digest, digests, self.mesh))

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Experiment) and self.signature == other.signature

  def __hash__(self) -> int:
    return hash(self.signature)

  @property
  def replicas(self) -> tuple[int, ...]:
    """Seeds of the students trained in one program; empty for a run of one."""
    return tuple(self.config.train.replicas)

  def every(self, epochs: float) -> int:
    """`epochs` in steps, at least 1."""
    return max(round(epochs * self.steps_per_epoch), 1)

  @property
  def uses_ema(self) -> bool:
    return self.config.train.ema > 0

  @property
  def uses_swa(self) -> bool:
    return self.config.train.swa_start_epoch > 0


def build(config: ConfigDict, mesh: Mesh | None = None) -> Experiment:
  """Builds and cross-checks a run, on `mesh` or else on all devices.

  Raises:
    UserError: the parts do not fit together; nothing has been compiled or written by then.
  """
  return assemble(config, data.load(config.data), teachers.load_teachers, mesh)


def assemble(
  config: ConfigDict,
  dataset: Dataset,
  load_teachers: Callable[[ConfigDict, nn.Module, Dataset], dict[str, Teacher]],
  mesh: Mesh | None = None,
) -> Experiment:
  """`build` with a data set and teachers of the caller's, which may be shapes only. Raises UserError as it does."""
  options = model_options(config, dataset)
  model = recomputing(create_model(options), config.train.remat)
  _check_following(config)
  mesh = sharding.make_mesh(fsdp=config.sharding.fsdp) if mesh is None else mesh
  per_epoch = data.steps_per_epoch(len(dataset.train), config.train.batch_size)
  sharding.check_batch(config.train.batch_size, mesh)
  frozen = load_teachers(config, model, dataset)
  steps = config.train.steps or math.ceil(config.train.epochs * per_epoch)
  steps = -(-steps // config.optim.accumulate) * config.optim.accumulate  # the last update is a whole one
  if steps >= 2**31:
    raise UserError(
      f"train.epochs={config.train.epochs:g} are {steps} steps", "train for fewer than 2147483648 steps"
    )
  if (start := config.train.swa_start_epoch) * per_epoch > steps:
    raise UserError(
      f"train.swa_start_epoch={start:g} is after the run of {steps / per_epoch:g} epochs: an average of nothing",
      "start earlier, e.g. at three quarters",
    )
  batch_size = config.train.batch_size
  schedule = optim.make_schedule(config.optim, steps=steps, steps_per_epoch=per_epoch, batch_size=batch_size)
  tx = optim.make_optimizer(config.optim, schedule)
  taps = tap_shapes(model, frozen, dataset.image_shape)
  augment, views = config.data.augment, config.data.views
  objective = Objective(
    config.terms,
    student=_owner("the student", model, taps[0]),
    teachers={n: _owner(f"teacher '{n}'", t.model, taps[1][n]) for n, t in frozen.items()},
    steps=steps,
    steps_per_epoch=per_epoch,
    views={"global": views.global_count, "local": views.local_count},
    unmixed=frozenset(n for n, t in frozen.items() if t.view != "same"),
    mixing=bool(augment.get("mixup", 0) or augment.get("cutmix", 0)),
  )
  _check_crops(config, model, dataset)
  _check_optimizer(tx, model, objective)
  check_terms(objective, batch_size=batch_size)
  for term, _, target in objective.whitened():
    if frozen[target.teacher].is_ema:
      raise UserError(
        f"terms.{term.name}.whiten: a fitted space must stand still, the student's own average moves",
        "set whiten=false, or use a frozen teacher",
      )
  return Experiment(config, dataset, model, options, frozen, objective, tx, schedule, mesh, steps, per_epoch)


def _check_crops(config: ConfigDict, model: nn.Module, dataset: Dataset) -> None:
  """Raises UserError for small crops that the model cannot take."""
  side, patch = config.data.views.local_size, getattr(model, "patch_size", 1)
  if not config.data.views.local_count:
    return
  try:
    _abstract_taps(model, jax.ShapeDtypeStruct((2, side, side, dataset.image_shape[-1]), jnp.float32))
  except (ValueError, TypeError) as e:
    near = sorted({max(side // patch, 1) * patch, (side // patch + 1) * patch})
    raise UserError(f"data.views.local_size={side}: {e}", f"set it to {' or '.join(map(str, near))}") from e


def recomputing(model: nn.Module, remat: str) -> nn.Module:
  """`model`, with `jax.checkpoint` around each of its blocks for `remat="blocks"`."""
  if remat == "none":
    return model
  if not hasattr(model, "remat"):
    raise UserError(
      f"train.remat='{remat}': {type(model).__name__} has no blocks to recompute", "set it to none"
    )
  return model.clone(remat=True)


def _check_optimizer(tx: optax.GradientTransformation, model: nn.Module, objective: Objective) -> None:
  """Raises the UserErrors of the optimiser's `init` (freezing, Muon, depths) before anything is compiled."""
  heads, _ = jax.eval_shape(lambda: objective.init(jax.random.key(0)))
  jax.eval_shape(tx.init, {"model": variable_shapes(model)["params"], "heads": heads})


def _check_following(config: ConfigDict) -> None:
  """Raises UserError for what follows a metric on validation where there is none."""
  for key, used in (
    ("optim.schedule=plateau", config.optim.schedule == "plateau"),
    (f"train.patience={config.train.patience}", config.train.patience > 0),
  ):
    if used and config.eval.metric == "none":
      raise UserError(
        f"{key} follows a metric on validation, and eval.metric is none",
        "set --config.eval.metric=accuracy_cls",
      )


def coupled_terms(config: ConfigDict) -> dict[str, str]:
  """Terms that relate the samples of a batch to each other, with what they relate; `optim.accumulate` splits these."""
  found = {}
  for name, term in config.terms.items():
    if term.kind in schema.COUPLED_KINDS:
      found[name] = schema.COUPLED_KINDS[term.kind]
    elif term.get("over", "tokens") == "samples":
      found[name] = "similarities of samples"
  return {n: what for n, what in found.items() if config.terms[n].kind != "dist" or config.terms[n].gamma > 0}


def _owner(name: str, model: nn.Module, taps: dict) -> Owner:
  return Owner(name, taps, model.special_tokens, model.num_layers, getattr(model, "grid", (1, 1)))


def model_options(config: ConfigDict, dataset: Dataset) -> dict[str, Any]:
  """`config.model` with what the data set decides: image size, channels, classes."""
  size, _, channels = dataset.image_shape
  decided = {"image_size": size, "in_channels": channels, "num_classes": len(dataset.class_names)}
  return {**decided, "dtype": config.precision.compute, **config.model.to_dict()}


def tap_shapes(
  model: nn.Module, frozen: dict[str, Teacher], image_shape: tuple[int, int, int]
) -> tuple[dict, dict[str, dict]]:
  """Shapes of the student's and every teacher's taps for a batch of 2, without computing."""
  images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
  prepared = {name: jax.eval_shape(teacher.prepare, images) for name, teacher in frozen.items()}
  taps = {}
  for name, x in prepared.items():
    try:
      taps[name] = _abstract_taps(frozen[name].model, x)
    except ValueError as e:
      raise UserError(f"teachers.{name}: {e}", f"set --config.teachers.{name}.size to a size it takes") from e
  return _abstract_taps(model, images, want=("attn",) if hasattr(model, "heads") else ()), taps


def _abstract_taps(model: nn.Module, images, want: tuple[str, ...] = ()) -> dict:
  return jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, want=want)[0][1], images)
