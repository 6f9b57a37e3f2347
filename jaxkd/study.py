"""The whole experiment: teachers, matched students over seeds, examination, statistics, report.

Arms differ in teachers and terms only; student, data order, geometries, steps and optimiser come from one
config, so the comparison is fair by construction. A study is made of pieces (`jaxkd.study_pieces`): one that is done
is never run again, an interrupted one goes on where it was, and several machines may each make some.
"""

from __future__ import annotations

import copy
import datetime
import logging
import time
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxkd import allocator, checkpoint, data, files, metrics, run_folder, study_pieces, subjects
from jaxkd import config as configs
from jaxkd.analysis.forensics import SCHEMA
from jaxkd.data.sources import balanced_sample
from jaxkd.errors import UserError
from jaxkd.forensics import Budget, examine, forensics
from jaxkd.study_pieces import Piece, Places
from jaxkd.study_statistics import summarize
from jaxkd.teacher_quality import quality
from jaxkd.train import train

log = logging.getLogger("jaxkd")
EXAMINED = ("hessian", "attention")  # of every student: what the statistics over seeds rest on
MADE = ("date", "hardware", "command", "seconds", "digest")  # of every piece, in study.json


def run_study(config: ConfigDict, folder: Path, results: Path | None = None) -> dict[str, Any]:
  """Runs or continues the study, with run folders in `folder` and everything small in `results` (or there too).

  Returns and writes `study.json` (schema `jaxkd.study/1`).

  Raises:
    UserError: the folder holds another study. And whatever `train` raises.
  """
  places = open_study(config, folder, results)
  every = [*study_pieces.teachers(config), *study_pieces.students(config)]
  print(f"study '{config.study.name}': {len(every)} models to train, then to examine", flush=True)
  for i, piece in enumerate(every):
    run_piece(config, piece, places, f"[{i + 1}/{len(every)}]")
  return make_report(config, places)


def report_only(config: ConfigDict, folder: Path, results: Path | None = None) -> dict[str, Any]:
  """`run_study` without its pieces: from those that are done, marked as partial where some are not."""
  return make_report(config, open_study(config, folder, results))


def open_study(config: ConfigDict, folder: Path, results: Path | None = None) -> Places:
  """The places of a study, with its config in them. Raises UserError when they hold another one."""
  places = study_pieces.places_of(config, folder, results)
  run_folder.check_folder(config, places.results.absolute())
  files.write_text(places.results / "config.json", configs.to_json(config) + "\n")
  return places


def run_piece(config: ConfigDict, piece: Piece, places: Places, counter: str = "") -> dict[str, Any]:
  """Trains, evaluates and examines one model unless its record is there; returns the record.

  Raises:
    UserError: a teacher that it learns from is not done.
  """
  done = study_pieces.read(places, piece)
  _announce(counter, _called(config, piece), "done" if done else run_folder.state(places.run(piece)))
  if done:
    return done
  for teacher in study_pieces.needed(config, piece):
    if not study_pieces.read(places, teacher):
      raise UserError(f"{piece.name} learns from {teacher.name}, which is not done", "run that piece first")
  make = _teacher if piece.kind == "teachers" else _student
  record = make(config, piece, places, counter)
  files.write_json(places.record(piece), record)
  allocator.give_back()  # the next model's buffers are of other sizes
  return files.read_json(places.record(piece))


def make_report(config: ConfigDict, places: Places) -> dict[str, Any]:
  """`study.json` and the forensics, from the pieces that are done.

  Raises:
    UserError: no student of the baseline is done, or the pieces do not belong together.
  """
  every = [*study_pieces.teachers(config), *study_pieces.students(config)]
  records = {p: r for p in every if (r := study_pieces.read(places, p))}
  study_pieces.check_together(records)
  runs: dict[str, list[dict[str, Any]]] = {a: [] for a in config.study.arms}
  curves: dict[str, list[list[dict[str, float]]]] = {a: [] for a in config.study.arms}
  for piece, record in records.items():
    if piece.kind == "students":
      runs[piece.key].append({"seed": piece.seed, **record["examination"], "trained_steps": record["steps"]})
      curves[piece.key].append(record["rows"])
  baseline = config.study.baseline
  if not runs[baseline]:
    raise UserError(
      f"no student of the baseline '{baseline}' is done",
      f"run piece students/{baseline}_seed{config.study.seeds[0]}",
    )
  teachers = [{"key": p.key, **r["quality"]} for p, r in records.items() if p.kind == "teachers"]
  study = summarize(config, runs, teachers, curves, _forensics(config, places, list(records)))
  study["pieces"] = [{"piece": p.name, **{k: r[k] for k in MADE}} for p, r in records.items()]
  files.write_json(places.results / "study.json", study)
  return study


def _called(config: ConfigDict, piece: Piece) -> str:
  if piece.kind == "teachers":
    options = config.study.teachers[piece.key]
    return f"teacher '{options.label or options.run.model.name}'"
  return f"student '{config.study.arms[piece.key].label or piece.key}', seed {piece.seed}"


def _announce(counter: str, what: str, state: str) -> None:
  words = {"done": "done", "begun": "going on", "new": "training"}
  print(f"{counter} {what}: {words[state]}".strip(), flush=True)


