"""From `config.model` to a module: the complaints of `jaxkd.models` as user errors."""

from __future__ import annotations

from typing import Any

import flax.linen as nn

from jaxkd import models
from jaxkd.config_values import NAMES, shown, wanted
from jaxkd.errors import UserError


def create_model(options: dict[str, Any], *, where: str = "model") -> nn.Module:
  """`jaxkd.models.create(**options)`; `where` is the config section that the options are from.

  Raises:
    UserError: no such model or option, or a value of another type or that does not fit.
  """
  try:
    known = models.options(options["name"])
    for key, value in options.items():
      if key in known and not _fits(value, known[key]):
        raise UserError(
          f"config key '{where}.{key}': {shown(value)} is not {wanted(type(known[key]))}",
          f"its default is {shown(known[key])}",
        )
    return models.create(**options)
  except (ValueError, TypeError, OverflowError) as e:
    raise UserError(f"config.{where}: {e}", "see jaxkd.models.options(name) for what it takes") from e


def _fits(value: Any, default: Any) -> bool:
  """Whether `value` has the type of `default`; one number and several may stand for each other (one side, both)."""
  if type(default) not in NAMES:
    return True
  if isinstance(value, bool) or isinstance(default, bool):
    return isinstance(value, bool) and isinstance(default, bool)
  if isinstance(default, int | tuple):
    return isinstance(value, int | tuple | list)
  return isinstance(value, int | float) if isinstance(default, float) else isinstance(value, str)
