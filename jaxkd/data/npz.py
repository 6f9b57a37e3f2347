"""Arrays from one `.npz` file, without pickles.

| key | what |
|---|---|
| `images` | uint8 [n h w], [n h w 1] or [n h w 3] |
| `labels` | integers [n], from 0 |
| `test_images`, `test_labels` | optional, of the same shape: the sealed test split; else one is cut by `data.test` |
| `class_names` | optional, text [c]; else the numbers from 0 to the largest training label |
"""

from __future__ import annotations

import functools
import zipfile

import numpy as np

from jaxkd.data.source import TRUNCATED, Arrays, Source, incomplete, inside, missing
from jaxkd.errors import UserError

KEYS = ("images", "labels", "test_images", "test_labels", "class_names")


def open_npz(options) -> Source:
  """The file `data.root`.

  Raises:
    MissingFiles: it is not there.
    UserError: it is truncated, has objects in it, lacks a key, or has values of another type.
  """
  path = inside(options.root)
  if not options.root or not path.is_file():
    raise missing("npz", options.root, ["one .npz file, named by data.root"], known_url=False)
  try:
    with open(path, "rb") as f:
      data = np.load(f, allow_pickle=False)
      if not isinstance(data, np.lib.npyio.NpzFile):
        raise UserError(f"{path} is not an .npz file", "write it with np.savez(path, images=..., labels=...)")
      with data:
        found = {key: data[key] for key in KEYS if key in data}
  except (zipfile.BadZipFile, *TRUNCATED) as e:
    raise incomplete(path, "a whole .npz file", f"{path.stat().st_size:,} bytes ({e})") from e
  except (ValueError, NotImplementedError) as e:  # numpy's word for a member that is a pickle, or no array
    raise UserError(
      f"{path} is refused: {e}; nothing of it was run", "save plain arrays, not objects or lists"
    ) from e
  return _source(found, str(path))


def _source(found: dict[str, np.ndarray], where: str) -> Source:
  for a, b in (("images", "labels"), ("test_images", "test_labels")):
    if (a in found) != (b in found) or (a == "images" and a not in found):
      raise UserError(
        f"{where} holds {', '.join(found) or 'none of the keys'}",
        "needed: images, labels; optional: test_images with test_labels, class_names",
      )
    if a in found:
      _check(found[a], found[b], f"{where}: {a}")
  if "test_images" in found and found["test_images"].shape[1:] != found["images"].shape[1:]:
    raise UserError(
      f"{where}: images are {found['images'].shape[1:]}, test_images {found['test_images'].shape[1:]}",
      "give both one shape",
    )

  names = found.get("class_names", np.arange(int(found["labels"].max(initial=0)) + 1))
  if names.ndim != 1:
    raise UserError(f"{where}: class_names has {names.ndim} dimensions", "save one text per class, [c]")

  def read(prefix: str) -> Arrays:
    return found[f"{prefix}images"], found[f"{prefix}labels"]

  test = functools.partial(read, "test_") if "test_images" in found else None
  return Source(tuple(str(n) for n in names), functools.partial(read, ""), test)


def _check(images: np.ndarray, labels: np.ndarray, where: str) -> None:
  if images.dtype != np.uint8 or images.ndim not in (3, 4):
    raise UserError(
      f"{where} is {images.dtype} with {images.ndim} dimensions", "save uint8 [n h w] or [n h w c] in 0..255"
    )
  if labels.dtype.kind not in "iu" or labels.ndim != 1:
    raise UserError(
      f"{where}: labels are {labels.dtype} with {labels.ndim} dimensions", "save integers [n] from 0"
    )
