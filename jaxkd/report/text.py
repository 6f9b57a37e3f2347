"""Words and numbers as the report prints them: cleaned names, rounded values, intervals, sentences."""

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard

MISSING = "–"
MINUS = "−"


def clean(value: Any) -> str:
  """Text without control, format or unpaired surrogate characters; every run of white space becomes
  one space.
  """
  spaced = re.sub(r"\s+", " ", str(value))
  return "".join(c for c in spaced if unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Co", "Cn"}).strip()


def cleaned(tree: Any) -> Any:
  """A copy of plain JSON data with every string, and every key, passed through `clean`; tuples become
  lists.
  """
  if isinstance(tree, dict):
    return {clean(k): cleaned(v) for k, v in tree.items()}
  if isinstance(tree, (list, tuple)):
    return [cleaned(v) for v in tree]
  return clean(tree) if isinstance(tree, str) else tree


def finite(value: Any) -> TypeGuard[float]:
  """Whether the value is a number that can be drawn."""
  return isinstance(value, (int, float)) and math.isfinite(value)


def number(value: Any, digits: int | None = None, *, sign: bool = False) -> str:
  """The value with `digits` decimals and separated thousands; a dash if it is not finite.

  digits None: four significant digits, tiny values in powers of ten.
  """
  if not finite(value):
    return MISSING
  if digits is None and 0 < abs(value) < 1e-4:
    return f"{value:.3g}".replace("e-0", "e-").replace("-", MINUS)
  if digits is None:
    digits = 0 if isinstance(value, int) or not value else max(0, 3 - math.floor(math.log10(abs(value))))
  value = round(value, digits) + 0  # adding 0 turns -0.0 into 0.0
  return f"{value:{'+' if sign and value else ''},.{digits}f}".replace("-", MINUS)


def error_digits(error: Any) -> int | None:
  """The decimals that show an uncertainty with two significant digits; None if it is 0 or missing."""
  return max(0, 1 - math.floor(math.log10(abs(error)))) if finite(error) and error else None


def interval(low: Any, high: Any, digits: int | None = None, *, sign: bool = False) -> str:
  """`[low, high]` with equal rounding; a dash if either end is missing."""
  if not (finite(low) and finite(high)):
    return MISSING
  return f"[{number(low, digits, sign=sign)}, {number(high, digits, sign=sign)}]"


def probability(p: Any) -> str:
  """A p value: three decimals, `< 0.001` below that."""
  return MISSING if not finite(p) else ("< 0.001" if p < 0.001 else f"{p:.3f}")


def percent(level: Any) -> str:
  """A confidence level as a percentage with no trailing zeros: 0.95 -> `95 %`, 0.9833 -> `98.33 %`."""
  return MISSING if not finite(level) else f"{100 * level:.2f}".rstrip("0").rstrip(".") + " %"


def listing(words: Iterable[str]) -> str:
  """`a`, `a and b`, `a, b and c`."""
  items = list(words)
  return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else "nothing"


def plural(count: int, word: str) -> str:
  """`1 seed`, `3 seeds`."""
  return f"{number(count)} {word}{'' if count == 1 else 's'}"


def setting(value: Any) -> str:
  """A configuration value on one line."""
  if isinstance(value, dict):
    return ", ".join(f"{k} {setting(v)}" for k, v in value.items()) or "none"
  if isinstance(value, (list, tuple)):
    return ", ".join(setting(v) for v in value) or "none"
  if isinstance(value, bool) or value is None:
    return {True: "yes", False: "no", None: "none"}[value]
  return f"{value:g}" if isinstance(value, float) else str(value) or "none"


def slugs(names: Sequence[str], *, limit: int = 48) -> list[str]:
  """File-name parts for the names, in order: letters, digits, dot, dash and underscore only, and all
  different.
  """
  result: list[str] = []
  taken: set[str] = set()
  for name in names:
    base = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:limit] or "model"
    slug, k = base, 2
    while slug.lower() in taken:  # some file systems ignore case
      slug, k = f"{base}-{k}", k + 1
    taken.add(slug.lower())
    result.append(slug)
  return result
