"""The feature bank: what the terms take from a frozen teacher, computed once for every training image and geometry.

A bank is a folder of `.npy` files, one per target and shard, and one `shard-IofN.json` per finished shard, which says
what the features are of (weights, data, geometries, targets) and the digest of every file. Other features are refused,
never silently replaced.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jaxkd import distributed, files, sharding
from jaxkd.data.augment import draw_boxes, sample_boxes
from jaxkd.errors import CannotWrite, IntegrityFailure, UserError, did_you_mean
from jaxkd.experiment import Experiment
from jaxkd.metrics import ProgressLine
from jaxkd.teachers import Teacher
from jaxkd.weights.read import sha256_file

FORMAT = 1
DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}
SAVE_EVERY = 20.0  # seconds between two marks from which an interrupted build goes on
GEOMETRY = ("geometries", "crop", "flip")


@dataclasses.dataclass(frozen=True)
class Bank:
  """Features by target key, each [n k ...] (image, geometry), mapped from disk in the stored dtype."""

  folder: Path
  arrays: dict[str, np.ndarray]

  @property
  def bytes(self) -> int:
    return sum(a.nbytes for a in self.arrays.values())

  def rows(self, index: np.ndarray, geometry: np.ndarray) -> dict[str, np.ndarray]:
    """The features of some images and geometries, copied into memory."""
    geometry = np.minimum(geometry, next(iter(self.arrays.values())).shape[1] - 1)  # clean banks hold one
    return {key: np.asarray(a[index, geometry]) for key, a in self.arrays.items()}


def fixed_boxes(experiment: Experiment) -> np.ndarray | None:
  """The geometries of every training image, float32 [n k 5] as of `draw_boxes`; None where they are drawn anew.

  They depend on the data options only, so all arms and seeds of a study share them.
  """
  options, train = experiment.config.data, experiment.dataset.train
  k = options.augment.geometries
  if not k:
    return None
  n, shape = len(train), train.images.shape[1:]
  key = jax.random.fold_in(jax.random.key(options.split_seed), 977)
  boxes = draw_boxes(
    key,
    (n * k, *shape),
    crop=options.augment.crop,
    flip=options.augment.flip,
    scale=options.views.global_scale,
  )
  return np.asarray(boxes).reshape(n, k, 5)


def identity(experiment: Experiment, name: str) -> dict[str, Any]:
  """What the features are of, as JSON types; two banks with the same identity hold the same features."""
  teacher, data = experiment.teachers[name], experiment.config.data
  clean = teacher.view == "clean"
  geometry = (
    {} if clean else {k: data.augment[k] for k in GEOMETRY} | {"scale": list(data.views.global_scale)}
  )
  shapes = jax.eval_shape(lambda: features(experiment, name)(teacher.variables, *_example(experiment, 1)))
  return {
    "format": FORMAT,
    "weights": teacher.digest,
    "model": repr(teacher.model),
    "view": teacher.view,
    "size": teacher.size,
    "normalisation": [list(teacher.mean), list(teacher.std)],
    "data": experiment.dataset.digest,
    "split_seed": data.split_seed,
    "geometry": geometry,
    "dtype": experiment.config.bank.dtype,
    "images": len(experiment.dataset.train),
    "views": 1 if clean else data.augment.geometries,
    "targets": {key: list(s.shape[1:]) for key, s in sorted(shapes.items())},
  }


def check_options(experiment: Experiment, name: str) -> None:
  """Raises UserError for views that a bank cannot hold."""
  teacher, augment = experiment.teachers[name], experiment.config.data.augment
  field = f"teachers.{name}"
  if teacher.is_ema or teacher.view == "same":
    what = "the student's own average" if teacher.is_ema else "view 'same' (each step's photometry)"
    raise UserError(
      f"{field}.bank: {what} cannot be computed once", f"leave {field}.bank empty, or set view=aligned"
    )
  if teacher.view == "aligned" and not augment.geometries:
    raise UserError(
      f"{field}.bank needs a fixed number of geometries per image, and data.augment.geometries is 0",
      "set --config.data.augment.geometries=4 (in every arm of a study)",
    )


def open_bank(experiment: Experiment, name: str, *, build_missing: bool = True) -> Bank:
  """The bank of teacher `name`, built (or its building resumed) when it is not there.

  Raises:
    UserError: options a bank cannot hold, features of something else (the differing facts), or parts missing
      that other processes are to build. IntegrityFailure: bytes that are not the ones written.
  """
  check_options(experiment, name)
  folder, wanted = Path(experiment.teachers[name].bank), identity(experiment, name)
  found = distributed.from_first(lambda: shards(folder))
  if not found and build_missing:
    build(experiment, name)
    found = distributed.from_first(lambda: shards(folder))
  if not found:
    raise UserError(
      f"no feature bank at {folder}", f"build it: jaxkd bank build --teacher={name} --config=..."
    )
  for about in found:
    if differing := differences(about["identity"], wanted):
      raise UserError(
        f"the bank at {folder} is of other features: {'; '.join(differing[:4])}",
        "name another folder, remove that one, or restore the options it was built with",
      )
  return _load(folder, found, wanted)


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
  """The facts in which two identities differ, as `key (there: x, now: y)`."""
  keys = [k for k in sorted({*found, *wanted}) if found.get(k) != wanted.get(k)]
  return [f"{k} (there: {_short(found.get(k))}, now: {_short(wanted.get(k))})" for k in keys]


def _short(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) <= 80 else text[:77] + "..."


def shards(folder: Path) -> list[dict[str, Any]]:
  """The finished shards of a bank, in order."""
  found = [files.read_json(p) for p in folder.glob("shard-*of*.json")] if folder.is_dir() else []
  return sorted(found, key=lambda about: about["shard"])


def _load(folder: Path, found: list[dict[str, Any]], wanted: dict[str, Any]) -> Bank:
  count = found[0]["of"]
  missing = sorted(set(range(count)) - {about["shard"] for about in found})
  if missing:
    raise UserError(
      f"the bank at {folder} lacks shards {', '.join(map(str, missing))} of {count}",
      f"build them: jaxkd bank build --shard={missing[0]}/{count} --config=...",
    )
  parts: dict[str, list[np.ndarray]] = {key: [] for key in wanted["targets"]}
  for about in found:
    for key, file in about["files"].items():
      path = folder / file["name"]
      if not path.is_file() or sha256_file(path) != file["sha256"]:
        raise IntegrityFailure(
          f"{path} is not the file that was written", f"remove {folder} and build it again"
        )
      parts[key].append(_mapped(path, wanted["dtype"], "r"))
  arrays = {key: p[0] if len(p) == 1 else np.concatenate(p) for key, p in parts.items()}
  return Bank(folder, arrays)


def _mapped(path: Path, dtype: str, mode: str, shape: tuple[int, ...] = ()) -> np.ndarray:
  """A .npy file as a mapped array; bfloat16, which .npy does not know, is kept as uint16."""
  stored = np.dtype(np.uint16) if dtype == "bfloat16" else DTYPES[dtype]
  raw = (
    np.lib.format.open_memmap(path, mode="w+", dtype=stored, shape=shape)
    if mode == "w+"
    else np.lib.format.open_memmap(path, mode=mode)
  )
  return raw.view(DTYPES[dtype])


# --- building ---


def features(experiment: Experiment, name: str):
  """`(variables, images uint8 [b h w c], boxes [b 5]) -> {target key: [b ...]}` in the stored dtype."""
  teacher: Teacher = experiment.teachers[name]
  dtype = DTYPES[experiment.config.bank.dtype]

  def features(variables, images, boxes):
    source = images.astype(jnp.float32) / 255
    view = source if teacher.view == "clean" else sample_boxes(source, boxes, source.shape[1])
    targets = experiment.objective.make_targets(name, teacher(variables, {teacher.view: view}))
    return {key: value.astype(dtype) for key, value in targets.items()}

  return features


def _example(experiment: Experiment, b: int) -> tuple[np.ndarray, np.ndarray]:
  return experiment.dataset.train.images[:b], np.zeros((b, 5), np.float32)


def build(experiment: Experiment, name: str, *, shard: tuple[int, int] = (0, 1)) -> None:
  """Computes shard i of n (a range of images) of a bank; goes on where an earlier call stopped.

  Each of n processes, on any machines that share the folder, builds one shard; no further coordination is needed.
  Processes that run together share the work of one shard, and the first of them writes.

  Raises:
    UserError: the folder holds features of something else. CannotWrite: the disk is full or read-only.
  """
  check_options(experiment, name)
  teacher, wanted = experiment.teachers[name], identity(experiment, name)
  folder, (i, n) = Path(teacher.bank), shard
  first, last = (len(experiment.dataset.train) * j // n for j in (i, i + 1))
  mark = folder / f"building-{i}of{n}.json"
  try:
    done = distributed.from_first(lambda: _resume(mark, folder, wanted))
    arrays = _open_files(folder, wanted, (i, n), last - first, fresh=done == 0)
    _fill(experiment, name, arrays, (first, last), done, mark, wanted)
  except OSError as e:
    raise CannotWrite(
      f"cannot write {folder}: {e.strerror}", "free space or choose another bank folder"
    ) from e
  if not distributed.is_first():
    return
  about = {
    "identity": wanted,
    "shard": i,
    "of": n,
    "rows": [first, last],
    "files": {
      key: {"name": _file(key, shard), "sha256": sha256_file(folder / _file(key, shard))} for key in arrays
    },
  }
  files.write_json(folder / f"shard-{i}of{n}.json", about)
  mark.unlink(missing_ok=True)


def _file(key: str, shard: tuple[int, int]) -> str:
  return f"{re.sub(r'[^A-Za-z0-9@]+', '_', key)}.{shard[0]}of{shard[1]}.npy"


def _resume(mark: Path, folder: Path, wanted: dict[str, Any]) -> int:
  """Images done by an interrupted build of the same features, in a folder that is there."""
  folder.mkdir(parents=True, exist_ok=True)
  for about in [*shards(folder), *([files.read_json(mark)] if mark.is_file() else [])]:
    if differing := differences(about["identity"], wanted):
      raise UserError(
        f"{folder} holds features of something else: {'; '.join(differing[:4])}", "name another folder"
      )
  return files.read_json(mark)["done"] if mark.is_file() else 0


def _open_files(
  folder: Path, wanted: dict[str, Any], shard: tuple[int, int], rows: int, *, fresh: bool
) -> dict[str, np.ndarray]:
  if not distributed.is_first():
    return {}
  shapes = {key: (rows, wanted["views"], *shape) for key, shape in wanted["targets"].items()}
  mode = "w+" if fresh else "r+"
  return {
    key: _mapped(folder / _file(key, shard), wanted["dtype"], mode, shape) for key, shape in shapes.items()
  }


def _fill(
  experiment: Experiment,
  name: str,
  arrays: dict[str, np.ndarray],
  rows: tuple[int, int],
  done: int,
  mark: Path,
  wanted: dict[str, Any],
) -> None:
  """Runs the teacher over the images left, `bank.batch_size` of them with all their geometries a call."""
  mesh, views, (first, last) = experiment.mesh, wanted["views"], rows
  size = -(-min(experiment.config.bank.batch_size, last - first) // mesh.size) * mesh.size
  images, boxes = experiment.dataset.train.images, fixed_boxes(experiment)
  if boxes is None:
    boxes = np.zeros((len(images), 1, 5), np.float32)
  everywhere = sharding.replicated(mesh)
  variables = experiment.teachers[name].variables
  variables = sharding.put(variables, jax.tree.map(lambda _: everywhere, variables))
  step = jax.jit(features(experiment, name), out_shardings=everywhere)
  progress = ProgressLine(f"bank {name}", done=done, total=last - first, unit_size=views)
  saved = time.monotonic()
  for start in range(done, last - first, size):
    count = min(size, last - first - start)
    index = sharding.padded(first + start, size, last, mesh)  # the last call is filled up, and cut below
    batch = sharding.shard_rows(images, index, mesh)
    for view in range(views):
      found = step(variables, batch, sharding.shard_rows(boxes[:, view], index, mesh))
      jax.block_until_ready(found)  # the processes that do not read it must not run ahead
      for key, array in arrays.items():
        array[start : start + count, view] = np.asarray(found[key])[:count]
    if time.monotonic() - saved > SAVE_EVERY:
      _save_mark(arrays, mark, wanted, start + count)
      saved = time.monotonic()
    progress.update(start + count, "")
  _save_mark(arrays, mark, wanted, last - first)
  progress.close()


def _save_mark(arrays: dict[str, np.ndarray], mark: Path, wanted: dict[str, Any], done: int) -> None:
  """Features first, then the mark that says they are there."""
  for array in arrays.values():
    if isinstance(array.base, np.memmap):
      array.base.flush()
  files.write_json(mark, {"identity": wanted, "done": done})


def place(experiment: Experiment, bank: Bank) -> str:
  """ "device" or "disk": where `bank.place` puts this bank."""
  wanted = experiment.config.bank.place
  if wanted != "auto":
    return wanted
  return "device" if bank.bytes <= experiment.config.bank.device_gib * 2**30 else "disk"


def find_teacher(experiment: Experiment, name: str) -> str:
  """The teacher to build for: `name`, or the only one with a bank. Raises UserError when that is not one."""
  banked = [n for n, t in experiment.teachers.items() if t.bank]
  if name and name not in banked:
    raise UserError(
      f"teacher '{name}' has no bank", f"set teachers.{name}.bank, or {did_you_mean(name, banked)}"
    )
  if not name and len(banked) != 1:
    raise UserError(f"{len(banked)} teachers have a bank", f"add --teacher={'|'.join(banked) or 'NAME'}")
  return name or banked[0]
