"""Frozen teachers: loaded from a checkpoint or from torch weights, shown their own view in their own size and
normalisation, never trained."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import checkpoint, models, schema
from jaxkd.errors import UserError
from jaxkd.model_options import create_model
from jaxkd.weights.opened import is_weights, open_weights
from jaxkd.weights.read import check_digest

Taps = dict[str, jax.Array]
RANDOM = "random"
log = logging.getLogger("jaxkd")


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A network whose taps are targets. `variables` is None for the student's own moving average.

  Attributes:
    view: which images it sees. size: side to which they are resized, 0 for as they are.
    mean, std: of its own normalisation, per channel. digest: of its weights. bank: folder of its features, or "".
  """

  name: str
  model: nn.Module
  variables: Any
  view: str
  mean: tuple[float, ...]
  std: tuple[float, ...]
  digest: str
  size: int = 0
  bank: str = ""

  @property
  def is_ema(self) -> bool:
    return self.variables is None

  def prepare(self, images: ArrayLike) -> jax.Array:
    """Images [b h w c] in [0, 1] as this teacher wants them: channels, size, normalisation; float32."""
    x = jnp.asarray(images, jnp.float32)
    if x.shape[-1] == 1 and len(self.mean) == 3:
      x = jnp.repeat(x, 3, axis=-1)
    if self.size and x.shape[1:3] != (self.size, self.size):
      x = jax.image.resize(x, (x.shape[0], self.size, self.size, x.shape[-1]), "cubic")
      x = jnp.clip(x, 0, 1)  # a cubic overshoots at edges; files were clipped when they were resized
    return normalize(x, self.mean, self.std)

  def __call__(self, variables, views: dict[str, jax.Array]) -> Taps:
    """The taps of this teacher's view, without gradient."""
    _, taps = self.model.apply(variables, self.prepare(views[self.view]), train=False)
    return {name: jax.lax.stop_gradient(tap) for name, tap in taps.items()}


def normalize(images: ArrayLike, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
  """(images - mean) / std by channel; images [b h w c] in [0, 1]."""
  shift, scale = (jnp.array(v, jnp.float32).reshape(1, 1, 1, -1) for v in (mean, std))
  return (jnp.asarray(images, jnp.float32) - shift) / scale


def load_teachers(config, student: nn.Module, dataset) -> dict[str, Teacher]:
  """Every teacher of `config.teachers`, checked against the data set before anything is trained.

  Raises:
    UserError: no such weights, another image size or channels, or, where its logits are used, other classes than
      the data set's. IntegrityFailure: the weights are not those of a pinned digest.
  """
  judged = {term.teacher for term in config.terms.values() if term.kind in schema.LOGIT_KINDS}
  dtype = config.precision.compute
  return {
    name: _load(name, options, student, dataset, classes=name in judged, dtype=dtype)
    for name, options in config.teachers.items()
  }


def _load(name: str, options, student: nn.Module, dataset, *, classes: bool, dtype: str) -> Teacher:
  if options.weights == "ema":
    return Teacher(name, student, None, options.view, dataset.mean, dataset.std, "ema", bank=options.bank)
  variables, meta, digest = _random(name, options, dataset) if options.weights == RANDOM else _open(options)
  size = options.size or meta.get("input_size", 0)
  _check_images(f"teachers.{name}", meta, dataset, size)
  if classes:
    _check_classes(f"teachers.{name} ({options.weights})", meta, dataset)
  model = models.create(**{**meta["model"], "dtype": dtype})
  mean, std = tuple(meta["mean"]), tuple(meta["std"])
  return Teacher(name, model, variables, options.view, mean, std, digest, size, options.bank)


def _open(options) -> tuple[Any, dict[str, Any], str]:
  """(variables, what a checkpoint says of itself, digest) of a jaxkd checkpoint, a weights file or a hub name."""
  if not is_weights(options.weights):
    found = checkpoint.load(options.weights)
    if options.sha256:
      check_digest(found.digest, options.sha256, options.weights)
    return found.variables, found.meta, found.digest
  own = options.model.to_dict()
  opened = open_weights(options.weights, model=own.pop("name"), options=own, sha256=options.sha256)
  return opened.conversion.variables, opened.meta(), opened.digest


def _random(name: str, options, dataset) -> tuple[Any, dict[str, Any], str]:
  """A teacher that was never trained, for smoke runs and controls: seed 0, said in the log."""
  log.warning("teachers.%s has random weights: it teaches nothing", name)
  side, _, channels = dataset.image_shape
  own, size = options.model.to_dict(), options.size or side
  model = {"image_size": size, "in_channels": channels, "num_classes": len(dataset.class_names), **own}
  if own["name"].startswith("dinov2"):
    model |= {"in_channels": 3, "num_classes": 0}
  built = create_model(model, where=f"teachers.{name}.model")
  images = jnp.zeros((1, *built.image_size, built.in_channels))
  variables = jax.device_get(jax.jit(built.init)(jax.random.key(0), images))
  meta = {
    "model": model,
    "image_shape": [*built.image_size, built.in_channels],
    "num_classes": built.num_classes,
    "class_names": [],
    "mean": (0.5,) * built.in_channels,
    "std": (0.25,) * built.in_channels,
  }
  return variables, meta, RANDOM


def _check_images(who: str, meta: dict[str, Any], dataset, size: int) -> None:
  """The data set's images must be what the teacher takes, after it has repeated grey channels and resized."""
  h, w, channels = dataset.image_shape
  wanted = meta["image_shape"]
  if channels != wanted[2] and not (channels == 1 and wanted[2] == 3):
    raise UserError(
      f"{who} takes {wanted[2]} channels, data '{dataset.name}' has {channels}",
      "use a teacher of as many channels, or set data.channels",
    )
  if not size and [h, w] != wanted[:2]:
    raise UserError(
      f"{who} was trained on images of {wanted[0]}x{wanted[1]}, data '{dataset.name}' has {h}x{w}",
      f"set --config.{who}.size={wanted[0]} to resize them for it, or use another teacher",
    )


def _check_classes(who: str, meta: dict[str, Any], dataset) -> None:
  found, wanted = meta["num_classes"], len(dataset.class_names)
  if found != wanted:
    raise UserError(
      f"{who} has {found} classes, data '{dataset.name}' has {wanted}, and a term uses its logits",
      "use a teacher trained on the same classes",
    )
  names = tuple(meta["class_names"])
  if names and names != tuple(dataset.class_names):
    wrong = next((a, b) for a, b in zip(names, dataset.class_names, strict=True) if a != b)
    raise UserError(
      f"{who} has a class '{wrong[0]}' where data '{dataset.name}' has '{wrong[1]}', and a term uses its logits",
      "use a teacher trained on the same classes in the same order",
    )
