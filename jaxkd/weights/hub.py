"""Official weights by name: fetched once from the Hugging Face hub, kept in a cache, checked at every use.

A file is checked against three digests, each where it is to be had: the one in `SOURCES` (published by several
users of that revision), the hub's own (its LFS etag), and the one recorded at first use.
"""

from __future__ import annotations

import dataclasses
import datetime
import errno
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from jaxkd import files
from jaxkd.errors import CannotWrite, IntegrityFailure, UserError, did_you_mean, one_line
from jaxkd.weights.read import check_digest, sha256_file
from jaxkd.weights.sniff import weights_format

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
log = logging.getLogger("jaxkd")


@dataclasses.dataclass(frozen=True)
class Source:
  """Where one model's weights are published, and what they need.

  Attributes:
    repo, file: on the Hugging Face hub. revision: its commit; "" means the one that is current at first use.
    sha256: of the file at that revision, as others published it; "" where no published value is known to us.
    model, options: arguments of `jaxkd.models.create`. mean, std: of the images the model was trained on.
    input_size: side in pixels at which it is used as a teacher.
  """

  repo: str
  model: str
  options: dict[str, Any]
  revision: str = ""
  sha256: str = ""
  file: str = "model.safetensors"
  input_size: int = 224
  mean: tuple[float, float, float] = IMAGENET_MEAN
  std: tuple[float, float, float] = IMAGENET_STD

  def url(self, revision: str = "") -> str:
    return f"https://huggingface.co/{self.repo}/resolve/{revision or self.revision or 'main'}/{self.file}"


def _dinov2(name: str, repo: str, revision: str, sha256: str = "") -> Source:
  options = {"image_size": 518, "num_classes": 0, "interpolation": "official"}
  return Source(f"facebook/{repo}", name, options, revision, sha256)


def _deit(size: str, revision: str = "") -> Source:
  """timm's copies: facebook's own repositories hold pickles only."""
  options = {"image_size": 224, "patch_size": 16, "num_classes": 1000}
  return Source(f"timm/deit_{size}_distilled_patch16_224.fb_in1k", f"deit_{size}", options, revision)


def _convnextv2(size: str) -> Source:
  """Fine-tuned on ImageNet-1k. transformers, whose files these are, ends with epsilon 1e-12."""
  options = {"image_size": 224, "patch_size": 4, "num_classes": 1000, "norm_epsilon": 1e-12}
  return Source(f"facebook/convnextv2-{size}-1k-224", f"convnextv2_{size}", options)


SOURCES: dict[str, Source] = {
  source.model: source
  for source in (
    _dinov2(
      "dinov2_vits14",
      "dinov2-small",
      "ed25f3a31f01632728cabb09d1542f84ab7b0056",
      "ae1e99fcefd534ed978cdeb8326f08030c96e28b7a81ffcbc98a857c84d14be1",
    ),
    _dinov2(
      "dinov2_vitb14",
      "dinov2-base",
      "f9e44c814b77203eaa57a6bdbbd535f21ede1415",
      "d73036b56966966d07975d696bde331762f37297e2f095de8cea0040c3aa0841",
    ),
    _dinov2(
      "dinov2_vitl14",
      "dinov2-large",
      "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c",
      "399fba97a95f22c36834418bc69373364a99af3a1153da1c0fb31db567c92e23",
    ),
    _dinov2(
      "dinov2_vitg14",
      "dinov2-giant",
      "611a9d42f2335e0f921f1e313ad3c1b7178d206d",
      "917d3c470db999d32a312f8542149be91c7cbac61ee8fb4b67ae3d82b79ce21f",
    ),
    _dinov2("dinov2_vits14_reg", "dinov2-with-registers-small", "0d9846e56b43a21fa46d7f3f5070f0506a5795a9"),
    _dinov2(
      "dinov2_vitb14_reg",
      "dinov2-with-registers-base",
      "a1d738ccfa7ae170945f210395d99dde8adb1805",
      "7a6f7b3b9fa4b8732e707476a03cd6cdce210048582f21aafb7991c17d98e362",
    ),
    _dinov2("dinov2_vitl14_reg", "dinov2-with-registers-large", "e4c89a4e05589de9b3e188688a303d0f3c04d0f3"),
    _dinov2("dinov2_vitg14_reg", "dinov2-with-registers-giant", "8d0d49f77fb8b5dd78842496ff14afe7dd4d85cb"),
    _deit("tiny", "4decab5416aad52836ffd48b5b7e5cfb78641d8d"),
    _deit("small", "4150668d0839f2da591b2fc5659764c796148243"),
    _deit("base"),
    *(_convnextv2(size) for size in ("atto", "femto", "pico", "nano", "tiny", "base")),
  )
}


def source(name: str) -> Source:
  """The entry of `SOURCES`. Raises UserError for an unknown name, with the nearest one."""
  if name not in SOURCES:
    raise UserError(f"no official weights named '{one_line(name)}'", did_you_mean(name, SOURCES))
  return SOURCES[name]


