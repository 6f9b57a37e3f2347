"""Small files, written so that nobody ever reads half of one."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

from jaxkd import distributed
from jaxkd.errors import CannotWrite


def read_json(path: Path) -> Any:
  """The parsed file."""
  return json.loads(path.read_text())


def write_json(path: Path, value: Any) -> None:
  """Writes a temporary file, syncs, renames: a reader sees the old or the new content, never a part.

  Of several processes that run together only the first writes.

  Raises:
    CannotWrite: the disk is full or the folder takes no files.
  """
  write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
  """See `write_json`."""
  write_bytes(path, text.encode())


def write_npz(path: Path, arrays: dict[str, Any]) -> None:
  """A `.npz` of `arrays`; see `write_json`."""
  import numpy as np

  content = io.BytesIO()
  np.savez(content, **arrays)
  write_bytes(path, content.getvalue())


def write_bytes(path: Path, content: bytes) -> None:
  """See `write_json`."""
  if not distributed.is_first():
    return
  temporary = path.with_name(f".{path.name}.tmp")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary, "wb") as f:
      f.write(content)
      f.flush()
      os.fsync(f.fileno())
    temporary.rename(path)
  except OSError as e:
    raise CannotWrite(f"cannot write {path}: {e.strerror}", "free space or choose another --workdir") from e
