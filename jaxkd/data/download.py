"""Published archives, fetched only when asked for: resumed where it stopped, checked, then renamed into place.

The digests are those the data sets' own pages and torchvision publish. They are MD5: they find damage and
mix-ups, not a forger; `data.sha256` pins files against that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import http.client
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from jaxkd.errors import CannotWrite, UserError

log = logging.getLogger("jaxkd")

CHUNK = 2**20
TIMEOUT = 60  # seconds without a byte


@dataclasses.dataclass(frozen=True)
class Remote:
  """One file: where it is, and `algorithm:hex` of what it must be."""

  url: str
  digest: str

  @property
  def name(self) -> str:
    return self.url.rsplit("/", 1)[-1]


def _idx(base: str, *md5: str) -> tuple[Remote, ...]:
  names = [f"{p}-{k}-ubyte.gz" for p in ("train", "t10k") for k in ("images-idx3", "labels-idx1")]
  return tuple(Remote(base + name, f"md5:{digest}") for name, digest in zip(names, md5, strict=True))


TABLE: dict[str, tuple[Remote, ...]] = {
  "mnist": _idx(
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "d53e105ee54ea40749a09fcbcd1e9432",
    "9fb629c4189551a2d022fa330f9573f3",
    "ec29112dd5afa0611ce80d1b7f02629c",
  ),
  "fashion_mnist": _idx(
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "25c81989df183df01b3e8a0aad5dffbe",
    "bef4ecab320f06d8554ea6380940ec79",
    "bb300cfdad3c16e7a12a480ee83cd310",
  ),
  "kmnist": _idx(
    "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
    "bdb82020997e1d708af4cf47b453dcf7",
    "e144d726b3acfaa3e44228e80efcd344",
    "5c965bf0a639b31b8f53240b1b52f4d7",
    "7320c461ea6c1c855c0b718fb2a4b134",
  ),
  "cifar10": (
    Remote("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "md5:c58f30108f718f92721af3b95e74349a"),
  ),
  "cifar100": (
    Remote(
      "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", "md5:eb9058c3a382ffc7106e4002c42a8d85"
    ),
  ),
  "svhn": (
    Remote("http://ufldl.stanford.edu/housenumbers/train_32x32.mat", "md5:e26dedcc434d2e4c54c9b2d4a06d8373"),
    Remote("http://ufldl.stanford.edu/housenumbers/test_32x32.mat", "md5:eb5a983be6a315427106f1b164d9cef3"),
  ),
}


def fetch(name: str, root: Path, *, table: dict[str, tuple[Remote, ...]] = TABLE) -> None:
  """Brings those files of data set `name` into `root` that are not there yet.

  Raises:
    UserError: no address is known, the server fails, or the bytes are not the published ones.
    CannotWrite: the folder takes no files.
  """
  if name not in table:
    raise UserError(f"no address is known for data set '{name}'", f"known: {', '.join(sorted(table))}")
  for remote in table[name]:
    download(remote, root / remote.name)


def download(remote: Remote, target: Path) -> None:
  """One file. A cut transfer leaves `NAME.part`, from which the next call goes on; a wrong one leaves nothing.

  Raises:
    UserError: the server fails, or the bytes are not the published ones.
    CannotWrite: the folder takes no files.
  """
  part = target.with_name(target.name + ".part")
  if target.exists():
    return
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(part) as f:
      if target.exists():
        part.unlink()
        return
      _transfer(remote, f)
      f.flush()
      os.fsync(f.fileno())
      _verify(remote, part)
      part.rename(target)
  except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as e:
    raise UserError(
      f"cannot download {remote.url}: {getattr(e, 'reason', None) or e}",
      f"the same command goes on where it stopped; or put the file into {target.parent} yourself",
    ) from e
  except OSError as e:
    raise CannotWrite(f"cannot write {part}: {e.strerror}", "free space or choose another data.root") from e
  log.info("downloaded %s to %s", remote.url, target)


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[IO[bytes]]:
  """`part`, opened to append, for this process alone: others that fetch the same file wait here."""
  while True:
    with open(part, "ab") as f:
      fcntl.flock(f, fcntl.LOCK_EX)
      if _is_at(f, part):
        yield f
        return


def _is_at(f: IO[bytes], part: Path) -> bool:
  """Whether `f` still lies at `part`: whoever had it before may have renamed or removed it while we waited."""
  try:
    return os.path.samestat(os.fstat(f.fileno()), part.stat())
  except FileNotFoundError:
    return False


def _transfer(remote: Remote, f: IO[bytes]) -> None:
  """Appends what is missing of `remote` to `f`."""
  have = os.fstat(f.fileno()).st_size
  request = urllib.request.Request(remote.url, headers={"Range": f"bytes={have}-"} if have else {})
  try:
    response = urllib.request.urlopen(request, timeout=TIMEOUT)
  except urllib.error.HTTPError as e:
    if e.code == 416 and have:  # nothing follows what we have: whole or wrong, which the digest decides
      return
    raise
  with response:
    if have and response.status != 206:  # the server starts anew
      f.truncate(0)
      have = 0
    log.info("downloading %s%s", remote.url, f", from byte {have:,}" if have else "")
    length, got = response.headers.get("Content-Length"), 0
    while chunk := response.read(CHUNK):
      f.write(chunk)
      got += len(chunk)
  if length is not None and got < int(length):
    raise ConnectionError(f"cut after {have + got:,} of {have + int(length):,} bytes")


def _verify(remote: Remote, part: Path) -> None:
  algorithm, _, expected = remote.digest.partition(":")
  found = digest_of(part, algorithm)
  if found != expected:
    size = part.stat().st_size
    part.unlink()
    raise UserError(
      f"{remote.url}: {algorithm} expected {expected}, found {found} ({size:,} bytes); it was removed",
      "try again, or take the file from another official place",
    )


def digest_of(path: Path, algorithm: str = "sha256") -> str:
  """Hex digest of a file."""
  with open(path, "rb") as f:
    return hashlib.file_digest(f, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
