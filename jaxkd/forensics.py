"""Forensics of several checkpoints on the same images: runs the analyses, keeps the numbers as JSON."""

from __future__ import annotations

import time
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxkd import data, files, run_folder
from jaxkd.analysis import forensics as analyses
from jaxkd.analysis.forensics import Subject
from jaxkd.data.sources import balanced_sample
from jaxkd.metrics import ProgressLine

PROBE_KEY = 7  # every model of every comparison is probed with the same vectors


def forensics(
  subjects: list[Subject],
  config: ConfigDict,
  out: Path,
  *,
  images: int,
  hessian_images: int,
  probes: int,
  date: str,
) -> dict[str, Any]:
  """Examines `subjects` on the test split of `config.data`, compares them, and writes `out/*.json`.

  Raises:
    UserError: a sample larger than the test split.
  """
  test = data.load_test(config.data)
  sample = balanced_sample(test, min(hessian_images, len(test)))
  images = min(images, len(test))
  progress = ProgressLine("forensics", done=0, total=len(subjects) + 1)
  models = []
  for i, subject in enumerate(subjects):
    models.append(examine(subject, test, sample, images=images, probes=probes))
    progress.update(i + 1, subject.name)
  cka = analyses.similarities(subjects, test.images[:images])
  progress.update(len(subjects) + 1, "similarity")
  progress.close()
  result = {
    "schema": analyses.SCHEMA,
    **context(date),
    "data": {
      "name": config.data.name,
      "split": "test",
      "images": len(test),
      "classes": len(set(test.labels.tolist())),
    },
    "models": models,
    "cka": cka,
  }
  for entry in models:
    files.write_json(
      out / f"{file_name(entry['name'])}_forensics.json", {**result, "models": [entry], "cka": []}
    )
  files.write_json(out / "forensics.json", result)
  return result


def examine(subject: Subject, test, sample, *, images: int, probes: int) -> dict[str, Any]:
  """`analysis.forensics.examine` with the probe vectors that all comparisons share, and its time in seconds."""
  start = time.monotonic()
  key = jax.random.key(PROBE_KEY)
  entry = analyses.examine(subject, test, sample, images=images, probes=probes, key=key)
  return {**entry, "seconds": round(time.monotonic() - start, 1)}


def context(date: str) -> dict[str, Any]:
  """Where and how the numbers were made."""
  names = ("jax", "flax", "optax", "numpy")
  return {
    "date": date,
    "command": run_folder.command_line(),
    "hardware": run_folder.hardware(),
    "versions": {n: packages.version(n) for n in names},
  }


def file_name(name: str) -> str:
  """A model's name as part of a file name."""
  return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)[:60]
