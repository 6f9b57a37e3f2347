"""Files by name out of a folder or a tar archive, read into memory: nothing is ever unpacked to disk."""

from __future__ import annotations

import tarfile
from pathlib import Path, PurePosixPath, PureWindowsPath

from jaxkd.data.source import TRUNCATED, incomplete
from jaxkd.errors import UserError

MEMBER_LIMIT = 2**30  # bytes; the largest member of the known archives has 155 MB


def read_members(path: Path, wanted: set[str]) -> dict[str, bytes]:
  """The bytes of those files of `path`, a folder or a (packed) tar archive, whose last name is in `wanted`.

  Raises:
    UserError: the archive is truncated, or one of its members, wanted or not, is a link, a device, or has an
      absolute name or `..` in it; a name is there twice, or larger than 1 GiB.
  """
  if path.is_dir():
    return {name: (path / name).read_bytes() for name in sorted(wanted) if (path / name).is_file()}
  out: dict[str, bytes] = {}
  try:
    with tarfile.open(path, "r:*") as tar:
      for member in tar:
        _check(member, path)
        name = PurePosixPath(member.name).name
        if member.isfile() and name in wanted:
          if name in out:
            raise UserError(f"{path}: two members are called {name}", "keep the one that belongs there")
          out[name] = _read(tar, member, path)
  except (tarfile.TarError, *TRUNCATED) as e:
    raise incomplete(path, "a whole tar archive", f"{path.stat().st_size:,} bytes ({e})") from e
  return out


def _check(member: tarfile.TarInfo, path: Path) -> None:
  """Archives of data sets have no use for these, so the archive is refused as a whole."""
  posix, windows = PurePosixPath(member.name), PureWindowsPath(member.name)
  if posix.is_absolute() or windows.drive or windows.root:
    kind = "an absolute name"
  elif ".." in posix.parts or ".." in windows.parts:
    kind = "'..' in its name"
  elif not (member.isfile() or member.isdir()):
    kind = "no plain file but a link or a device"
  else:
    return
  raise UserError(
    f"{path}: member {member.name!r} is refused ({kind}); nothing was read from the archive",
    "take the archive from its official source",
  )


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bytes:
  if member.size > MEMBER_LIMIT:
    raise UserError(
      f"{path}: member {member.name} has {member.size:,} bytes", f"at most {MEMBER_LIMIT:,} are read"
    )
  file = tar.extractfile(member)
  data = file.read() if file else b""
  if len(data) != member.size:
    raise incomplete(f"{path}: member {member.name}", f"{member.size:,} bytes", f"{len(data):,}")
  return data
