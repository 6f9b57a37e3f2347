"""From a config to the objects of a run: data, model, teachers, objective, optimiser, mesh. Nothing is compiled."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxkd import config as configs
from jaxkd import data, models, optim, sharding, teachers
from jaxkd.data import Dataset
from jaxkd.errors import UserError
from jaxkd.objective import Objective
from jaxkd.targets import Owner
from jaxkd.teachers import Teacher


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
  """Everything a training run is made of.

  Two experiments are equal when they differ in nothing but the seed: such runs share their compiled programs.
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
    """The config but for its seed, the data and the teachers."""
    keys = {k: v for k, v in configs.flat(self.config).items() if k != "seed"}
    digests = {name: (t.digest, t.view, t.size, bool(t.bank)) for name, t in self.teachers.items()}
    return repr((keys, self.dataset.digest, digests, self.mesh))

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Experiment) and self.signature == other.signature

  def __hash__(self) -> int:
    return hash(self.signature)

  def every(self, epochs: float) -> int:
    """`epochs` in steps, at least 1."""
    return max(round(epochs * self.steps_per_epoch), 1)

  @property
  def uses_ema(self) -> bool:
    return self.config.train.ema > 0


def build(config: ConfigDict) -> Experiment:
  """Builds and cross-checks a run.

  Raises:
    UserError: the parts do not fit together; nothing has been compiled or written by then.
  """
  dataset = data.load(config.data)
  options = model_options(config, dataset)
  model = create_model(options)
  frozen = teachers.load_teachers(config, model, dataset)
  mesh = sharding.make_mesh(fsdp=config.sharding.fsdp)
  sharding.check_batch(config.train.batch_size, mesh)
  per_epoch = data.steps_per_epoch(len(dataset.train), config.train.batch_size)
  steps = config.train.steps or math.ceil(config.train.epochs * per_epoch)
  steps = -(-steps // config.optim.accumulate) * config.optim.accumulate  # the last update is a whole one
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
  for term, _, target in objective.whitened():
    if frozen[target.teacher].is_ema:
      raise UserError(
        f"terms.{term.name}.whiten: a fitted space must stand still, the student's own average moves",
        "set whiten=false, or use a frozen teacher",
      )
  return Experiment(config, dataset, model, options, frozen, objective, tx, schedule, mesh, steps, per_epoch)


def _owner(name: str, model: nn.Module, taps: dict) -> Owner:
  return Owner(name, taps, model.special_tokens, model.num_layers, getattr(model, "grid", (1, 1)))


def model_options(config: ConfigDict, dataset: Dataset) -> dict[str, Any]:
  """`config.model` with what the data set decides: image size, channels, classes."""
  size, _, channels = dataset.image_shape
  decided = {"image_size": size, "in_channels": channels, "num_classes": len(dataset.class_names)}
  return {**decided, "dtype": config.precision.compute, **config.model.to_dict()}


def create_model(options: dict[str, Any]) -> nn.Module:
  """`jaxkd.models.create`, with its complaints as user errors."""
  try:
    return models.create(**options)
  except (ValueError, TypeError) as e:
    raise UserError(f"config.model: {e}", "see jaxkd.models.options(name) for what it takes") from e


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