def _record(piece: Piece, found: checkpoint.Checkpoint, places: Places) -> dict[str, Any]:
  """What every record says: which weights, from which data and teachers, made where and how."""
  environment = run_folder.environment()
  rows = metrics.read(places.run(piece) / "metrics.jsonl")
  return {
    "schema": study_pieces.SCHEMA,
    "piece": piece.name,
    "digest": found.digest,
    "data_digest": found.meta["data_digest"],
    "teachers": {n: d for n, d in found.meta["teachers"].items() if d != "ema"},
    "steps": files.read_json(places.run(piece) / "DONE")["step"],
    "command": run_folder.command_line(),
    "date": environment.pop("date"),
    "hardware": environment.pop("hardware"),
    "versions": environment,
    "seconds": {"training": round(_training_seconds(rows, found.config["train"]["batch_size"]), 1)},
    "config": found.config,
    "rows": [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows],
  }


def _training_seconds(rows: list[dict[str, float]], batch_size: int) -> float:
  """The time of the steps by their logged rate: what an interruption or a wait cost is not in it."""
  total, before = 0.0, 0.0
  for row in rows:
    total += (row["step"] - before) * batch_size / row["time/images_per_s"]
    before = row["step"]
  return total


# --- teachers ---


def teacher_config(config: ConfigDict, name: str, results: Path) -> ConfigDict:
  """The run config of one teacher; `init.weights` may name an earlier teacher of the study, as a probe's does."""
  run = copy.deepcopy(config.study.teachers[name].run)
  if run.init.weights in config.study.teachers:
    run.init.weights = str(Places(results, results).kept(Piece("teachers", run.init.weights)))
  return run


def _teacher(config: ConfigDict, piece: Piece, places: Places, counter: str) -> dict[str, Any]:
  options = config.study.teachers[piece.key]
  train(teacher_config(config, piece.key, places.results), places.run(piece), label=f"{counter} {piece.key}")
  found, start = study_pieces.keep(places, piece), time.monotonic()
  record = _record(piece, found, places)
  record["quality"] = quality(found, options.label or piece.key, options.run)
  record["seconds"]["evaluation"] = round(time.monotonic() - start, 1)
  for what, share in record["quality"]["rows"]:
    print(f"    {what}: {100 * share:.1f} %", flush=True)
  return record


# --- students ---


def student_config(config: ConfigDict, arm: str, seed: int, results: Path) -> ConfigDict:
  """The run config of one student: the study's own run keys with the arm's teachers and terms."""
  run = copy.deepcopy(config.to_dict())
  run.pop("study")
  chosen = config.study.arms[arm].to_dict()
  places = Places(results, results)
  trained = {p.key: str(places.kept(p)) for p in study_pieces.teachers(config)}
  teachers = {
    n: {**t, "weights": trained.get(t["weights"], t["weights"])} for n, t in chosen["teachers"].items()
  }
  return configs.complete({**run, "seed": int(seed), "teachers": teachers, "terms": chosen["terms"]})


def _student(config: ConfigDict, piece: Piece, places: Places, counter: str) -> dict[str, Any]:
  _train(config, piece, places, counter)
  found = study_pieces.keep(places, piece)
  record = {**_record(piece, found, places), "examination": _examined(config, piece, found)}
  record["seconds"]["examination"] = record["examination"]["seconds"]
  return record


def _train(config: ConfigDict, piece: Piece, places: Places, counter: str) -> None:
  """Trains the student, or with `study.replicas` all seeds of its arm in one program, each of which then is done."""
  label = f"{counter} {piece.key} seed {piece.seed}"
  seeds = tuple(config.study.seeds) if config.study.replicas else ()
  run = student_config(config, piece.key, seeds[0] if seeds else piece.seed, places.results)
  if seeds:
    label = f"{counter} {piece.key} seeds {', '.join(map(str, seeds))}"
    with run.unlocked():
      run.train.replicas = seeds
  train(run, places.training(piece), label=label)


def _examined(config: ConfigDict, piece: Piece, found: checkpoint.Checkpoint) -> dict[str, Any]:
  test = data.load_test(config.data)
  sample = balanced_sample(test, min(config.study.hessian_images, len(test)))
  budget = {"images": min(config.study.images, len(test)), "probes": config.study.probes}
  subject = subjects.as_subject(f"{piece.key}_seed{piece.seed}", found)
  return examine(subject, test, sample, metrics=EXAMINED, **budget)


def _forensics(config: ConfigDict, places: Places, done: list[Piece]) -> dict[str, Any]:
  """Forensics of the first seed's students and of the teachers, of those that are done, made once."""
  seed, chosen = config.study.seeds[0], config.study
  members = [(chosen.arms[p.key].label or p.key, p) for p in done if p.seed == seed]
  members += [(chosen.teachers[p.key].label or p.key, p) for p in done if p.kind == "teachers"]
  loaded = [(name, checkpoint.load(places.kept(p))) for name, p in members]
  out = places.results / "forensics"
  file = out / "forensics.json"
  if file.exists() and _is_of(files.read_json(file), [f.digest for _, f in loaded]):
    return files.read_json(file)
  first = subjects.run_config(loaded[0][1])
  forensics(
    [subjects.as_subject(name, found, first if i else None) for i, (name, found) in enumerate(loaded)],
    config,
    out,
    budget=Budget(tuple(chosen.metrics), chosen.images, chosen.hessian_images, chosen.probes),
    date=datetime.date.today().isoformat(),
  )
  return files.read_json(file)


def _is_of(result: dict[str, Any], digests: list[str]) -> bool:
  """Whether a forensics result is of these checkpoints, in this version's schema."""
  return result["schema"] == SCHEMA and [m["digest"] for m in result["models"]] == digests
