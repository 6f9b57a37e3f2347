"""Weight files as dictionaries of numpy arrays, with a digest and notes on what was done to get there."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np

from jaxkd.errors import IntegrityFailure, UserError, one_line
from jaxkd.weights.safetensors_file import load_safetensors, write_safetensors
from jaxkd.weights.sniff import weights_format
from jaxkd.weights.torch_file import load_torch

__all__ = ["WeightFile", "check_digest", "locate", "read_weights", "sha256_file", "write_safetensors"]

IN_FOLDERS = ("model.safetensors", "model.safetensors.index.json")
PREFIXES = ("module.", "_orig_mod.", "backbone.")


@dataclasses.dataclass(frozen=True)
class WeightFile:
  """The content of one weight file, or of one sharded checkpoint.

  Attributes:
    path: the file, or the index of the shards. format: `safetensors` or `torch`.
    arrays: by name; views of the mapped file where possible, so treat them as read-only.
    sha256: of the file; of shards: over the index's bytes, then each shard's own hex digest in order of file name.
    notes: what was unwrapped, stripped, left out or kept in an unusual dtype.
    metadata: the header's strings (safetensors). bytes: size of all files together.
  """

  path: Path
  format: str
  arrays: dict[str, np.ndarray]
  sha256: str
  notes: tuple[str, ...]
  metadata: dict[str, str]
  bytes: int


def read_weights(path: str | Path) -> WeightFile:
  """Reads a .safetensors file, a file written by torch.save, or a sharded folder of either.

  The content decides, not the name. Of a folder, `model.safetensors` or `model.safetensors.index.json` is read.
  A prefix that every name has (`module.`, `_orig_mod.`, `backbone.`) is stripped. Safetensors needs no torch.

  Raises:
    UserError: not there, incomplete, not weights, or a pickle that would run code (see `torch_file`).
  """
  place = locate(path)
  found = _read_shards(place) if place.name.endswith(".index.json") else _read_file(place)
  if not found.arrays:
    raise UserError(f"{place}: holds no arrays", "name another file")
  arrays, stripped = _strip_prefixes(found.arrays)
  kept = sorted({a.dtype.name for a in arrays.values() if hasattr(ml_dtypes, a.dtype.name)})
  notes = (*found.notes, *stripped, *(f"{dtype} kept" for dtype in kept))
  return dataclasses.replace(found, arrays=arrays, notes=notes)


def locate(path: str | Path) -> Path:
  """The file that `path` means: itself, or what lies in that folder. Raises UserError with near names."""
  path = Path(path)
  if path.is_file():
    return path
  if path.is_dir():
    for name in IN_FOLDERS:
      if (path / name).is_file():
        return path / name
    beside = sorted(
      p.name for p in path.glob("*") if p.suffix in (".safetensors", ".pth", ".pt", ".bin", ".json")
    )
    hint = f"name one of its files: {', '.join(beside[:5])}" if beside else "name a file, or another folder"
    raise UserError(f"no weights in the folder {path}: expected {' or '.join(IN_FOLDERS)}", hint)
  if not path.parent.is_dir():
    raise UserError(f"no weights at {path}", f"there is no folder {path.parent}")
  names = sorted(p.name for p in path.parent.iterdir())
  near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
  hint = (
    f"did you mean {', '.join(near)}?" if near else f"{path.parent} holds {', '.join(names[:5]) or 'nothing'}"
  )
  raise UserError(f"no weights at {path}", hint)


def _read_file(path: Path) -> WeightFile:
  format, size = weights_format(path), path.stat().st_size
  if format == "safetensors":
    arrays, metadata = load_safetensors(path)
    return WeightFile(path, format, arrays, sha256_file(path), (), metadata, size)
  arrays, notes = load_torch(path)
  return WeightFile(path, format, arrays, sha256_file(path), notes, {}, size)


def _read_shards(index: Path) -> WeightFile:
  """All shards that the index names, merged; every name must be in the shard that the index says."""
  raw = index.read_bytes()
  weight_map = _weight_map(index, raw)
  files = sorted(set(weight_map.values()))
  if missing := [f for f in files if not (index.parent / f).is_file()]:
    some = ", ".join(missing[:5])
    raise UserError(
      f"{index}: {len(missing)} of {len(files)} shards are missing: {some}", "download them too"
    )
  shards = {f: _read_file(index.parent / f) for f in files}
  if absent := [name for name, f in weight_map.items() if name not in shards[f].arrays]:
    raise UserError(
      f"{index}: {len(absent)} arrays are not in their shards, such as '{one_line(absent[0])}'",
      "index and shards are of different downloads; fetch them again",
    )
  digest = hashlib.sha256(raw)
  for f in files:
    digest.update(shards[f].sha256.encode())
  first = shards[files[0]]
  arrays = {name: shards[f].arrays[name] for name, f in weight_map.items()}
  notes = (f"{len(files)} shards", *first.notes)
  size = len(raw) + sum(s.bytes for s in shards.values())
  return WeightFile(index, first.format, arrays, digest.hexdigest(), notes, first.metadata, size)


def _weight_map(index: Path, raw: bytes) -> dict[str, str]:
  try:
    found = dict(json.loads(raw)["weight_map"])
    plain = found and all(isinstance(f, str) and Path(f).name == f for f in found.values())
  except (ValueError, TypeError, KeyError) as e:
    raise UserError(
      f"{index}: not an index of shards: no 'weight_map'", "name the index of a checkpoint"
    ) from e
  if not plain:
    raise UserError(f"{index}: its shards are not plain file names", "shards lie in the index's own folder")
  return found


def _strip_prefixes(arrays: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
  notes = []
  while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in arrays)), None):
    arrays = {name.removeprefix(prefix): a for name, a in arrays.items()}
    notes.append(f"stripped prefix '{prefix}'")
  return arrays, notes


def sha256_file(path: Path) -> str:
  """Hex digest of the file's bytes, read in pieces of 1 MB."""
  digest = hashlib.sha256()
  with open(path, "rb") as f:
    while piece := f.read(1 << 20):
      digest.update(piece)
  return digest.hexdigest()


def check_digest(found: str, pinned: str, path: str | Path) -> None:
  """Compares a sha256 with the pinned one, or with its first 8 or more digits (torch hub's file names carry 8).

  Raises:
    UserError: `pinned` is no such digest. IntegrityFailure: the file is another one.
  """
  if not re.fullmatch(r"[0-9a-fA-F]{8,64}", pinned):
    raise UserError(f"sha256 '{one_line(pinned)}' is not 8 to 64 hexadecimal digits", "see `sha256sum FILE`")
  if not found.startswith(pinned.lower()):
    raise IntegrityFailure(
      f"{path}: sha256 is {found}, pinned is {pinned.lower()}", "fetch the file again, or pin the new digest"
    )
