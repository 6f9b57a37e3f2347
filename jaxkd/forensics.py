"""Forensics of checkpoints on the same images: predicts its time, runs the analyses, keeps the numbers."""

from __future__ import annotations

import dataclasses
import time
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxkd import allocator, cost, data, files, run_folder
from jaxkd.analysis import examination
from jaxkd.analysis import forensics as analyses
from jaxkd.analysis.forensics import METRICS, STANDARD, Observed, Subject
from jaxkd.data.sources import Split, balanced_sample
from jaxkd.errors import UserError, did_you_mean
from jaxkd.metrics import ProgressLine

PROBE_KEY = 7  # every model of every comparison is probed with the same vectors
PICTURED = ("saliency", "features")


@dataclasses.dataclass(frozen=True)
class Budget:
  """What to analyse, on how much: images for everything but curvature, which has its own balanced sample and probes."""

  metrics: tuple[str, ...] = STANDARD
  images: int = 512
  hessian_images: int = 64
  probes: int = 10


def chosen_metrics(text: str) -> tuple[str, ...]:
  """`hessian,cka` as names, in the order of `METRICS`; `all` is all of them.

  Raises:
    UserError: a name that is not known.
  """
  names = list(METRICS) if text == "all" else [n.strip() for n in text.split(",") if n.strip()]
  for name in names:
    if name not in METRICS:
      raise UserError(f"unknown metric '{name}'", did_you_mean(name, [*METRICS, "all"]))
  if not names:
    raise UserError("no metric named", f"known: {', '.join(METRICS)}, all")
  return tuple(n for n in METRICS if n in names)


def forensics(
  subjects: list[Subject], config: ConfigDict, out: Path, *, budget: Budget, date: str
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Examines `subjects` on the test split of `config.data`, compares them, and writes `out/*.json`.

  Prints the predicted time before anything else.

  Returns:
    The result (schema `jaxkd.forensics/2`), and pictures for the report: {images [k h w c] in [0, 1], saliency {model:
    {method: [k h w]}}, features {model: {layer: [k m y x]}}}; empty where none were asked for.

  Raises:
    UserError: a sample larger than the test split.
  """
  test = data.load_test(config.data)
  images = min(budget.images, len(test))
  sample = balanced_sample(test, min(budget.hessian_images, len(test)))
  prediction = cost.predict(
    subjects,
    budget.metrics,
    test_images=len(test),
    images=images,
    hessian_images=len(sample),
    probes=budget.probes,
  )
  print(prediction.words, flush=True)
  train = data.load(config.data).train if "probes" in budget.metrics else None
  started = time.monotonic()
  progress = ProgressLine("forensics", done=0, total=len(subjects) + 1)
  observed = []
  for i, subject in enumerate(subjects):
    observed.append(_observe(subject, test, sample, images=images, budget=budget, train=train, config=config))
    progress.update(i + 1, subject.name)
    allocator.give_back()
  result = {
    "schema": analyses.SCHEMA,
    **context(date),
    "data": {
      "name": config.data.name,
      "split": "test",
      "images": len(test),
      "classes": len(set(test.labels.tolist())),
    },
    "settings": {**dataclasses.asdict(budget), "metrics": list(budget.metrics), "images": images},
    "models": [o.entry for o in observed],
    **_between(subjects, test.images[:images], budget.metrics),
    "comparisons": analyses.comparisons(observed),
  }
  progress.update(len(subjects) + 1, "similarity")
  progress.close()
  result["seconds"] = {
    "predicted": round(prediction.computing + prediction.compiling, 1),
    "taken": round(time.monotonic() - started, 1),
  }
  _write(result, out)
  return result, _pictures(subjects, test, budget.metrics)


def _between(subjects: list[Subject], images: np.ndarray, metrics: tuple[str, ...]) -> dict[str, Any]:
  """What looks at two models at once."""
  kernels = [k for name, k in (("cka", "linear"), ("rbf", "rbf")) if name in metrics]
  return {
    "cka": analyses.similarities(subjects, images, kernels=kernels),
    "alignment": analyses.alignments(subjects, images) if "alignment" in metrics else [],
  }


def _write(result: dict[str, Any], out: Path) -> None:
  """`forensics.json`, and for each model `<name>_forensics.json` with what concerns it alone."""
  for entry in result["models"]:
    own = [c for c in result["cka"] if c["a"] == c["b"] == entry["name"]]
    alone = {**result, "models": [entry], "cka": own, "alignment": [], "comparisons": []}
    files.write_json(out / f"{file_name(entry['name'])}_forensics.json", alone)
  files.write_json(out / "forensics.json", result)


def _observe(
  subject: Subject, test: Split, sample: Split, *, images: int, budget: Budget, train, config: ConfigDict
) -> Observed:
  """`analysis.forensics.observe` with the probe vectors that all comparisons share, its time, and the cue conflict
  where the data have cues."""
  start = time.monotonic()
  found = analyses.observe(
    subject,
    test,
    sample,
    images=images,
    probes=budget.probes,
    key=jax.random.key(PROBE_KEY),
    metrics=budget.metrics,
    train=train,
  )
  if found.entry.get("robustness") and config.data.name == "synthetic_shapes":
    found.entry["robustness"]["cue_conflict"] = examination.conflict(subject, *data.cue_conflict(config.data))
  found.entry["seconds"] = round(time.monotonic() - start, 1)
  return found


def examine(
  subject: Subject, test: Split, sample: Split, *, images: int, probes: int, metrics: tuple[str, ...]
):
  """The entry of one model, probed as in every comparison, and its time in seconds."""
  start = time.monotonic()
  key = jax.random.key(PROBE_KEY)
  options: dict[str, Any] = {"images": images, "probes": probes, "metrics": metrics}
  entry = analyses.examine(subject, test, sample, key=key, **options)
  return {**entry, "seconds": round(time.monotonic() - start, 1)}


def _pictures(subjects: list[Subject], test: Split, metrics: tuple[str, ...]) -> dict[str, Any]:
  if not set(PICTURED) & set(metrics):
    return {}
  images = balanced_sample(test, min(examination.PICTURES, len(test)), seed=1).images
  found: dict[str, Any] = {"images": images / 255}
  if "saliency" in metrics:
    found["saliency"] = {s.name: examination.explained(s, images) for s in subjects}
  if "features" in metrics:
    found["features"] = {s.name: examination.features(s, images) for s in subjects}
  return found


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
