"""Files written by torch.save, read without ever running what their pickle names.

torch's own `weights_only` reader is what keeps code from running. Before it, the pickle's instructions are listed
(`pickletools`, nothing is executed), so that whole modules and truncated files get a message of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import ml_dtypes
import numpy as np

from jaxkd.errors import UserError, one_line
from jaxkd.weights.sniff import AGAIN, incomplete

WRAPPERS = (
  "state_dict_ema",
  "model_ema",
  "teacher",
  "model",
  "state_dict",
  "model_state_dict",
  "module",
  "net",
  "student",
)
"""Keys under which checkpoints keep their weights, averaged ones first: the first that is there is taken."""

SAVE = "where the model's code is: torch.save(model.state_dict(), path)"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
ORDINARY = re.compile(r"torch\._utils\._rebuild\w+|torch\.\w*Storage|collections\.\w+|argparse\.Namespace")
MODULES = ("torch.nn.modules.", "torch.nn.parallel.", "__torch__.")


def load_torch(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
  """The state dict in `path` as numpy arrays on the CPU, and notes on what was unwrapped and left out.

  bfloat16 and float8 stay as they are (ml_dtypes). Memory is mapped where the file is a zip.

  Raises:
    UserError: truncated; a whole module; a pickle that names code; no tensors; or torch is not installed.
  """
  names = _pickled_names(path)
  if any(name.startswith(MODULES) for name in names):
    raise UserError(f"{path}: holds a whole torch module, not its weights", f"save the weights alone, {SAVE}")
  payload = _load(path, names)
  if not isinstance(payload, Mapping):
    raise UserError(f"{path}: holds a {type(payload).__name__}, not a state dict", f"save one {SAVE}")
  return _state_dict(path, payload)


def _pickled_names(path: Path) -> list[str]:
  """Every class and function that the file's pickles name, sorted; nothing is loaded."""
  try:
    if _is_zip(path):
      with zipfile.ZipFile(path) as archive:
        return sorted(_zip_names(path, archive))
    with open(path, "rb") as f:
      return sorted(_legacy_names(path, f))
  except zipfile.BadZipFile:
    raise incomplete(path, "the zip directory at its end") from None
  except (ValueError, EOFError):  # how pickletools says that a pickle breaks off
    raise incomplete(path, "the end of its pickle") from None


def _zip_names(path: Path, archive: zipfile.ZipFile) -> set[str]:
  members = archive.namelist()
  if any(Path(m).name == "constants.pkl" for m in members):
    return {"__torch__.TorchScript"}
  if not (found := [m for m in members if Path(m).name == "data.pkl"]):
    inside = one_line(", ".join(members[:3]))
    raise UserError(f"{path}: a zip, but not one of torch's (it holds {inside})", f"save the weights {SAVE}")
  with archive.open(found[0]) as f:
    return _names(f)[0]


def _legacy_names(path: Path, f: IO[bytes]) -> set[str]:
  """Before torch 1.6: pickles of a magic number, a version, the system, the object and its storages, then data."""
  names, first = _names(f)
  if first != LEGACY_MAGIC:
    raise UserError(f"{path}: a pickle, but not one of torch's", f"save the weights {SAVE}")
  for _ in range(4):
    names |= _names(f)[0]
  return names


def _names(f: IO[bytes]) -> tuple[set[str], Any]:
  """The globals one pickle names, and its first argument after the protocol number."""
  names: set[str] = set()
  strings: list[str] = []  # the last two pushed: what STACK_GLOBAL takes
  memo: dict[int, str | None] = {}
  last, first = None, None
  for opcode, found, _ in pickletools.genops(f):
    kind, argument = opcode.name, cast(Any, found)
    if kind != "PROTO" and first is None:
      first = argument
    if kind in ("GLOBAL", "INST"):
      names.add(argument.replace(" ", "."))
    elif kind == "STACK_GLOBAL":
      names.add(".".join(strings))
    if kind == "MEMOIZE" or "PUT" in kind:
      memo[len(memo) if kind == "MEMOIZE" else argument] = last
      continue
    last = (
      memo.get(argument) if "GET" in kind else argument if "UNICODE" in kind or "STRING" in kind else None
    )
    strings = strings if last is None else [*strings[-1:], last]
  return names, first


