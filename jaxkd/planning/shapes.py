"""An experiment without its data and weights: the same objects, made of shapes.

Images are arrays without memory (one zero, read with stride 0), teachers hold `jax.ShapeDtypeStruct`s, so a preset
whose data or weights are absent, or larger than this machine, is planned all the same.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from jaxkd import bank as bank_of
from jaxkd import data, sharding, step
from jaxkd.bank import Bank
from jaxkd.data import Dataset, Split
from jaxkd.errors import JaxkdError, UserError
from jaxkd.experiment import Experiment, assemble
from jaxkd.model_options import create_model
from jaxkd.models.parameters import variable_shapes
from jaxkd.models.resolution import resolved_for
from jaxkd.teachers import RANDOM, Teacher
from jaxkd.teachers import load_teachers as load_teachers_with_weights
from jaxkd.weights import hub

# Published sizes: side, channels, classes, images to train on (before validation is split off).
KNOWN = {
  "cifar10": (32, 3, 10, 50_000),
  "cifar100": (32, 3, 100, 50_000),
  "mnist": (28, 1, 10, 60_000),
  "fashion_mnist": (28, 1, 10, 60_000),
  "kmnist": (28, 1, 10, 60_000),
  "svhn": (32, 3, 10, 73_257),
  "tfds:imagenet2012": (224, 3, 1_000, 1_281_167),
}


def build(config: ConfigDict, mesh: Mesh | None = None) -> Experiment:
  """`experiment.build` of shapes only, with XLA attention; see `for_platform`.

  Raises:
    UserError: the parts do not fit together, or the architecture of a teacher or the size of a data set is unknown.
  """
  plain = config.copy_and_resolve_references()
  with plain.unlocked():
    if plain.model.get("attention", "auto") != "auto":
      plain.model.attention = "xla"  # what it means on the planned chip is resolved by `for_platform`
  return assemble(plain, dataset(plain), load_teachers, mesh)


def mesh(devices: int, fsdp: int) -> Any:
  """The mesh of that many devices, wherever they are, for whatever asks a mesh for its shape only.

  Raises UserError as `sharding.make_mesh` does.
  """
  if devices % fsdp:
    raise UserError(
      f"sharding.fsdp={fsdp} does not divide {devices} devices", "choose a divisor of the device count"
    )
  return AbstractMesh((devices // fsdp, fsdp), ("data", "fsdp"))


def for_platform(experiment: Experiment, platform: str, wanted: str = "auto") -> Experiment:
  """`experiment` with the attention that its models resolve to on `platform` ("cuda" or "cpu").

  Raises:
    UserError: the config asks for an implementation that is not to be had there.
  """
  try:
    model = resolved_for(experiment.model, platform, wanted)
  except ValueError as e:
    raise UserError(f"config.model: {e}", "set --config.precision.compute=bfloat16, or attention=auto") from e
  teachers = {
    name: dataclasses.replace(t, model=model if t.is_ema else resolved_for(t.model, platform))
    for name, t in experiment.teachers.items()
  }
  return dataclasses.replace(experiment, model=model, teachers=teachers)


# --- data ---


def dataset(config: ConfigDict) -> Dataset:
  """The data set of `config.data` without its images: as published, or as read where no size was published.

  Raises:
    UserError: its size is unknown, and it is not there.
  """
  options = config.data
  side, channels, classes, kept, held = _published(options) if options.name in KNOWN else _read(options)
  train, validation = (
    Split(empty((count, side, side, channels)), np.zeros(count, np.int32)) for count in (kept, held)
  )
  placement = options.placement
  if placement == "auto":
    placement = "streamed" if train.images.nbytes > options.device_gib * 2**30 else "device"
  statistics = ((0.5,) * channels, (0.25,) * channels)
  names = tuple(map(str, range(classes)))
  return Dataset(options.name, names, train, validation, *statistics, f"shapes of {options.name}", placement)


def _published(options) -> tuple[int, int, int, int, int]:
  """(side, channels, classes, training images, validation images) of a known set."""
  side, channels, classes, count = KNOWN[options.name]
  held = round(count * options.validation)
  kept = min(round((count - held) * options.subset), options.per_class * classes or count)
  return options.image_size or side, options.channels or channels, classes, kept, held


def _read(options) -> tuple[int, int, int, int, int]:
  try:
    found = data.load(options)
  except JaxkdError as e:
    raise UserError(
      f"the size of data set '{options.name}' is unknown here: {e.message}",
      f"name one of {', '.join(KNOWN)}, or put the data where data.root says",
    ) from e
  return (*found.image_shape[1:], len(found.class_names), len(found.train), len(found.validation))


def empty(shape: tuple[int, ...], dtype: Any = np.uint8) -> np.ndarray:
  """An array of zeros that takes no memory, whatever its shape."""
  return np.broadcast_to(np.zeros((), dtype), shape)


# --- teachers ---


def load_teachers(config, student, dataset: Dataset) -> dict[str, Teacher]:
  """Teachers of `config.teachers` whose variables are shapes."""
  return {name: _teacher(name, config, student, dataset) for name in config.teachers}


def _teacher(name: str, config, student, dataset: Dataset) -> Teacher:
  options = config.teachers[name]
  if options.weights == "ema":
    return Teacher(name, student, None, options.view, dataset.mean, dataset.std, "ema", bank=options.bank)
  named = _named(options, dataset)
  if named is None:
    return _stored(name, config, student, dataset)
  given, size = named
  model = create_model(
    {**given, "dtype": config.precision.compute, "attention": "xla"}
    if "attention" in _options_of(given["name"])
    else {**given, "dtype": config.precision.compute},
    where=f"teachers.{name}.model",
  )
  statistics = ((0.5,) * model.in_channels, (0.25,) * model.in_channels)
  return Teacher(
    name,
    model,
    variable_shapes(model),
    options.view,
    *statistics,
    f"shapes of {given['name']}",
    size,
    options.bank,
  )


def _options_of(name: str) -> dict[str, Any]:
  from jaxkd import models

  return models.options(name)


def _named(options, dataset: Dataset) -> tuple[dict[str, Any], int] | None:
  """(model options, input size) of a teacher whose architecture the config tells; None if only its weights do."""
  side, _, channels = dataset.image_shape
  own, size = options.model.to_dict(), options.size
  if options.weights.startswith("hub:"):
    source = hub.source(options.weights.removeprefix("hub:"))
    return {"name": own.pop("name", "") or source.model, **source.options, **own}, size or source.input_size
  if not own.get("name"):
    return None
  decided = {"image_size": size or side, "in_channels": channels, "num_classes": len(dataset.class_names)}
  if own["name"].startswith("dinov2"):
    decided |= {"in_channels": 3, "num_classes": 0}
    size = size or (side if options.weights == RANDOM else 224)
    decided["image_size"] = size
  return {**decided, **own}, size


def _stored(name: str, config, student, dataset: Dataset) -> Teacher:
  """A teacher that only its weights describe; they are there or the architecture is unknown."""
  one = config.copy_and_resolve_references()
  with one.unlocked():
    one.teachers = {name: one.teachers[name]}
  try:
    found = load_teachers_with_weights(one, student, dataset)[name]
  except JaxkdError as e:
    raise UserError(
      f"teachers.{name}: its architecture is unknown here ({e.message})",
      f"name it for the plan: --config.teachers.{name}.model.name=resnet18_cifar",
    ) from e
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), found.variables)
  return dataclasses.replace(found, variables=shapes, model=resolved_for(found.model, "cpu"))


# --- what a step reads ---


def banks(experiment: Experiment) -> dict[str, Bank]:
  """The feature banks of the run, as arrays without memory."""
  return {name: _bank(experiment, name) for name, t in experiment.teachers.items() if t.bank}


def _bank(experiment: Experiment, name: str) -> Bank:
  bank_of.check_options(experiment, name)
  teacher, images = experiment.teachers[name], experiment.dataset.train.images
  example = (
    jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.uint8),
    jax.ShapeDtypeStruct((1, 5), jnp.float32),
  )
  shapes = jax.eval_shape(bank_of.features(experiment, name), teacher.variables, *example)
  views = 1 if teacher.view == "clean" else experiment.config.data.augment.geometries
  arrays = {k: empty((len(images), views, *s.shape[1:]), s.dtype) for k, s in sorted(shapes.items())}
  return Bank(Path(teacher.bank), arrays)


def arguments(experiment: Experiment) -> tuple[Any, Any, Any]:
  """(state, batch, frozen) of a training step, as shapes with the shardings they have on the mesh."""
  mesh, held = experiment.mesh, banks(experiment)
  state = step.state_shapes(experiment)
  whole = sharding.replicated(mesh)
  return (
    _placed(state, sharding.state_shardings(state, mesh)),
    _everywhere(batch_shapes(experiment, held), sharding.batch_sharding(mesh)),
    _everywhere(frozen_shapes(experiment, held), whole),
  )


def _placed(tree: Any, shardings: Any) -> Any:
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def _everywhere(tree: Any, where: Any) -> Any:
  return _placed(tree, jax.tree.map(lambda _: where, tree))


def batch_shapes(experiment: Experiment, held: dict[str, Bank]) -> dict[str, Any]:
  """Shapes of `feed.make_batch`."""
  config, train = experiment.config, experiment.dataset.train
  size, views = config.train.batch_size, config.train.batch_size * config.data.views.global_count
  batch: dict[str, Any] = {"index": jax.ShapeDtypeStruct((size,), jnp.int32)}
  if config.data.augment.geometries:
    batch["geometry"] = jax.ShapeDtypeStruct((views,), jnp.int32)
  features = {
    name: {k: jax.ShapeDtypeStruct((views, *a.shape[2:]), a.dtype) for k, a in b.arrays.items()}
    for name, b in held.items()
    if bank_of.place(experiment, b) == "disk"
  }
  if features:
    batch["features"] = features
  if experiment.dataset.placement == "streamed":
    batch["images"] = jax.ShapeDtypeStruct((size, *train.images.shape[1:]), jnp.uint8)
    batch["labels"] = jax.ShapeDtypeStruct((size,), jnp.int32)
  return batch


def frozen_shapes(experiment: Experiment, held: dict[str, Bank]) -> dict[str, Any]:
  """Shapes of `step.frozen_inputs`."""
  config, train = experiment.config, experiment.dataset.train
  n, k = len(train), config.data.augment.geometries
  resident = experiment.dataset.placement == "device"
  on_device = {name: b for name, b in held.items() if bank_of.place(experiment, b) == "device"}
  whitening: dict[str, Any] = {}
  for term, layer, target in experiment.objective.whitened():
    width = experiment.objective.teachers[target.teacher].taps[target.tap].shape[-1]
    maps = (jax.ShapeDtypeStruct((width,), jnp.float32), jax.ShapeDtypeStruct((width, width), jnp.float32))
    whitening.setdefault(term.name, {})[f"layer{layer}"] = maps
  tree = {
    **({"images": train.images, "labels": train.labels} if resident else {}),
    "boxes": jax.ShapeDtypeStruct((n, k, 5), jnp.float32) if k else None,
    "teachers": {t: x.variables for t, x in experiment.teachers.items() if not x.is_ema and t not in held},
    "banks": {name: b.arrays for name, b in on_device.items()},
    "whitening": whitening,
    "key": jax.eval_shape(lambda: step.seed_key(experiment)),
  }
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
