"""The whole experiment: teachers, matched students over seeds, examination, statistics, report.

Arms differ in teachers and terms only; student, data order, geometries, steps and optimiser come from one
config, so the comparison is fair by construction. Every stage leaves a file and is skipped when that file is there,
so an interrupted study goes on where it was.
"""

from __future__ import annotations

import copy
import datetime
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxkd import checkpoint, data, evaluation, files, metrics, replicas, run_folder, subjects
from jaxkd import config as configs
from jaxkd.analysis import knn_accuracy, linear_probe
from jaxkd.analysis.forensics import SCHEMA
from jaxkd.data.sources import balanced_sample
from jaxkd.forensics import Budget, examine, forensics
from jaxkd.study_statistics import summarize
from jaxkd.train import train

log = logging.getLogger("jaxkd")
EXAMINED = ("hessian", "attention")  # of every student: what the statistics over seeds rest on


def run_study(config: ConfigDict, folder: Path) -> dict[str, Any]:
  """Runs or continues the study in `folder`; returns and writes `study.json` (schema `jaxkd.study/1`).

  Raises:
    UserError: the folder holds another study. And whatever `train` raises.
  """
  run_folder.check_folder(config, folder.absolute())
  files.write_text(folder / "config.json", configs.to_json(config) + "\n")
  plan = [*config.study.teachers, *(f"{a} seed {s}" for s in config.study.seeds for a in config.study.arms)]
  print(f"study '{config.study.name}': {len(plan)} models to train, then to examine", flush=True)
  teachers = [
    _teacher(config, name, folder, f"[{i + 1}/{len(plan)}]") for i, name in enumerate(config.study.teachers)
  ]
  runs = _students(config, folder, len(plan))
  comparison = _forensics(config, folder)
  study = summarize(config, runs, teachers, _curves(config, folder), comparison)
  files.write_json(folder / "study.json", study)
  return study


# --- teachers ---


def teacher_folder(folder: Path, name: str) -> Path:
  return folder / "teachers" / name


def teacher_config(config: ConfigDict, name: str, folder: Path) -> ConfigDict:
  """The run config of one teacher; `init.weights` may name an earlier teacher of the study, as a probe's does."""
  run = copy.deepcopy(config.study.teachers[name].run)
  if run.init.weights in config.study.teachers:
    run.init.weights = str(teacher_folder(folder, run.init.weights))
  return run


def _teacher(config: ConfigDict, name: str, folder: Path, counter: str) -> dict[str, Any]:
  options = config.study.teachers[name]
  path = teacher_folder(folder, name)
  _announce(counter, f"teacher '{name}': {options.label or options.run.model.name}", path)
  train(teacher_config(config, name, folder), path, label=f"{counter} {name}")
  quality = path / "quality.json"
  found = checkpoint.load(path)
  if not quality.exists() or files.read_json(quality)["digest"] != found.digest:
    files.write_json(quality, {"digest": found.digest, **_quality(found, options.label or name, options.run)})
  known = files.read_json(quality)
  for what, share in known["rows"]:
    print(f"    {what}: {100 * share:.1f} %", flush=True)
  return {"key": name, **known}


def _announce(counter: str, what: str, path: Path) -> None:
  state = (
    "done" if (path / "DONE").exists() else "going on" if (path / "checkpoints").exists() else "training"
  )
  print(f"{counter} {what}: {state}", flush=True)


def _quality(found: checkpoint.Checkpoint, label: str, config: ConfigDict) -> dict[str, Any]:
  """What a teacher knows, on the test split, beside the same measures of pixels and of random weights."""
  subject = subjects.as_subject(label, found)
  train_split, test = data.load(config.data).train, data.load_test(config.data)
  rows: list[list[Any]] = []
  if found.meta["num_classes"]:
    logits = evaluation.head_logits(
      subject.model,
      subject.variables,
      test,
      mean=subject.mean,
      std=subject.std,
      batch_size=config.eval.batch_size,
    )
    rows.append(["test accuracy", evaluation.accuracy(logits["cls"], test.labels)])
  for what, variables in (
    ("frozen features", subject.variables),
    ("random initialisation", _random(subject, config)),
  ):
    a, b = (_features(subject, variables, s.images) for s in (train_split, test))
    rows += _probes(what, a, train_split.labels, b, test.labels)
  pixels = [s.images[:].reshape(len(s), -1).astype(np.float32) / 255 for s in (train_split, test)]
  rows += _probes("raw pixels", pixels[0], train_split.labels, pixels[1], test.labels)
  parameters = int(sum(x.size for x in jax.tree.leaves(subject.variables["params"])))
  trained_on = f"{config.data.name}, {len(train_split)} training images"
  trained_on += ", labels used" if found.meta["num_classes"] else ", labels not used"
  return {
    "label": label,
    "model": subject.about["model"],
    "parameters": parameters,
    "trained_on": trained_on,
    "rows": rows,
  }


def _random(subject, config: ConfigDict):
  size, channels = subject.model.image_size[0], subject.model.in_channels
  return subject.model.init(jax.random.key(config.seed), np.zeros((1, size, size, channels), np.float32))


def _features(subject, variables, images: np.ndarray) -> np.ndarray:
  taps = evaluation.collect(
    subject.model, variables, images, names=("features",), mean=subject.mean, std=subject.std, batch_size=256
  )
  return taps["features"]


