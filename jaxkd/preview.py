"""Some training images as student and teachers see them, with what was drawn for each in words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxkd import data, teachers
from jaxkd.data.augment import Drawn, describe, draw_views, make_views
from jaxkd.data.sources import Dataset
from jaxkd.errors import JaxkdError
from jaxkd.report.text import plural, setting
from jaxkd.schema import DATA
from jaxkd.teachers import Teacher

LOCALS = 4  # columns of local crops at the most


def preview(config: ConfigDict, count: int = 8) -> dict[str, Any]:
  """`count` training images, evenly over the classes, augmented as one batch of their own under `config.seed`.

  Returns:
    For `report.preview_figure`: `title`, `subtitle`, and `columns` of {title, images [n h w c] in [0, 1], notes [n]}.

  Raises:
    UserError: no such data, or fewer images than `count`. Teachers whose weights are not at hand are no error.
  """
  dataset = data.load(config.data)
  sample = data.balanced_sample(dataset.train, count, seed=config.seed)
  augment, shape = config.data.augment.to_dict(), config.data.views.to_dict()

  @jax.jit
  def see(images, key):
    drawn = draw_views(key, images.shape, augment=augment, views=shape)
    return make_views(images, key, mean=dataset.mean, augment=augment, views=shape), drawn

  seen, (whole, small) = jax.device_get(see(jnp.asarray(sample.images), jax.random.key(config.seed)))
  names = [f"row {i}: {dataset.class_names[label]}" for i, label in enumerate(sample.labels, start=1)]
  columns = [_column("original", seen["clean"][:count], names)]
  columns += _views(seen, whole, shape["global_count"], sample.images.shape[1:3])
  columns += [
    _teacher(name, options, config, dataset, seen, count) for name, options in _all_teachers(config)
  ]
  columns += _locals(seen, small, min(shape["local_count"], LOCALS), count, sample.images.shape[1:3])
  return {
    "title": f"{plural(count, 'training image')} of {dataset.name}, seed {config.seed}",
    "subtitle": "; ".join(filter(None, (_changed("augment", augment), _changed("views", shape)))),
    "columns": columns,
  }


def _column(title: str, images, notes: list[str]) -> dict[str, Any]:
  return {"title": title, "images": np.asarray(images), "notes": notes}


def _views(seen: dict[str, Any], drawn: Drawn, views: int, size: tuple[int, int]) -> list[dict[str, Any]]:
  """Student and aligned view, once for each view of full size."""
  geometry, colors = describe(drawn, size)
  n = len(geometry) // views
  for i in range(len(colors) if "mix" in seen else 0):
    partner, weight = (x[i] for x in seen["mix"])
    words = f"mixed: {100 * weight:.0f} % this, {100 - 100 * weight:.0f} % row {partner % n + 1}"
    colors[i] = ", ".join(filter(None, (colors[i], words)))
  columns = []
  for v in range(views):
    part, number = slice(v * n, (v + 1) * n), f" {v + 1}" if views > 1 else ""
    columns.append(_column(f"student{number}", seen["student"][part], colors[part]))
    columns.append(_column(f"aligned{number}", seen["aligned"][part], geometry[part]))
  return columns


def _locals(seen, drawn: Drawn | None, shown: int, n: int, size: tuple[int, int]) -> list[dict[str, Any]]:
  if drawn is None:
    return []
  notes = [", ".join(filter(None, words)) for words in zip(*describe(drawn, size), strict=True)]
  parts = [slice(i * n, (i + 1) * n) for i in range(shown)]
  return [_column(f"local {i + 1}", seen["local"][p], notes[p]) for i, p in enumerate(parts)]


def _all_teachers(config: ConfigDict) -> list[tuple[str, ConfigDict]]:
  """The teachers of the run, or those of a study's arms, without repetitions."""
  arms = config.study.arms.values() if "study" in config else [config]
  found = {
    (name, options.view, options.size): options for arm in arms for name, options in arm.teachers.items()
  }
  return [(name, options) for (name, _, _), options in found.items()]


def _teacher(name: str, options, config: ConfigDict, dataset: Dataset, seen, count: int) -> dict[str, Any]:
  """The teacher's view in its own size; where its weights are not at hand, in `size`: a picture fetches nothing."""
  teacher = Teacher(name, nn.Module(), None, options.view, dataset.mean, dataset.std, "", options.size)
  if not options.weights.startswith("hub:"):
    alone = SimpleNamespace(teachers={name: options}, terms=config.terms, precision=config.precision)
    try:
      teacher = teachers.load_teachers(alone, nn.Module(), dataset)[name]
    except JaxkdError:
      name += " (no weights)"
  x = np.asarray(teacher.prepare(seen[teacher.view][:count]))
  shown = np.clip(x * np.array(teacher.std) + np.array(teacher.mean), 0, 1)
  return _column(f"{name}: {teacher.view}", shown, [f"{x.shape[1]} x {x.shape[2]}"] + [""] * (count - 1))


def _changed(section: str, chosen: dict[str, Any]) -> str:
  """The options that differ from the schema's defaults."""
  plain = {name: field.default for name, field in DATA[section].items()}  # type: ignore[attr-defined]
  changed = {k: v for k, v in chosen.items() if v != plain[k]}
  return f"{section}: {setting(changed)}" if changed else ""
