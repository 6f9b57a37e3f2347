"""Tables for other programs: CSV with full precision, LaTeX as the page shows them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

PARAGRAPH = 60  # characters from which a LaTeX column breaks its lines


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
  alignment = "".join(_column(table, k) for k in range(len(table.columns)))
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


def _column(table: Table, k: int) -> str:
  """Right-aligned numbers, left-aligned words, and a paragraph where there are sentences."""
  longest = max((len(row[k].text) for row in table.rows), default=0)
  return "r" if k in table.numeric else r"p{0.36\linewidth}" if longest > PARAGRAPH else "l"


def _latex_cell(cell: Cell) -> str:
  return latex(cell.text) + (rf" {{\footnotesize {latex(cell.sub)}}}" if cell.sub else "")


MODELS = (
  "name",
  "model",
  "parameters",
  "step",
  "statistic",
  "value",
  "low",
  "high",
)
LAYERS = ("name", "layer", "statistic", "value", "low", "high")
HEADS = ("name", "layer", "head", "statistic", "value")
HESSIAN = ("name", "kind", "part", "trace", "stderr")
SIMILARITY = ("measure", "a", "b", "layer_a", "layer_b", "value", "stderr")
DIFFERENCES = ("metric", "a", "b", "difference", "low", "high", "level", "p", "p_holm", "n")
HEAD_STATISTICS = ("mean_distance", "distance_to_uniform", "entropy", "cls_dispersion", "cls_self_attention")


def forensics_csv(result: Mapping[str, Any]) -> dict[str, str]:
  """A forensics result as long tables: file name -> CSV."""
  rows = {
    "models.csv": (MODELS, list(_models(result))),
    "layers.csv": (LAYERS, list(_layers(result))),
    "heads.csv": (HEADS, list(_heads(result))),
    "hessian.csv": (HESSIAN, list(_hessian(result))),
    "similarity.csv": (SIMILARITY, list(_similarity(result))),
    "differences.csv": (DIFFERENCES, list(result.get("comparisons") or ())),
  }
  return {name: csv_text(found, columns) for name, (columns, found) in rows.items() if found}


RUNS = ("arm", "label", "seed", "metric", "value")
SUMMARIES = ("arm", "label", "metric", "mean", "sd", "n", "low", "high", "bootstrap_low", "bootstrap_high")
PAIRED = (
  *(
    "metric",
    "a",
    "b",
    "mean",
    "sd",
    "n",
    "low",
    "high",
    "bootstrap_low",
    "bootstrap_high",
    "level",
    "p",
    "p_holm",
  ),
  *("effect", "g", "g_low", "g_high", "detectable", "seeds_for_observed", "smallest", "seeds_for_smallest"),
)
JUDGEMENTS = ("claim", "metric", "verdict", "reason", "power")


def study_csv(study: Mapping[str, Any]) -> dict[str, str]:
  """A study as long tables in the units it stores: file name -> CSV."""
  arms = [(key, {"arm": key, "label": arm["label"]}, arm) for key, arm in study["arms"].items()]
  metrics = [m["key"] for m in study["metrics"]]
  rows: dict[str, tuple[Sequence[str], list[Mapping[str, Any]]]] = {
    "runs.csv": (
      RUNS,
      [
        {**about, "seed": run["seed"], "metric": m, "value": run.get(m)}
        for _, about, arm in arms
        for run in arm["runs"]
        for m in metrics
      ],
    ),
    "arms.csv": (
      SUMMARIES,
      [
        {**about, "metric": m, **arm["summary"][m]}
        for _, about, arm in arms
        for m in metrics
        if m in arm["summary"]
      ],
    ),
    "differences.csv": (PAIRED, [{**c, **(c.get("power") or {})} for c in study["comparisons"]]),
    "verdicts.csv": (JUDGEMENTS, list(study["verdicts"])),
  }
  return {name: csv_text(found, columns) for name, (columns, found) in rows.items() if found}


def _models(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
  for m in result["models"]:
    about = {k: m.get(k) for k in ("name", "model", "parameters", "step")}
    for head, e in m["accuracy"].items():
      yield {**about, "statistic": f"accuracy_{head}", **e}
    for name, e in ((m.get("attention") or {}).get("model") or {}).items():
      yield {**about, "statistic": name, **e}
    if h := m.get("hessian"):
      yield {
        **about,
        "statistic": "hessian_trace",
        "value": h["trace"],
        "low": h.get("low"),
        "high": h.get("high"),
      }


def _layers(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
  """Statistics by layer, each with its interval."""
  for m in result["models"]:
    sources: list[tuple[str, Sequence[str] | None, Mapping[str, Any]]] = [
      (name, None, e) for name, e in ((m.get("attention") or {}).get("layers") or {}).items()
    ]
    if field := m.get("receptive_field"):
      sources.append(("receptive_field_px", field["layers"], field["mean_distance"]))
    for name, layers, e in sources:
      for k, value in enumerate(e["value"]):
        layer = layers[k] if layers else f"block{k:02d}"
        yield {
          "name": m["name"],
          "layer": layer,
          "statistic": name,
          "value": value,
          "low": e["low"][k],
          "high": e["high"][k],
        }
    for kind in ("knn", "linear") if m.get("probes") else ():
      for layer, e in zip(m["probes"]["layers"], m["probes"][kind], strict=True):
        yield {"name": m["name"], "layer": layer, "statistic": f"probe_{kind}", **e}


def _heads(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
  for m in result["models"]:
    found = m.get("attention") or {}
    for name in HEAD_STATISTICS:
      for i, row in enumerate(found.get(name) or ()):
        for j, value in enumerate(row):
          yield {"name": m["name"], "layer": f"block{i:02d}", "head": j, "statistic": name, "value": value}


def _hessian(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
  for m in result["models"]:
    found = m.get("hessian") or {}
    for key, kind in (("per_block", "block"), ("per_type", "layer type"), ("per_head", "head")):
      for part, (trace, stderr) in (found.get(key) or {}).items():
        yield {"name": m["name"], "kind": kind, "part": part, "trace": trace, "stderr": stderr}


def _similarity(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
  sources = [(f"cka_{c.get('kernel', 'linear')}", c, c["matrix"], c.get("stderr")) for c in result["cka"]]
  for e in result.get("alignment") or ():
    sources += [(key, e, e[key], None) for key in ("procrustes", "mutual_knn")]
  for measure, e, matrix, errors in sources:
    for i, row in enumerate(matrix):
      for j, value in enumerate(row):
        place = {
          "measure": measure,
          "a": e["a"],
          "b": e["b"],
          "layer_a": e["layers_a"][i],
          "layer_b": e["layers_b"][j],
        }
        yield {**place, "value": value, "stderr": errors[i][j] if errors else None}