def _is_zip(path: Path) -> bool:
  with open(path, "rb") as f:
    return f.read(2) == b"PK"


def _load(path: Path, names: list[str]) -> Any:
  torch = _import_torch(path)
  named = path.suffix != ".safetensors"  # torch.load goes by that name, so it gets a nameless file
  with (
    open(path, "rb") as f,
    warnings.catch_warnings(),
    torch.serialization.safe_globals([argparse.Namespace]),
  ):
    warnings.simplefilter("ignore")  # on pickle protocols; what cannot be read raises
    try:
      mapped = named and _is_zip(path)
      return torch.load(path if named else f, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError:  # torch's text advises to switch the check off: it is not repeated
      strange = [n for n in names if not ORDINARY.fullmatch(n)] or ["instructions that build no tensors"]
      listed = one_line(", ".join(strange[:3]))[:200]
      raise UserError(
        f"{path}: refused, its pickle would run more than tensors need ({listed})",
        f"take a .safetensors file, or save the weights alone {SAVE}",
      ) from None
    except Exception as e:  # RuntimeError, EOFError, AttributeError, ... by version
      if more := re.search(r"expected (\d+) more bytes", str(e)):
        raise incomplete(path, f"{more[1]} more") from None
      if isinstance(e, EOFError):
        raise incomplete(path, "whole tensors") from None
      said = str(e).strip().split("\n")[0]
      reason = one_line(f"{type(e).__name__}: {'' if 'weights_only' in said else said}")[:200]
      raise UserError(f"{path}: torch cannot read it ({reason})", f"damaged? {AGAIN}") from None


def _import_torch(path: Path):
  try:
    import torch
  except ImportError:
    raise UserError(
      f"{path}: reading a torch file needs torch, which is not installed",
      "pip install 'jaxkd[torch]', or convert the file to .safetensors where torch is",
    ) from None
  return torch


def _state_dict(path: Path, payload: Mapping) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
  tensors, notes = payload, []
  if candidates := [w for w in WRAPPERS if isinstance(payload.get(w), Mapping) and _tensors(payload[w])]:
    tensors = payload[candidates[0]]
    others = [repr(c) for c in candidates[1:]]
    notes.append(f"unwrapped '{candidates[0]}'" + (f" (also there: {', '.join(others)})" if others else ""))
    notes += _left_out([k for k in payload if k not in candidates])
  found = _tensors(tensors)
  notes += _left_out([k for k in tensors if k not in found])
  if not found:
    keys = one_line(", ".join(map(str, payload)))[:100] or "nothing"
    raise UserError(f"{path}: holds no tensors by name (but {keys})", f"save the weights {SAVE}")
  return {name: _to_numpy(path, name, tensor) for name, tensor in found.items()}, tuple(notes)


def _tensors(mapping: Mapping) -> dict[str, Any]:
  import torch

  return {k: v for k, v in mapping.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}


def _left_out(keys: list) -> Iterator[str]:
  if keys:
    yield f"left out {one_line(', '.join(map(str, keys[:8])))}" + (
      f" and {len(keys) - 8} more" if keys[8:] else ""
    )


def _to_numpy(path: Path, name: str, tensor) -> np.ndarray:
  """A view of the tensor's memory."""
  import torch

  tensor = tensor.detach()
  if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
    kind = "quantized" if tensor.is_quantized else "empty" if tensor.is_meta else "sparse"
    raise UserError(
      f"{path}: '{one_line(name)}' is a {kind} tensor", "save it as a plain one: tensor.to_dense()"
    )
  dtype = str(tensor.dtype).removeprefix("torch.")
  with contextlib.suppress(TypeError):  # numpy has the dtype
    return tensor.resolve_conj().resolve_neg().numpy()
  if not hasattr(ml_dtypes, dtype):
    raise UserError(f"{path}: '{one_line(name)}' is of dtype {dtype}", f"save it as float32; {AGAIN}")
  same_size = {1: torch.uint8, 2: torch.int16}[tensor.element_size()]
  return tensor.view(same_size).numpy().view(getattr(ml_dtypes, dtype))