def cache_folder() -> Path:
  """`$JAXKD_CACHE/hub`, or `~/.cache/jaxkd/hub`."""
  return Path(os.environ.get("JAXKD_CACHE") or Path.home() / ".cache" / "jaxkd") / "hub"


def fetch(name: str, *, cache: Path | None = None) -> Path:
  """The weights file of `name`, downloaded unless it is in `<cache>/<name>/` already; a file put there by hand will do.

  Beside it lies `record.json`: digest, revision, address and date of the first use. From then on the same revision
  and the same bytes are asked for.

  Args:
    name: a key of `SOURCES`. cache: instead of `cache_folder()`.

  Raises:
    UserError: unknown name, or it cannot be downloaded; says which file to place where.
    IntegrityFailure: not the bytes that were published, or those of the first use. CannotWrite: the cache is full.
  """
  wanted, folder = source(name), (cache or cache_folder()) / name
  path, known = folder / wanted.file, folder / "record.json"
  record = _read_record(known)
  if not path.is_file():
    return _download(wanted, path, known, record)
  weights_format(path)  # a web page saved by hand is told before its digest is recorded
  found = sha256_file(path)
  _check(found, wanted, record, path)
  if not record:
    _record(known, wanted, found, origin="placed by hand", revision="", published="")
  return path


def _read_record(known: Path) -> dict[str, Any]:
  try:
    return files.read_json(known) if known.is_file() else {}
  except ValueError as e:
    raise IntegrityFailure(
      f"{known}: unreadable", f"remove the folder {known.parent} to fetch it anew"
    ) from e


def _check(found: str, wanted: Source, record: dict[str, Any], path: Path) -> None:
  for pinned in filter(None, (record.get("sha256", ""), wanted.sha256)):
    try:
      check_digest(found, pinned, path)
    except IntegrityFailure as e:
      hint = f"remove the folder {path.parent} to fetch {wanted.url(record.get('revision', ''))} anew"
      raise IntegrityFailure(e.message, hint) from None


def _record(known: Path, wanted: Source, sha256: str, *, origin: str, revision: str, published: str) -> None:
  facts = {
    "repo": wanted.repo,
    "file": wanted.file,
    "revision": revision,
    "url": wanted.url(revision),
    "sha256": sha256,
    "published_sha256": published,
    "origin": origin,
    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
  }
  files.write_json(known, facts)
  log.info("%s: sha256 %s recorded in %s", wanted.repo, sha256, known)


def _download(wanted: Source, path: Path, known: Path, record: dict[str, Any]) -> Path:
  """Fetches into a folder beside, checks, records, and only then moves the file to its place."""
  got, commit, published = _from_hub(wanted, path, record.get("revision") or wanted.revision)
  found = sha256_file(got)
  try:
    _check(found, wanted, {"sha256": published}, path)
    _check(found, wanted, record, path)
  except IntegrityFailure:
    shutil.rmtree(
      path.parent / ".download", ignore_errors=True
    )  # the hub's client would take it for complete
    raise
  try:
    if not record:
      _record(known, wanted, found, origin="download", revision=commit, published=published)
    got.replace(path)
  except OSError as e:
    raise CannotWrite(f"cannot write {path}: {e.strerror}", "free space or set JAXKD_CACHE") from e
  shutil.rmtree(path.parent / ".download", ignore_errors=True)
  return path


def _from_hub(wanted: Source, path: Path, revision: str) -> tuple[Path, str, str]:
  """The downloaded file, its commit, and the sha256 the hub publishes for it ("" if it does not)."""
  by_hand = f"place {wanted.url(revision)} at {path}, or give a file: --config.teachers.NAME.weights=PATH"
  try:
    import huggingface_hub as hub
  except ImportError:
    message = f"downloading {wanted.repo} needs huggingface-hub, which is not installed"
    raise UserError(message, f"pip install 'jaxkd[hub]'; or {by_hand}") from None
  try:
    about = hub.get_hf_file_metadata(hub.hf_hub_url(wanted.repo, wanted.file, revision=revision or None))
    commit = about.commit_hash or revision
    folder = path.parent / ".download"
    folder.mkdir(parents=True, exist_ok=True)
    got = hub.hf_hub_download(wanted.repo, wanted.file, revision=commit or None, local_dir=folder)
  except (
    Exception
  ) as e:  # the hub's, httpx's and the system's own kinds: offline, no such file, no access, ...
    if isinstance(e, OSError) and e.errno in CANNOT_WRITE:
      raise CannotWrite(f"cannot write {path}: {e.strerror}", "free space or set JAXKD_CACHE") from e
    reason = one_line(str(e).strip().split("\n")[0])[:200] or type(e).__name__
    raise UserError(f"cannot download {wanted.file} of {wanted.repo}: {reason}", by_hand) from None
  digest = about.etag or ""
  return Path(got), commit, digest if re.fullmatch("[0-9a-f]{64}", digest) else ""
