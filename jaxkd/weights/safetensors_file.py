"""The safetensors format (github.com/huggingface/safetensors): JSON header, then the arrays' bytes; no torch.

Reading maps the file instead of copying it, and covers the dtypes numpy lacks (bfloat16, float8) by ml_dtypes.
Writing is our own: the library orders metadata at random, and the same weights should give the same file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxkd.errors import CannotWrite, UserError, one_line
from jaxkd.weights.sniff import AGAIN, incomplete

DTYPES = {
  "BOOL": np.dtype(np.bool_),
  "U8": np.dtype(np.uint8),
  "I8": np.dtype(np.int8),
  "U16": np.dtype(np.uint16),
  "I16": np.dtype(np.int16),
  "U32": np.dtype(np.uint32),
  "I32": np.dtype(np.int32),
  "U64": np.dtype(np.uint64),
  "I64": np.dtype(np.int64),
  "F16": np.dtype(np.float16),
  "F32": np.dtype(np.float32),
  "F64": np.dtype(np.float64),
  "C64": np.dtype(np.complex64),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
  "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
  "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
  "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
  "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}


def load_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """The arrays and the metadata of one file. The arrays are read-only views of the mapped file.

  Raises:
    UserError: the file is incomplete or damaged, or holds a dtype that numpy cannot represent.
  """
  header, start = _header(path)
  try:
    with safe_open(path, framework="np") as f:  # checks that the arrays cover the file exactly
      metadata = f.metadata() or {}
  except SafetensorError as e:
    reason = one_line(str(e)).removeprefix("Error while deserializing header: ")
    raise UserError(f"{path}: file is incomplete or damaged: {reason}", AGAIN) from e
  data = np.asarray(np.memmap(path, np.uint8, mode="r"))
  arrays = {}
  for name, entry in header.items():
    if entry["dtype"] not in DTYPES:
      known = ", ".join(DTYPES)
      raise UserError(f"{path}: array '{one_line(name)}' is of dtype {entry['dtype']}", f"known: {known}")
    begin, end = (start + offset for offset in entry["data_offsets"])
    arrays[name] = data[begin:end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
  return arrays, metadata


def _header(path: Path) -> tuple[dict[str, dict], int]:
  """The array entries of the header, and where the data begin; complains of a file shorter than it says."""
  size = path.stat().st_size
  with open(path, "rb") as f:
    start = 8 + int.from_bytes(f.read(8), "little")
    if start > size:
      raise incomplete(path, f"at least {start:,}, which its header alone takes")
    raw = f.read(start - 8)
  try:
    header = json.loads(raw)
    header.pop("__metadata__", None)
    end = start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
  except (ValueError, TypeError, KeyError, IndexError, AttributeError) as e:
    raise UserError(f"{path}: file is incomplete or damaged: its header is not JSON of arrays", AGAIN) from e
  if end > size:
    raise incomplete(path, f"{end:,}")
  return header, start


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
  """Writes a temporary file, syncs, renames. Equal arrays and metadata give equal bytes.

  Arrays are made contiguous one at a time. `metadata` gets `format: pt`, which torch readers ask for.

  Raises:
    UserError: an array of a dtype the format does not know. CannotWrite: the disk is full or read-only.
  """
  chosen = {name: np.asarray(a) for name, a in arrays.items()}
  for name, array in chosen.items():
    if array.dtype.newbyteorder("=") not in CODES:
      raise UserError(f"array '{name}' is of dtype {array.dtype}", f"safetensors holds {', '.join(DTYPES)}")
  names = sorted(
    chosen, key=lambda name: (-chosen[name].itemsize, name)
  )  # large items first: all are aligned
  header = _encode(names, chosen, {**metadata, "format": "pt"})
  temporary = path.with_name(f".{path.name}.tmp")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary, "wb") as f:
      f.write(header)
      for name in names:
        f.write(_bytes(chosen[name]))
      f.flush()
      os.fsync(f.fileno())
    temporary.rename(path)
  except OSError as e:
    temporary.unlink(missing_ok=True)
    need = len(header) + sum(a.nbytes for a in chosen.values())
    raise CannotWrite(
      f"cannot write {path} ({need:,} bytes): {e.strerror}", "free space or choose another place"
    ) from e


def _encode(names: list[str], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
  header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
  at = 0
  for name in names:
    a = arrays[name]
    code = CODES[a.dtype.newbyteorder("=")]
    header[name] = {"dtype": code, "shape": list(a.shape), "data_offsets": [at, at + a.nbytes]}
    at += a.nbytes
  raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
  raw += b" " * (-len(raw) % 8)
  return len(raw).to_bytes(8, "little") + raw


def _bytes(array: np.ndarray) -> memoryview:
  """The array's bytes, row-major and little-endian."""
  flat = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C").reshape(-1)
  return flat.view(np.uint8).data
