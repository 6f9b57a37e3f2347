"""Tables for other programs: CSV with full precision, LaTeX as the page shows them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxkd.report.tables import Cell, Table

LATEX = {
  "\\": r"\textbackslash{}",
  **{c: rf"\{c}" for c in "&%$#_{}"},
  "~": r"\textasciitilde{}",
  "^": r"\textasciicircum{}",
  "<": r"\textless{}",
  ">": r"\textgreater{}",
  "|": r"\textbar{}",
  "±": r"$\pm$",
  "−": "$-$",
  "²": r"\textsuperscript{2}",
  "×": r"$\times$",
  "≈": r"$\approx$",
  "→": r"$\rightarrow$",
  "–": "--",
  "…": r"\ldots{}",
}


def csv_text(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
  """Rows as CSV, numbers in full precision, None as an empty cell.

  Text that a spreadsheet would take for a formula is prefixed by an apostrophe (OWASP's advice).
  """
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(columns)
  for row in rows:
    writer.writerow([_plain(row.get(c)) for c in columns])
  return text.getvalue()


def _plain(value: Any) -> Any:
  return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def latex(text: str) -> str:
  """Text with everything LaTeX would interpret escaped."""
  return "".join(LATEX.get(c, c) for c in text)


def latex_text(table: Table) -> str:
  """A table of the page as a LaTeX float with `booktabs`; second lines follow in the same cell, smaller."""
  alignment = "".join("r" if k in table.numeric else "l" for k in range(len(table.columns)))
  body = [" & ".join(map(_latex_cell, row)) + r" \\" for row in table.rows]
  head = " & ".join(map(latex, table.columns)) + r" \\"
  note = [rf"\par\smallskip{{\footnotesize {latex(table.note)}}}"] if table.note else []
  lines = [
    r"% needs \usepackage{booktabs}",
    r"\begin{table}",
    r"\centering",
    rf"\caption{{{latex(table.caption)}}}",
    rf"\begin{{tabular}}{{{alignment}}}",
    r"\toprule",
    head,
    r"\midrule",
    *body,
    r"\bottomrule",
    r"\end{tabular}",
    *note,
    r"\end{table}",
  ]
  return "\n".join(lines) + "\n"


def _latex_cell(cell: Cell) -> str:
  return latex(cell.text) + (rf" {{\footnotesize {latex(cell.sub)}}}" if cell.sub else "")
