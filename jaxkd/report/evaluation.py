"""What `evaluate` shows of one checkpoint: a table of its heads, the confusion matrix and ROC curves as figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

from jaxkd.report.style import COLORS, INK, RC, SMALL, WIDTH, save
from jaxkd.report.text import clean

# Pairs of (key path in a head's report, what the table calls it); all are shares, shown in percent.
ROWS = (
  (("accuracy",), "accuracy"),
  (("macro", "precision"), "macro precision"),
  (("macro", "recall"), "macro recall"),
  (("macro", "f1"), "macro F1"),
)


def evaluation_table(result: Mapping[str, Any], *, averaged: bool = False) -> Table:
  """Heads by measures, in percent, for a terminal. `result` has the schema `jaxkd.evaluation/1`.

  Args:
    averaged: the part `result["tta"]`, with test-time augmentation, instead.
  """
  heads = result["tta"]["heads"] if averaged else result["heads"]
  examples = next(iter(heads.values()))["examples"]
  title = f"{examples} test images of {clean(result['data'])}"
  title += f", each with {result['tta']['views']} augmented views" if averaged else ""
  table = Table(box=SIMPLE_HEAD, title=title, title_justify="left")
  table.add_column("measure")
  for head in heads:
    table.add_column(f"{head} head", justify="right")
  for path, label in ROWS:
    table.add_row(label, *(f"{100 * _at(r, path):.2f} %" for r in heads.values()))
  for k in next(iter(heads.values()))["top_k"]:
    table.add_row(f"top-{k}", *(f"{100 * r['top_k'][k]:.2f} %" for r in heads.values()))
  table.add_row("mean one-vs-rest AUC", *(f"{_mean_auc(r):.4f}" for r in heads.values()))
  table.add_row("cross entropy (nats)", *(f"{r['loss']:.4f}" for r in heads.values()))
  return table


def _at(tree: Any, path: tuple[str, ...]) -> float:
  for key in path:
    tree = tree[key]
  return tree


def _mean_auc(head: Mapping[str, Any]) -> float:
  areas = [curve["auc"] for curve in head["roc"].values()]
  return sum(areas) / len(areas)


def evaluation_figures(result: Mapping[str, Any], out_dir: Path) -> None:
  """Writes `confusion` and `roc` of the cls head as PNG, PDF and SVG to `out_dir`."""
  head = result["heads"]["cls"]
  with matplotlib.rc_context(RC):
    save(_confusion(head), out_dir / "confusion")
    save(_roc(head), out_dir / "roc")


def _confusion(head: Mapping[str, Any]) -> Figure:
  names, counts = [clean(n) for n in head["per_class"]], head["confusion"]
  share = [[n / max(sum(row), 1) for n in row] for row in counts]
  figure = Figure(figsize=(WIDTH, WIDTH), layout="constrained")
  axes = figure.add_subplot()
  axes.grid(False)
  axes.imshow(share, cmap="YlGnBu", vmin=0.0, vmax=1.0)
  if len(names) <= 12:
    for i, row in enumerate(counts):
      for j, count in enumerate(row):
        color = "white" if share[i][j] > 0.6 else INK
        axes.text(j, i, str(count) if count else "", ha="center", va="center", fontsize=SMALL, color=color)
    longest = max(map(len, names))
    axes.set_xticks(range(len(names)), names, rotation=90 if longest > 2 else 0)
    axes.set_yticks(range(len(names)), names)
  axes.set_xlabel("predicted")
  axes.set_ylabel("true")
  axes.set_title(f"Confusion matrix, {head['examples']} images")
  axes.tick_params(length=0)
  return figure


def _roc(head: Mapping[str, Any]) -> Figure:
  figure = Figure(figsize=(WIDTH, WIDTH), layout="constrained")
  axes = figure.add_subplot()
  for i, (name, curve) in enumerate(head["roc"].items()):
    color, dash = COLORS[i % len(COLORS)], ("-", "--", ":", "-.")[i // len(COLORS) % 4]
    label = f"{clean(name)} ({curve['auc']:.3f})" if len(head["roc"]) <= 10 else None
    axes.plot(curve["fpr"], curve["tpr"], color=color, ls=dash, lw=1.4, label=label)
  chance = [10 ** (-k / 20) for k in range(80)]  # a curve on this axis
  axes.plot(chance, chance, color="#999999", lw=0.8, ls=":")
  axes.set_xscale("symlog", linthresh=0.01)  # good models live in the first percent
  axes.set_xlim(0, 1)
  axes.set_xticks([0, 0.01, 0.1, 1], ["0", "0.01", "0.1", "1"])
  axes.minorticks_off()
  axes.set_ylim(0, 1.01)
  axes.set_xlabel("false positive rate")
  axes.set_ylabel("true positive rate")
  axes.set_title("ROC, one class against the rest (area)")
  if len(head["roc"]) <= 10:
    axes.legend(loc="lower right", ncols=2, fontsize=SMALL - 1.5, handlelength=1.4, columnspacing=0.9)
  return figure
