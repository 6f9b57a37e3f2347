"""Class probabilities for image files: which files a list or folder means, and what a model says of each."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from jaxkd import evaluation
from jaxkd.analysis.forensics import Subject
from jaxkd.data import Split
from jaxkd.data.folder import ENDINGS
from jaxkd.data.pixels import BadImage
from jaxkd.data.source import reading
from jaxkd.data.stored import StoredImages
from jaxkd.errors import UserError

SCHEMA = "jaxkd.predictions/1"
LISTS = (".txt", ".csv")


def image_files(paths: list[str]) -> list[Path]:
  """The image files that `paths` mean, in order: files as they are, folders searched to any depth (sorted by path),
  lists (`.txt`: one path a line; `.csv`: its column `path`) with paths relative to the list.

  Raises:
    UserError: a path that does not exist, a folder or list without images, or a file of a kind that is not known.
  """
  found: list[Path] = []
  for text in paths:
    path = Path(text).expanduser()
    with reading(text):
      if path.is_dir():
        new = [
          p for p in sorted(path.rglob("*")) if p.suffix.lower() in ENDINGS and not p.name.startswith(".")
        ]
      elif not path.exists():
        raise UserError(f"{path} does not exist", "name an image, a folder of images, or a .txt or .csv list")
      else:
        new = _listed(path) if path.suffix.lower() in LISTS else [path]
    if not new:
      raise UserError(f"{path} holds no images", f"known endings: {', '.join(sorted(ENDINGS))}")
    found += new
  return found


def _listed(path: Path) -> list[Path]:
  try:
    text = path.read_text(encoding="utf-8")
  except UnicodeDecodeError as e:
    raise UserError(f"{path} is not a list of files ({e})", "write UTF-8 text, one path a line") from e
  if path.suffix.lower() == ".csv":
    rows = list(csv.DictReader(io.StringIO(text)))
    if rows and not rows[0].get("path"):
      raise UserError(f"{path} has the columns {', '.join(map(str, rows[0]))}", "one of them must be: path")
    names = [row["path"] for row in rows]
  else:
    names = [line.strip() for line in text.splitlines()]
  found = [path.parent / name for name in names if name]
  for file in found:
    if not file.is_file():
      raise UserError(f"{path}: {file} does not exist", "paths are relative to the list's folder")
  return found


def stored(subject: Subject, files: list[Path]) -> Split:
  """The files as a split of unknown labels (-1), decoded when they are asked for, by the rules of `data.pixels`."""
  height, width = subject.model.image_size
  if height != width:
    raise UserError(
      f"the model wants images of {height} x {width} pixels", "only square ones can be read from files"
    )
  images = StoredImages(tuple(map(str, files)), height, subject.model.in_channels)
  return Split(images, np.full(len(files), -1))


def predict(
  subject: Subject,
  images: Split,
  *,
  batch_size: int,
  views: int = 0,
  augmentation: dict[str, Any] | None = None,
) -> dict[str, np.ndarray]:
  """Class probabilities [n c] by head; with `views`, averaged over each image and so many augmented views.

  Raises:
    UserError: a file that cannot be decoded.
  """
  options: dict[str, Any] = {"mean": subject.mean, "std": subject.std, "batch_size": batch_size}
  try:
    if views:
      more = {**(augmentation or {}), **options}
      return evaluation.augmented_probabilities(
        subject.model, subject.variables, images.images, count=views, **more
      )
    logits = evaluation.head_logits(subject.model, subject.variables, images, **options)
  except BadImage as e:
    raise UserError(e.message, "replace the file or leave it out") from e
  return {head: softmax(z.astype(np.float64), axis=1) for head, z in logits.items()}


@dataclasses.dataclass(frozen=True)
class Prediction:
  """One file: every class with its probability, most probable first."""

  path: str
  classes: list[tuple[str, float]]


def ranked(files: list[Path], probabilities: np.ndarray, names: tuple[str, ...]) -> list[Prediction]:
  """`probabilities` [n c] of `files` in words."""
  order = np.argsort(-probabilities, axis=1, kind="stable")
  return [
    Prediction(str(f), [(names[k], float(p[k])) for k in row])
    for f, p, row in zip(files, probabilities, order, strict=True)
  ]
