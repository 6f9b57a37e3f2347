"""The pieces of a study, each a model that is trained, evaluated and examined by itself, and what is kept of it.

`results/teachers/cnn.safetensors` is what a model is used with, `cnn.json` beside it what was measured. The JSON is
written last: where it is there the piece is done, on whatever machine it was made, and its run folder is not needed.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxkd import checkpoint, checkpoint_file, files, replicas
from jaxkd.errors import IntegrityFailure, UserError, did_you_mean

SCHEMA = "jaxkd.study_piece/1"
REPORT, NEXT = "report", "next"


@dataclasses.dataclass(frozen=True)
class Piece:
  """A teacher, or the student of one arm and seed. `name` is what the command line and the files call it."""

  kind: str
  key: str
  seed: int = -1

  @property
  def name(self) -> str:
    return f"{self.kind}/{self.key}" + (f"_seed{self.seed}" if self.seed >= 0 else "")


@dataclasses.dataclass(frozen=True)
class Places:
  """Where a study lives: run folders with their checkpoints under `runs`, everything small under `results`.

  `together`: the seeds of an arm are replicas of one run.
  """

  runs: Path
  results: Path
  together: bool = False

  def run(self, piece: Piece) -> Path:
    """The run folder."""
    training = self.training(piece)
    return replicas.folder_of(training, piece.seed) if self._is_replica(piece) else training

  def training(self, piece: Piece) -> Path:
    """The run folder in which it is trained, alone or with others."""
    return self.runs / (f"{piece.kind}/{piece.key}" if self._is_replica(piece) else piece.name)

  def _is_replica(self, piece: Piece) -> bool:
    return self.together and piece.kind == "students"

  def kept(self, piece: Piece) -> Path:
    """The model as a file."""
    return self.results / f"{piece.name}.safetensors"

  def record(self, piece: Piece) -> Path:
    """What was measured on it."""
    return self.results / f"{piece.name}.json"


def places_of(config: ConfigDict, runs: Path, results: Path | None = None) -> Places:
  """The places of a study; without `results` all is under `runs`."""
  return Places(runs, results or runs, config.study.replicas)


def teachers(config: ConfigDict) -> list[Piece]:
  """In the order of training: one may start from an earlier one."""
  return [Piece("teachers", name) for name in config.study.teachers]


def students(config: ConfigDict) -> list[Piece]:
  """All arms of a seed come before the next seed, so that a part of a study is whole seeds."""
  return [Piece("students", arm, int(seed)) for seed in config.study.seeds for arm in config.study.arms]


def find(config: ConfigDict, places: Places, name: str) -> Piece | None:
  """The piece called `name`; for `next` the first that is not done, None when all are.

  Raises:
    UserError: the study has no such piece.
  """
  known = {p.name: p for p in (*teachers(config), *students(config))}
  if name == NEXT:
    return next((p for p in known.values() if not places.record(p).exists()), None)
  if name not in known:
    raise UserError(f"the study has no piece '{name}'", did_you_mean(name, [*known, REPORT, NEXT]))
  return known[name]


def needed(config: ConfigDict, piece: Piece) -> list[Piece]:
  """The teachers that `piece` is trained from."""
  if piece.kind == "teachers":
    names = {config.study.teachers[piece.key].run.init.weights}
  else:
    names = {t.weights for t in config.study.arms[piece.key].teachers.values()}
  return [t for t in teachers(config) if t.key in names]


def read(places: Places, piece: Piece) -> dict[str, Any] | None:
  """The record of `piece`, None if it is not done.

  Raises:
    IntegrityFailure: its model is not the one that was measured. UserError: a record of another version.
  """
  path = places.record(piece)
  if not path.exists():
    return None
  record = files.read_json(path)
  if record.get("schema") != SCHEMA:
    raise UserError(f"{path} is of schema {record.get('schema')!r}, not {SCHEMA!r}", "make the piece again")
  if checkpoint_file.read(places.kept(piece)).digest != record["digest"]:
    raise IntegrityFailure(
      f"{places.kept(piece)} is not the model that {path.name} tells of", "get both again"
    )
  return record


def keep(places: Places, piece: Piece) -> checkpoint.Checkpoint:
  """Writes the model of the finished run of `piece` as a file."""
  return checkpoint_file.write(checkpoint.load(places.run(piece)), places.kept(piece))


def check_together(records: dict[Piece, dict[str, Any]]) -> None:
  """Raises UserError where records do not belong to one study: other teachers, or other data."""
  taught = {p.key: r["digest"] for p, r in records.items() if p.kind == "teachers"}
  data = {r["data_digest"] for r in records.values()}
  for piece, record in records.items():
    for name, digest in record["teachers"].items():
      if taught.get(name, digest) != digest:
        raise UserError(
          f"{piece.name} learnt from another '{name}' than the study's",
          "remove its JSON and run the piece again",
        )
  if len(data) > 1:
    raise UserError(
      "the pieces saw different data: "
      + ", ".join(f"{p.name} {r['data_digest'][:8]}" for p, r in records.items()),
      "remove the JSON of those that are wrong and run them again",
    )


def listing(config: ConfigDict, places: Places) -> list[dict[str, Any]]:
  """Every piece with its `state` (done, begun, new), the `seconds` it took, or those `predicted` for it (or None)."""
  every = [*teachers(config), *students(config)]
  done = {p: r for p in every if (r := read(places, p))}
  rows = []
  for p in every:
    begun = "begun" if (places.training(p) / "checkpoints").exists() else "new"
    took = sum(done[p]["seconds"].values()) if p in done else None
    state = "done" if p in done else begun
    rows.append({"piece": p.name, "state": state, "seconds": took, "predicted": _predicted(p, done)})
  return rows


def _predicted(piece: Piece, done: dict[Piece, dict[str, Any]]) -> float | None:
  """What other pieces took: those of the same arm, or else of the same kind; a teacher is like no other."""
  alike = [r for p, r in done.items() if p.kind == piece.kind == "students"]
  same = [r for p, r in done.items() if p.kind == piece.kind == "students" and p.key == piece.key]
  times = [sum(r["seconds"].values()) for r in same or alike]
  return sum(times) / len(times) if times else None
