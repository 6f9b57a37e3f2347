"""Pieces that the presets under `configs/` share: data, students, teachers, and what `smoke` makes of them.

Plain dicts, no jax. A preset without its data or weights ends with the file that is missing and where to put it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

LABELS = {"kind": "cross_entropy", "student_taps": ("logits/cls",)}
SHAPES = {
  "cifar10": (32, 3, 10),
  "cifar100": (32, 3, 100),
  "mnist": (28, 1, 10),
  "fashion_mnist": (28, 1, 10),
}
PACKAGED = {"fashion_mnist": "/usr/share/datasets/fashion-mnist"}  # Debian's dataset-fashion-mnist
SMOKE_STEPS = 3
# A teacher with random weights is for smoke runs: it teaches nothing.
RANDOM = "random"


def data(name: str, smoke: bool, **augment: Any) -> dict[str, Any]:
  """`config.data` of a known set under `data/NAME`; for smoke runs seeded noise in its shapes."""
  if smoke:
    size, channels, classes = SHAPES.get(name, (16, 1, 10))
    source = {
      "name": "synthetic",
      "image_size": size,
      "channels": channels,
      "classes": classes,
      "examples": 20 * classes,
    }
    return {**source, "augment": {k: v for k, v in augment.items() if k != "geometries"}}
  place = {} if name in ("digits", "synthetic", "synthetic_shapes") else {"root": root(name)}
  return {"name": name, **place, "augment": augment}


def root(name: str) -> str:
  """`data/NAME`, or where a Debian package has put the set when that folder is not there."""
  own, packaged = f"data/{name}", PACKAGED.get(name, "")
  return packaged if packaged and Path(packaged).is_dir() and not Path(own).exists() else own


def deit(smoke: bool, **options: Any) -> dict[str, Any]:
  """DeiT-Tiny for small images; four blocks of width 64 for smoke runs."""
  return {"name": "deit_tiny", **options, **({"depth": 4, "width": 64, "heads": 2} if smoke else {})}


def layers(smoke: bool, listed: tuple[int, ...], kind: str = "tokens") -> tuple[str, ...]:
  """The student's taps after these blocks of 12; the last of four for smoke runs."""
  blocks = tuple(range(4))[-len(listed) :] if smoke else listed
  return tuple(f"block{i:02d}/{kind}" for i in blocks)


def dinov2(name: str, smoke: bool, *, bank: str = "", **options: Any) -> dict[str, Any]:
  """A DINOv2 teacher by name at 224 px; two small blocks with random weights for smoke runs."""
  if smoke:
    model = {"name": name, "depth": 2, "width": 32, "heads": 2, "image_size": 56}
    return {"weights": RANDOM, "model": model, "size": 56, **options}
  return {"weights": f"hub:{name}", "bank": bank, **options}


def teacher(run: str, smoke: bool, model: dict[str, Any], **options: Any) -> dict[str, Any]:
  """A teacher trained by another preset, in `runs/RUN`; a small one with random weights for smoke runs."""
  if smoke:
    return {"weights": RANDOM, "model": model, **options}
  return {"weights": f"runs/{run}", **options}


def train(smoke: bool, *, epochs: float, batch_size: int, **options: Any) -> dict[str, Any]:
  """`config.train`; three steps of at most 16 images for smoke runs."""
  if smoke:
    return {"steps": SMOKE_STEPS, "batch_size": min(batch_size, 16), **options}
  return {"epochs": epochs, "batch_size": batch_size, **options}


def self_supervised(
  arg: Any, name: str, terms: dict[str, Any], *, lr: float, epochs: float, batch_size: int
) -> dict[str, Any]:
  """A DINOv2-taught DeiT-Tiny: everything that the presets `ss_*` share; they differ in `terms` and these numbers.

  `arg` has data, smoke, teacher, views and seed; `views` geometries of each image are in a feature bank of its own.
  """
  augment = {"geometries": arg.views, "crop": 4, "flip": True, "policy": "autoaugment_color", "cutout": 8}
  bank = f"runs/banks/{arg.data}_{arg.teacher}_{name}" if arg.views else ""
  return {
    "seed": arg.seed,
    "data": data(arg.data, arg.smoke, **augment),
    "model": deit(arg.smoke, drop_path=0.1),
    "teachers": {"dino": dinov2(arg.teacher, arg.smoke, bank=bank)},
    "terms": {"ce": {**LABELS, "smoothing": 0.1}, **terms},
    "optim": {"name": "adamw", "lr": lr, "weight_decay": 0.05, "warmup_epochs": 10.0},
    "train": train(arg.smoke, epochs=epochs, batch_size=batch_size),
  }


def layer_terms(smoke: bool, **structural: Any) -> dict[str, Any]:
  """Token and correlation terms over four layers, with one structural term of the given name and options."""
  taps = {"teacher": "dino", "student_taps": layers(smoke, (3, 6, 9, 11))}
  last = {"teacher": "dino", "student_taps": taps["student_taps"][-1:]}
  return {
    "tokens": {"kind": "token_cosine", "head": "linear", "weight": 0.5, **taps},
    "relation": {"kind": "correlation", "weight": 0.05, "start_epoch": 10.0, **last},
    **{name: {**options, **taps} for name, options in structural.items()},
  }


def token_terms(smoke: bool, *, tokens: float, relation: float) -> dict[str, Any]:
  """Token and correlation terms over two layers, with these weights."""
  listed = layers(smoke, (6, 11))
  return {
    "tokens": {
      "kind": "token_cosine",
      "head": "linear",
      "weight": tokens,
      "teacher": "dino",
      "student_taps": listed,
    },
    "relation": {"kind": "correlation", "weight": relation, "teacher": "dino", "student_taps": listed[-1:]},
  }


def soft_labels(arg: Any, run: str, small: dict[str, Any]) -> dict[str, Any]:
  """DeiT-Tiny by soft labels of the CNN in `runs/RUN`: everything that the presets `kd_*` share."""
  augment = {"crop": 4, "flip": True, "policy": "autoaugment", "cutmix": 1.0, "cutout": 8}
  staged = {"start_epoch": 5.0, "weight": 0.5}
  return {
    "seed": arg.seed,
    "data": data(arg.data, arg.smoke, **augment),
    "model": deit(arg.smoke, drop_path=0.1),
    "teachers": {"cnn": teacher(run, arg.smoke, small, view="same")},
    "terms": {
      "ce": {**LABELS, "initial_weight": 1.0, **staged},
      "kd": {"kind": "soft_kd", "teacher": "cnn", "temperature": 4.0, **staged},
    },
    "optim": {"name": "adamw", "lr": 5e-4, "weight_decay": 0.05, "warmup_epochs": 10.0},
    "train": train(arg.smoke, epochs=200.0, batch_size=1024),
  }
