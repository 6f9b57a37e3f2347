"""Frozen teachers: loaded from a checkpoint, shown their own view in their own normalisation, never trained."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import checkpoint, models
from jaxkd.errors import UserError

Taps = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A network whose taps are targets. `variables` is None for the student's own moving average."""

  name: str
  model: nn.Module
  variables: Any
  view: str
  mean: tuple[float, ...]
  std: tuple[float, ...]
  digest: str

  @property
  def is_ema(self) -> bool:
    return self.variables is None

  def __call__(self, variables, views: dict[str, jax.Array]) -> Taps:
    """The taps of this teacher's view, without gradient."""
    x = normalize(views[self.view], self.mean, self.std)
    _, taps = self.model.apply(variables, x, train=False)
    return {name: jax.lax.stop_gradient(tap) for name, tap in taps.items()}


def normalize(images: ArrayLike, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
  """(images - mean) / std by channel; images [b h w c] in [0, 1]."""
  shift, scale = (jnp.array(v, jnp.float32).reshape(1, 1, 1, -1) for v in (mean, std))
  return (jnp.asarray(images, jnp.float32) - shift) / scale


def load_teachers(options, student: nn.Module, dataset) -> dict[str, Teacher]:
  """Every teacher of `config.teachers`, checked against the data set before anything is trained.

  Raises:
    UserError: no such checkpoint, another image size, or other classes than the data set's.
  """
  return {name: _load(name, o, student, dataset) for name, o in options.items()}


def _load(name: str, options, student: nn.Module, dataset) -> Teacher:
  if options.weights == "ema":
    return Teacher(name, student, None, options.view, dataset.mean, dataset.std, "ema")
  found = checkpoint.load(options.weights)
  about = found.meta
  if about["image_shape"] != list(dataset.image_shape):
    raise UserError(
      f"teachers.{name} was trained on images {about['image_shape']}, data '{dataset.name}' has "
      f"{list(dataset.image_shape)}",
      "use a teacher trained on this data set and image size",
    )
  classes = about["num_classes"]
  if classes and classes != len(dataset.class_names):
    raise UserError(
      f"teachers.{name} ({options.weights}) has {classes} classes, data '{dataset.name}' has "
      f"{len(dataset.class_names)}",
      "use a teacher trained on the same classes",
    )
  model = models.create(**found.model_options)
  return Teacher(
    name, model, found.variables, options.view, tuple(about["mean"]), tuple(about["std"]), found.digest
  )
