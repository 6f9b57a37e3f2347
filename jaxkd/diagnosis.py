"""What a run's own numbers say is wrong with its terms: one that does nothing, one whose features collapsed."""

from __future__ import annotations

from collections.abc import Mapping

# Below this share of all terms' gradient norms a term is inert: the published Gram loss has about 0.1 %.
INERT_SHARE = 0.01
# Standard deviation of unit features over batch and positions, at most 1: below this all of them are the same.
COLLAPSED_SPREAD = 0.01
SPREADS = {"prediction_spread": "the student's features", "target_spread": "the teacher's features"}


def gradient_share(row: Mapping[str, float], term: str) -> float | None:
  """Norm of the term's gradient over the sum of all terms' norms in one row; None where it was not measured."""
  if f"gradient/{term}" not in row:
    return None
  total = sum(v for k, v in row.items() if k.startswith("gradient/"))
  return row[f"gradient/{term}"] / max(total, 1e-30)


def warnings(row: Mapping[str, float]) -> dict[tuple[str, str], str]:
  """Messages by (term, what) for one row of metrics.jsonl; terms whose weight is 0 at that step are left alone."""
  found: dict[tuple[str, str], str] = {}
  for key in row:
    term = key.removeprefix("weight/")
    if term == key or row[key] == 0:
      continue
    share = gradient_share(row, term)
    if share is not None and share < INERT_SHARE and _several(row):
      found[term, "inert"] = (
        f"term '{term}' is inert: its gradient is {100 * share:.2g} % of all terms' at step {row['step']} "
        f"(weight {row[key]:g})"
      )
    for spread, what in SPREADS.items():
      if row.get(f"{term}/{spread}", 1.0) < COLLAPSED_SPREAD:
        found[term, spread] = (
          f"term '{term}': {what} have collapsed, spread {row[f'{term}/{spread}']:.1e} of 1 at step {row['step']}"
        )
  return found


def last_warnings(rows: list[dict[str, float]]) -> list[str]:
  """The warnings that still hold at the end: of the last row with spreads, and of the last with gradient shares."""
  measured = [row for row in rows if any(k.startswith("gradient/") for k in row)][-1:]
  found: dict[tuple[str, str], str] = {}
  for row in [*measured, *rows[-1:]]:
    found |= warnings(row)
  return list(found.values())


def _several(row: Mapping[str, float]) -> bool:
  """A share says something only where several terms have weight."""
  return sum(v > 0 for k, v in row.items() if k.startswith("weight/")) > 1