def _probes(what: str, a, a_labels, b, b_labels) -> list[list[Any]]:
  return [
    [f"k-NN (k=20), {what}", float(knn_accuracy(a, a_labels, b, b_labels, k=20))],
    [f"linear probe, {what}", float(linear_probe(a, a_labels, b, b_labels))],
  ]


# --- students ---


def student_config(config: ConfigDict, arm: str, seed: int, folder: Path) -> ConfigDict:
  """The run config of one student: the study's own run keys with the arm's teachers and terms."""
  run = copy.deepcopy(config.to_dict())
  run.pop("study")
  chosen = config.study.arms[arm].to_dict()
  trained = {n: str(teacher_folder(folder, n)) for n in config.study.teachers}
  teachers = {
    n: {**t, "weights": trained.get(t["weights"], t["weights"])} for n, t in chosen["teachers"].items()
  }
  return configs.complete({**run, "seed": int(seed), "teachers": teachers, "terms": chosen["terms"]})


def student_folder(config: ConfigDict, arm: str, seed: int, folder: Path) -> Path:
  if config.study.replicas:
    return replicas.folder_of(_replicas_folder(arm, folder), seed)
  return folder / "students" / f"{arm}_seed{seed}"


def _replicas_folder(arm: str, folder: Path) -> Path:
  return folder / "students" / arm


def _together(config: ConfigDict, folder: Path, total: int) -> None:
  """Trains all seeds of each arm in one program; every student then has its folder, done."""
  seeds = tuple(config.study.seeds)
  for i, (arm, options) in enumerate(config.study.arms.items()):
    path, number = _replicas_folder(arm, folder), len(config.study.teachers) + i * len(seeds) + 1
    counter = f"[{number}-{number + len(seeds) - 1}/{total}]"
    _announce(counter, f"student '{options.label or arm}', seeds {', '.join(map(str, seeds))}", path)
    run = student_config(config, arm, seeds[0], folder)
    with run.unlocked():
      run.train.replicas = seeds
    train(run, path, label=f"{counter} {arm}")


def _students(config: ConfigDict, folder: Path, total: int) -> dict[str, list[dict[str, Any]]]:
  """`{arm: [examination of each seed]}`; all arms of a seed come before the next seed."""
  if config.study.replicas:
    _together(config, folder, total)
    return {
      arm: [
        {"seed": int(s), **_examined(config, student_folder(config, arm, s, folder))}
        for s in config.study.seeds
      ]
      for arm in config.study.arms
    }
  runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in config.study.arms}
  number = len(config.study.teachers)
  for seed in config.study.seeds:
    for arm, options in config.study.arms.items():
      number += 1
      path = student_folder(config, arm, seed, folder)
      _announce(f"[{number}/{total}]", f"student '{options.label or arm}', seed {seed}", path)
      train(student_config(config, arm, seed, folder), path, label=f"[{number}/{total}] {arm} seed {seed}")
      runs[arm].append({"seed": int(seed), **_examined(config, path)})
  return runs


def _examined(config: ConfigDict, path: Path) -> dict[str, Any]:
  """The examination of one student, made once for its checkpoint and these settings."""
  file, found = path / "analysis" / "examination.json", checkpoint.load(path)
  settings = {k: config.study[k] for k in ("images", "hessian_images", "probes")}
  if file.exists():
    old = files.read_json(file)
    if old["digest"] == found.digest and old["settings"] == settings:
      return old
  test = data.load_test(config.data)
  sample = balanced_sample(test, min(config.study.hessian_images, len(test)))
  subject = subjects.as_subject(path.name, found)
  budget = {"images": min(config.study.images, len(test)), "probes": config.study.probes}
  entry = examine(subject, test, sample, metrics=EXAMINED, **budget)
  steps = files.read_json(path / "DONE")["step"]
  files.write_json(file, {**entry, "settings": settings, "trained_steps": steps})
  return files.read_json(file)


def _forensics(config: ConfigDict, folder: Path) -> dict[str, Any]:
  """Forensics of the first seed's students and of the teachers, made once."""
  seed = config.study.seeds[0]
  members = [(o.label or a, student_folder(config, a, seed, folder)) for a, o in config.study.arms.items()]
  members += [(o.label or n, teacher_folder(folder, n)) for n, o in config.study.teachers.items()]
  loaded = [(name, checkpoint.load(path)) for name, path in members]
  file = folder / "forensics" / "forensics.json"
  if file.exists() and _is_of(files.read_json(file), [f.digest for _, f in loaded]):
    return files.read_json(file)
  first = subjects.run_config(loaded[0][1])
  chosen = config.study
  forensics(
    [subjects.as_subject(name, found, first if i else None) for i, (name, found) in enumerate(loaded)],
    config,
    folder / "forensics",
    budget=Budget(tuple(chosen.metrics), chosen.images, chosen.hessian_images, chosen.probes),
    date=datetime.date.today().isoformat(),
  )
  return files.read_json(file)


def _is_of(result: dict[str, Any], digests: list[str]) -> bool:
  """Whether a forensics result is of these checkpoints, in this version's schema."""
  return result["schema"] == SCHEMA and [m["digest"] for m in result["models"]] == digests


def _curves(config: ConfigDict, folder: Path) -> dict[str, list[list[dict[str, float]]]]:
  """`{arm: [rows of metrics.jsonl of each seed]}`."""
  return {
    arm: [metrics.read(student_folder(config, arm, s, folder) / "metrics.jsonl") for s in config.study.seeds]
    for arm in config.study.arms
  }
