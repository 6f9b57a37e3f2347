"""Weights of any origin made ready for use: a file, a folder of shards, or official ones by name (`hub:NAME`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn

from jaxkd import config as configs
from jaxkd import models
from jaxkd.checkpoint import Checkpoints
from jaxkd.errors import UserError, did_you_mean
from jaxkd.weights import hub, tables
from jaxkd.weights.convert import Conversion, convert_state
from jaxkd.weights.infer import infer_options
from jaxkd.weights.read import IN_FOLDERS, check_digest, read_weights

HUB = "hub:"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
# DINOv2's table is for 518 px, 1,369 tokens; as a teacher it is usually shown 224 px, 256 tokens.
DINOV2_INPUT = 224


@dataclasses.dataclass(frozen=True)
class Opened:
  """Converted weights with what is needed to use them: the options of `models.create`, normalisation, origin."""

  conversion: Conversion
  options: dict[str, Any]
  mean: tuple[float, ...]
  std: tuple[float, ...]
  input_size: int
  source: dict[str, Any]

  @property
  def digest(self) -> str:
    return self.source["sha256"]

  def meta(self) -> dict[str, Any]:
    """What a checkpoint says of itself."""
    model = models.create(**self.options)
    return {
      "model": self.options,
      "inference": "params",
      "image_shape": [*model.image_size, model.in_channels],
      "input_size": self.input_size,
      "num_classes": model.num_classes,
      "class_names": [],
      "mean": list(self.mean),
      "std": list(self.std),
      "data_digest": "",
      "teachers": {},
      "source": self.source,
    }


def is_weights(spec: str | Path) -> bool:
  """Whether `spec` means torch weights (a file, a folder of shards, a hub name) rather than a jaxkd checkpoint."""
  path = Path(spec)
  named = str(spec).startswith(HUB) or path.suffix in SUFFIXES
  return named or path.is_file() or any((path / name).is_file() for name in IN_FOLDERS)


def open_weights(
  spec: str,
  *,
  model: str = "",
  options: Mapping[str, Any] | None = None,
  style: str = "",
  sha256: str = "",
  allow: Iterable[str] = (),
  interpolate_pos: bool = False,
  mean: tuple[float, ...] = (),
  std: tuple[float, ...] = (),
) -> Opened:
  """Reads and converts `spec`: a path, or `hub:NAME` (downloaded once, see `jaxkd.weights.hub`).

  Options that the arrays' shapes tell (classes, channels, patch, resolution) need not be given. `mean` and `std`
  default to ImageNet's; they are repeated or averaged to the model's channels.

  Raises:
    UserError: no such file, no model name, or an unknown one. WeightsError: the weights are not the model's.
    IntegrityFailure: the file's digest is not `sha256` (all of it, or its first 8 or more digits).
  """
  given, input_size = dict(options or {}), 0
  if spec.startswith(HUB):
    known = hub.source(spec.removeprefix(HUB))
    path, model, given = hub.fetch(spec.removeprefix(HUB)), model or known.model, {**known.options, **given}
    mean, std, input_size = mean or known.mean, std or known.std, known.input_size
  else:
    path = Path(spec)
  if model not in models.names():
    raise UserError(
      f"weights {spec}: " + (f"unknown model '{model}'" if model else "no model named"),
      did_you_mean(model, models.names()),
    )
  file = read_weights(path)
  if sha256:
    check_digest(file.sha256, sha256, path)
  style, complete = infer_options(model, file.arrays, given, style=style, folder=file.path.parent)
  # An inferred image size is the table's own, so only one that was given asks for resampling.
  wanted = complete if "image_size" in given else {k: v for k, v in complete.items() if k != "image_size"}
  conversion = convert_state(
    model,
    file.arrays,
    style=style,
    strict=not tuple(allow),
    allow=allow,
    interpolate_pos=interpolate_pos,
    **wanted,
  )
  channels = complete.get("in_channels", 3)
  source = {"weights": spec, "sha256": file.sha256, "style": conversion.style, "notes": list(file.notes)}
  built = models.create(model, **complete)
  return Opened(
    conversion,
    {"name": model, **complete},
    _per_channel(mean or hub.IMAGENET_MEAN, channels),
    _per_channel(std or hub.IMAGENET_STD, channels),
    input_size or _input_size(built, model),
    source,
  )


def _input_size(built: nn.Module, name: str) -> int:
  """Side in pixels at which the model is used as a teacher unless the config says otherwise."""
  side = built.image_size[0]
  return min(side, DINOV2_INPUT) if tables.family(name) == "dinov2" else side


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
  return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def save(opened: Opened, folder: Path) -> None:
  """Writes a checkpoint folder that every command and every teacher takes.

  Raises:
    UserError: the folder holds something already. CannotWrite: the disk is full or read-only.
  """
  if folder.exists() and any(folder.iterdir()):
    raise UserError(f"{folder} is not empty", "choose another --out, or remove it")
  variables = dict(opened.conversion.variables)
  state = {"params": {"model": variables.pop("params")}, "stats": variables}
  config = configs.complete({"model": {k: v for k, v in opened.options.items() if k != "image_size"}})
  checkpoints = Checkpoints(folder / "checkpoints", keep=1, metrics=())
  checkpoints.save(0, state, config=config, meta=opened.meta(), metrics={})
  checkpoints.close()
