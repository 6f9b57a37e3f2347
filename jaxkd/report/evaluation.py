"""What `evaluate` shows of one checkpoint: its heads in numbers, confusions, ROC, calibration, classes, mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table as ConsoleTable
from rich.text import Text

from jaxkd.report import charts, plots
from jaxkd.report.figures import Panel
from jaxkd.report.plots import Guide, Row
from jaxkd.report.style import COLORS, Mark
from jaxkd.report.tables import Cell, Table
from jaxkd.report.text import MISSING, clean, finite, interval, listing, number, plural

PRIMARY = "cls"  # the head every model has, by which models are compared
MOST_CLASSES = 12  # rows of the figure by class
INK = Mark(COLORS[0], "o")

# (key path in a head's report, name, scale, decimals, unit)
MEASURES = (
  (("accuracy",), "Accuracy", 100, 2, " %"),
  (("macro", "precision"), "Macro precision", 100, 2, " %"),
  (("macro", "recall"), "Macro recall", 100, 2, " %"),
  (("macro", "f1"), "Macro F1", 100, 2, " %"),
  (("macro", "auc"), "Mean one-vs-rest AUC", 1, 4, ""),
  (("loss",), "Cross entropy (nats)", 1, 4, ""),
  (("brier",), "Brier score (0 to 2)", 1, 4, ""),
)


def _rows(head: Mapping[str, Any]) -> list[tuple[str, str, str]]:
  """Name, value and interval of every measure of one head."""
  rows = []
  for path, name, scale, digits, unit in MEASURES:
    entry = head
    for key in path:
      entry = entry[key]
    rows.append((name, *_shown(entry, scale, digits, unit)))
    if path == ("accuracy",):
      rows += [(f"Top-{k} accuracy", *_shown(v, 100, 2, " %")) for k, v in head["top_k"].items()]
  c = head["calibration"]
  rows.append(("Calibration error, 15 equal bins", number(c["ece"], 4), _by_chance(c)))
  rows.append(("Calibration error, equal counts", number(c["ece_adaptive"], 4), ""))
  return rows


def _shown(entry: Mapping[str, Any], scale: float, digits: int, unit: str) -> tuple[str, str]:
  value, low, high = (entry[k] * scale if finite(entry[k]) else None for k in ("value", "low", "high"))
  return number(value, digits) + (unit if finite(value) else ""), interval(low, high, digits)


def _by_chance(calibration: Mapping[str, Any]) -> str:
  return f"by chance up to {number(calibration['ece_if_calibrated']['high'], 4)}"


def evaluation_table(result: Mapping[str, Any], *, averaged: bool = False) -> ConsoleTable:
  """Heads by measures for a terminal, with 95 % intervals of the cls head. `result`: `jaxkd.evaluation/2`.

  Args:
    averaged: the part `result["tta"]`, with test-time augmentation, instead.
  """
  heads = result["tta"]["heads"] if averaged else result["heads"]
  examples = heads[PRIMARY]["examples"]
  title = f"{examples} {result['split']} images of {clean(result['data'])}"
  title += f", each with {result['tta']['views']} augmented views" if averaged else ""
  table = ConsoleTable(box=SIMPLE_HEAD, title=Text(title), title_justify="left", pad_edge=False)
  table.add_column("measure")
  for head in heads:
    table.add_column(f"{head} head", justify="right")
  table.add_column("95 %, cls head", justify="right")
  columns = {name: _rows(head) for name, head in heads.items()}
  for k, (label, _, words) in enumerate(columns[PRIMARY]):
    table.add_row(label, *(rows[k][1] for rows in columns.values()), words)
  return table


def heads_table(heads: Mapping[str, Any], caption: str) -> Table:
  """Every measure of every head, with intervals."""
  columns = {name: _rows(head) for name, head in heads.items()}
  rows = [
    [Cell(label), *(Cell(rows[k][1], rows[k][2]) for rows in columns.values())]
    for k, (label, _, _) in enumerate(columns[PRIMARY])
  ]
  note = (
    "Second lines: 95 % intervals over images, Wilson's for shares of images, the percentile bootstrap's for the rest; "
    "for the calibration error, what a perfectly calibrated model with the same confidences stays below in 95 % of "
    "samples."
  )
  return Table(
    caption, ["Measure", *(f"{n} head" for n in columns)], rows, frozenset(range(1, 1 + len(columns))), note
  )


def classes_table(head: Mapping[str, Any]) -> Table:
  """Precision, recall, F1 and AUC by class."""
  rows = []
  for name, c in head["per_class"].items():
    shares = [_shown(c[k], 100, 1, "") if c[k] else (MISSING, "") for k in ("precision", "recall")]
    f1 = number(100 * c["f1"], 1) if finite(c["f1"]) else MISSING
    cells = [Cell(value, words) for value, words in shares] + [Cell(f1), Cell(number(c["auc"], 4))]
    rows.append([Cell(name), *cells, Cell(number(c["examples"])), Cell(number(c["predicted"]))])
  columns = ["Class", "Precision (%)", "Recall (%)", "F1 (%)", "AUC", "Images", "Predicted"]
  return Table(
    "By class, cls head", columns, rows, frozenset(range(1, 7)), "Wilson 95 % intervals over images."
  )


def confusions(head: Mapping[str, Any]) -> list[tuple[int, str, str, int]]:
  """(count, true, predicted, images of the true class) of every confusion that occurs, most frequent first."""
  names = list(head["per_class"])
  found = [
    (count, names[i], names[j], sum(row))
    for i, row in enumerate(head["confusion"])
    for j, count in enumerate(row)
    if i != j and count
  ]
  return sorted(found, key=lambda c: -c[0])


def confusions_table(head: Mapping[str, Any], most: int = 10) -> Table | None:
  """The most frequent confusions."""
  found = confusions(head)[:most]
  rows = [
    [Cell(f"{a} taken for {b}"), Cell(number(count)), Cell(f"of {total}")] for count, a, b, total in found
  ]
  columns = ["Confusion", "Images", "Of the true class"]
  return Table("Most frequent confusions", columns, rows, frozenset({1, 2})) if rows else None


def evaluation_findings(result: Mapping[str, Any]) -> list[str]:
  """What an evaluation says, one sentence for each kind of measure."""
  head = result["heads"][PRIMARY]
  value, words = _shown(head["accuracy"], 100, 1, " %")
  found = [
    f"Accuracy: {value} of {number(head['examples'])} {result['split']} images by the cls head, 95 % interval {words}."
  ]
  others = [
    f"{name} {_shown(h['accuracy'], 100, 1, ' %')[0]}"
    for name, h in result["heads"].items()
    if name != PRIMARY
  ]
  if others:
    found.append(f"Other heads: {listing(others)}.")
  found.append(_calibration_finding(head))
  if pairs := confusions(head):
    count, a, b, total = pairs[0]
    found.append(f"Most frequent confusion: {a} taken for {b}, {count} of {total} images.")
  if tta := result.get("tta"):
    after = _shown(tta["heads"][PRIMARY]["accuracy"], 100, 1, " %")
    found.append(
      f"Averaged over {plural(tta['views'], 'augmented view')}: {after[0]}, 95 % interval {after[1]}."
    )
  return found


def _calibration_finding(head: Mapping[str, Any]) -> str:
  c = head["calibration"]
  gap = c["mean_confidence"] - head["accuracy"]["value"]
  if c["ece"] <= c["ece_if_calibrated"]["high"]:
    verdict = "no evidence of miscalibration"
  else:
    verdict = "overconfident" if gap > 0 else "underconfident"
  return (
    f"Calibration error {number(c['ece'], 3)} (a perfectly calibrated model stays below "
    f"{number(c['ece_if_calibrated']['high'], 3)}): {verdict}; mean confidence "
    f"{number(100 * c['mean_confidence'], 1)} %."
  )


def evaluation_panels(result: Mapping[str, Any], pictures: Sequence[Any] = ()) -> list[Panel]:
  """The figures of the cls head. `pictures`: images in [0, 1] of `result["mistakes"]`, in order."""
  head = result["heads"][PRIMARY]
  panels = [_confusion(head), _reliability(head), _roc(head), _classes(head)]
  return [p for p in [*panels, _mistakes(result, pictures)] if p]


def _confusion(head: Mapping[str, Any]) -> Panel:
  wrong = sum(c for c, *_ in confusions(head))
  read = (
    "Rows are true classes, columns predicted ones; colour is the share of the row, numbers count images."
  )
  shows = f"{number(wrong)} of {number(head['examples'])} images are off the diagonal."
  figure = charts.confusion(head["confusion"], [clean(n) for n in head["per_class"]])
  return Panel("confusion", "Confusion matrix", read, shows, figure)


def _reliability(head: Mapping[str, Any]) -> Panel:
  read = (
    "Top: share of correct images against stated confidence, in bins of equal width with Wilson 95 % intervals; on the "
    "dashed line the model is right as often as it says, below it is overconfident. Bottom: images per bin."
  )
  figure = charts.reliability(head["calibration"]["bins"])
  return Panel(
    "reliability", "Reliability: is it as sure as it is right?", read, _calibration_finding(head), figure
  )


def _roc(head: Mapping[str, Any]) -> Panel | None:
  if not head["roc"]:
    return None
  areas = {clean(n): c["auc"] for n, c in head["roc"].items()}
  worst = min(areas, key=lambda n: areas[n])
  read = (
    "One class against the rest. The false positive rate is linear up to 0.01 and logarithmic beyond: good models "
    "differ there. The dotted line is chance."
  )
  average = number(head["macro"]["auc"]["value"], 4)
  shows = f"The mean area is {average}, the smallest {number(areas[worst], 4)} ({worst})."
  figure = charts.roc({clean(n): (c["fpr"], c["tpr"], c["auc"]) for n, c in head["roc"].items()})
  return Panel("roc", "ROC curves", read, shows, figure)


def _classes(head: Mapping[str, Any]) -> Panel | None:
  scored = {n: c for n, c in head["per_class"].items() if c["recall"]}
  order = sorted(scored, key=lambda n: scored[n]["recall"]["value"])[:MOST_CLASSES]
  if not order:
    return None
  items = []
  for name in order:
    value, low, high = (100 * scored[name]["recall"][k] for k in ("value", "low", "high"))
    text = f"{number(value, 1)} {interval(low, high, 1)}"
    items.append(Row(name, INK, value, low, high, text))
  which = f"the {len(order)} classes with the lowest recall" if len(order) < len(scored) else "every class"
  read = (
    f"Recall of {which}: the share of its images that are recognised, with Wilson 95 % intervals over images."
  )
  shows = f"Lowest: {order[0]}, {items[0].text} %."
  guide = [Guide(100 * head["accuracy"]["value"], "all classes")]
  return Panel(
    "classes", "Recall by class", read, shows, plots.rows(items, xlabel="recall (%)", guides=guide)
  )


def _mistakes(result: Mapping[str, Any], pictures: Sequence[Any]) -> Panel | None:
  if not len(pictures):
    return None
  names = [clean(n) for n in result["heads"][PRIMARY]["per_class"]]
  shown = result["mistakes"][: len(pictures)]
  notes = [
    f"{names[m['true']]} → {names[m['predicted']]}, {number(100 * m['confidence'], 1)} %" for m in shown
  ]
  read = (
    "Wrongly classified images, the most confident first: true class → predicted class and its probability."
  )
  wrong = sum(c for c, *_ in confusions(result["heads"][PRIMARY]))
  shows = f"{len(shown)} of {number(wrong)} mistakes; the first is image {shown[0]['index']} of the split."
  return Panel("mistakes", "Most confident mistakes", read, shows, charts.picture_grid(pictures, notes))
