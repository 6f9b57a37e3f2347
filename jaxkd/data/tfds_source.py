"""Any tensorflow-datasets name as `tfds:NAME`, read by random access and without TensorFlow.

tensorflow-datasets comes with the `data` extra and is imported when asked for. `data.root` is its `data_dir`. Only
the formats with random access (array_record, parquet) can be read without TensorFlow.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from jaxkd.data import pixels
from jaxkd.data.source import DOWNLOAD_FLAG, Arrays, Source
from jaxkd.errors import UserError, one_line

FORMAT = "array_record"


def open_tfds(options) -> Source:
  """The split `train`, and as test split `test`, else `validation`; else one is cut by `data.test`.

  Raises:
    UserError: the package or the data set is absent, not prepared, prepared for TensorFlow only, or has no
      `image` and `label`.
  """
  builder = _builder(options)
  features = dict(builder.info.features or {})
  if "image" not in features or not hasattr(features.get("label"), "num_classes"):
    raise UserError(
      f"{options.name} has the features {', '.join(features) or '(none)'}",
      "needed: an image and a class label",
    )
  label = features["label"]
  names = tuple(one_line(n) for n in label.names or map(str, range(label.num_classes)))
  splits = tuple(builder.info.splits) or ("train", "test")  # unknown until prepared
  test = next((s for s in ("test", "validation") if s in splits), None)

  def read(split: str) -> Arrays:
    return _read(_data_source(builder, split, options), options)

  return Source(names, functools.partial(read, "train"), functools.partial(read, test) if test else None)


def _builder(options) -> Any:
  try:
    import tensorflow_datasets as tfds
  except ImportError as e:
    raise UserError(
      f"data set '{options.name}' needs tensorflow-datasets ({e})", "pip install 'jaxkd[data]'"
    ) from e
  name = options.name.removeprefix("tfds:")
  try:
    # A prepared folder says its own format; only an empty one is told.
    builder = tfds.builder(name, data_dir=options.root or None)
    if options.download and not builder.info.splits:
      builder = tfds.builder(name, data_dir=options.root or None, file_format=FORMAT)
      builder.download_and_prepare()
    return builder
  except (ValueError, AssertionError, KeyError) as e:  # unknown name, unknown version or config
    raise UserError(
      f"tensorflow-datasets: {one_line(str(e).splitlines()[0])}",
      "see tensorflow.org/datasets/catalog for names, written tfds:NAME or tfds:NAME/CONFIG:VERSION",
    ) from e
  except ImportError as e:
    raise _needs_tensorflow(options, "its definition or preparation", e) from e


def _data_source(builder: Any, split: str, options) -> Any:
  try:
    return builder.as_data_source(split=split)
  except NotImplementedError as e:
    if builder.info.splits:
      raise _needs_tensorflow(options, f"its {builder.info.file_format.value} files", e) from e
    raise _not_prepared(options) from e
  except (KeyError, ValueError) as e:
    raise _not_prepared(options) from e
  except ImportError as e:
    raise UserError(f"{options.name}: {e}", "pip install 'jaxkd[data]'") from e


def _not_prepared(options) -> UserError:
  where = options.root or "the default folder of tensorflow-datasets"
  return UserError(
    f"{options.name} is not prepared in {where}",
    f"prepare it there by {DOWNLOAD_FLAG}, or by tfds.builder({options.name[5:]!r}, data_dir=..., "
    f"file_format={FORMAT!r}).download_and_prepare()",
  )


def _needs_tensorflow(options, what: str, error: Exception) -> UserError:
  return UserError(
    f"{options.name}: without TensorFlow {what} cannot be used ({one_line(str(error).splitlines()[0])})",
    f"once, where TensorFlow is installed: tfds.builder({options.name[5:]!r}, data_dir=..., "
    f"file_format={FORMAT!r}).download_and_prepare(); afterwards data.root=data_dir needs none",
  )


def _read(records: Any, options) -> Arrays:
  """images uint8 [n h w c] and labels of a random-access source; brought to one size one by one."""
  images, labels = [], []
  for i in range(len(records)):
    record = records[i]
    image = np.asarray(record["image"])
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
      raise UserError(
        f"{options.name}: image {i} is {image.dtype} of shape {image.shape}", "uint8 [h w c] is known"
      )
    image = pixels.to_channels(image.reshape(*image.shape[:2], -1), options.channels)
    images.append(pixels.fit(image, options.image_size) if options.image_size else image)
    labels.append(int(record["label"]))
    if images[-1].shape != images[0].shape:
      raise UserError(
        f"{options.name}: image {i} is {images[-1].shape}, the first one {images[0].shape}",
        "set --config.data.image_size to bring all to one size",
      )
  return np.stack(images), np.asarray(labels, np.int64)
