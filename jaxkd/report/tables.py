"""Tables of the report: rows of cells for the page, and the table that a study prints at its end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table as ConsoleTable
from rich.text import Text

from jaxkd.report.figures import Marks, distance_scale, flat, mean
from jaxkd.report.schemas import check_study
from jaxkd.report.study_figures import axis_name, shown
from jaxkd.report.style import Mark
from jaxkd.report.text import (
  MISSING,
  cleaned,
  error_digits,
  finite,
  interval,
  number,
  percent,
  probability,
  setting,
)

CONSOLE = {
  "accuracy_cls": "Accuracy",
  "mean_distance": "Attention\ndistance",
  "cls_dispersion": "CLS\ndispersion",
  "collapsed_heads": "Collapsed\nheads",
  "hessian_trace": "Hessian\ntrace",
}
COMPARED = {
  "accuracy_cls": ("Accuracy (points)", 100, 1),
  "mean_distance": ("Attention distance (patches)", 1, 3),
  "hessian_trace": ("Hessian trace", 1, None),
}
HYPOTHESES = (
  "Attention distance: CNN-distilled < baseline < self-supervised-distilled",
  "CLS dispersion: CNN-distilled < baseline < self-supervised-distilled",
  "Hessian trace: self-supervised-distilled < baseline < CNN-distilled",
  "Collapsed heads: self-supervised-distilled < baseline < CNN-distilled",
  "Accuracy: CNN-distilled < baseline",
  "Accuracy: baseline < CNN-distilled < self-supervised-distilled",
)
SIGNS = {"supported": "✓", "contradicted": "✗", "undecided": "?"}
COLORS = {"supported": "green", "contradicted": "red", "undecided": "yellow"}


@dataclass(frozen=True)
class Cell:
  """One entry: main text, a smaller second line, a model's mark or a verdict's badge."""

  text: str
  sub: str = ""
  mark: Mark | None = None
  badge: str = ""


@dataclass(frozen=True)
class Table:
  """A table of the page. `numeric` holds the columns set right-aligned in tabular figures."""

  caption: str
  columns: Sequence[str]
  rows: Sequence[Sequence[Cell]]
  numeric: frozenset[int] = frozenset()
  note: str = ""
  header_column: bool = field(default=True)


def _numeric(first: int, columns: Sequence[str]) -> frozenset[int]:
  return frozenset(range(first, len(columns)))


def models_table(result: Mapping[str, Any], marks: Marks) -> Table:
  """The main numbers of every model of a forensics result with their uncertainty."""
  attentive = [m for m in result["models"] if m.get("attention")]
  factor, unit, _ = distance_scale(attentive) if attentive else ((lambda m: 1.0), "patches", 0.0)
  columns = [
    "Model",
    "Accuracy, cls head (%)",
    f"Attention distance ({unit})",
    "CLS dispersion (patches²)",
    "Collapsed heads",
    "Hessian trace",
  ]
  rows = []
  for m in result["models"]:
    name = Cell(m["name"], f"{m['model']}, {number(m['parameters'])} parameters", marks[m["name"]])
    rows.append(
      [
        name,
        _accuracy_cell(m),
        *_attention_cells(m, factor(m) if m.get("attention") else 1.0),
        _trace_cell(m),
      ]
    )
  note = (
    "Second lines: accuracy, Wilson 95 % interval over images; distance, bootstrap 95 % interval over images, or ± the "
    "standard error (mean of the blocks' errors, an upper bound) where grids differ; trace, standard error over "
    "probes. Distance and dispersion are means over blocks and heads."
  )
  return Table("The models in numbers", columns, rows, _numeric(1, columns), note)


def _accuracy_cell(model: Mapping[str, Any]) -> Cell:
  entry = model["accuracy"].get("cls")
  if not entry:
    return Cell(MISSING)
  value, low, high = (100 * entry[k] if finite(entry[k]) else None for k in ("value", "low", "high"))
  return Cell(number(value, 1), interval(low, high, 1))


def _attention_cells(model: Mapping[str, Any], factor: float) -> list[Cell]:
  a = model.get("attention")
  if not a:
    return [Cell(MISSING, "no attention"), Cell(MISSING), Cell(MISSING)]
  distance, error = mean(flat(a["mean_distance"])), mean(a["layer_distance"]["stderr"])
  collapsed = flat(a["collapsed"])
  whole = (a.get("model") or {}).get("mean_distance")
  if whole and factor == 1.0:
    second = interval(whole["low"], whole["high"], 2)
  else:
    second = f"± {number(None if error is None else error * factor, 2)}"
  return [
    Cell(number(None if distance is None else distance * factor, 2), second),
    Cell(number(mean(flat(a["cls_dispersion"])), 2) if a.get("cls_dispersion") else MISSING),
    Cell(number(sum(map(bool, collapsed))), f"of {len(collapsed)}"),
  ]


def _trace_cell(model: Mapping[str, Any]) -> Cell:
  if not (h := model.get("hessian")):
    return Cell(MISSING)
  digits = error_digits(h["stderr"])
  return Cell(number(h["trace"], digits), f"± {number(h['stderr'], digits)}")


def heads_table(result: Mapping[str, Any], marks: Marks) -> Table | None:
  """Accuracy of every head, if any model has more than one."""
  heads = list(dict.fromkeys(h for m in result["models"] for h in m["accuracy"]))
  if len(heads) < 2:
    return None
  rows = []
  for m in result["models"]:
    cells = [Cell(m["name"], mark=marks[m["name"]])]
    for head in heads:
      e = m["accuracy"].get(head)
      v = {k: 100 * e[k] if finite(e[k]) else None for k in ("value", "low", "high")} if e else None
      cells.append(Cell(number(v["value"], 1), interval(v["low"], v["high"], 1)) if v else Cell(MISSING))
    rows.append(cells)
  columns = ["Model", *(f"{h} (%)" for h in heads)]
  return Table("Accuracy by head", columns, rows, _numeric(1, columns), "Wilson 95 % intervals over images.")


def differences_table(result: Mapping[str, Any], marks: Marks) -> Table | None:
  """Configuration keys in which the models differ from the first."""
  if len(result["models"]) < 2:
    return None
  first = result["models"][0]["name"]
  rows = []
  for k, m in enumerate(result["models"]):
    words = "; ".join(f"{key} = {setting(value)}" for key, value in m["differs"].items())
    rows.append(
      [Cell(m["name"], mark=marks[m["name"]]), Cell("the reference" if not k else words or "nothing")]
    )
  return Table(f"What differs in the configuration from {first}", ["Model", "Settings"], rows)


def hypotheses_table() -> Table:
  """The designed orderings, which single checkpoints leave undecided."""
  why = "one checkpoint of each: no interval over seeds"
  rows = [[Cell(claim), Cell("undecided", badge="undecided"), Cell(why)] for claim in HYPOTHESES]
  return Table("Claims about training methods", ["Hypothesis", "Verdict", "Why"], rows)


def comparisons_of_models(result: Mapping[str, Any], marks: Marks) -> Table | None:
  """Paired differences of every model from the first, with intervals adjusted after Holm."""
  found = result.get("comparisons")
  if not found:
    return None
  rows = []
  for c in found:
    label, scale, digits = COMPARED[c["metric"]]
    value, low, high = (c[k] * scale if finite(c[k]) else None for k in ("difference", "low", "high"))
    digits = error_digits((high - low) / 4) if digits is None and finite(low) and finite(high) else digits
    apart = finite(low) and finite(high) and (low > 0 or high < 0)
    rows.append(
      [
        Cell(c["b"], mark=marks[c["b"]]),
        Cell(label),
        Cell(number(value, digits, sign=True), interval(low, high, digits, sign=True)),
        Cell(probability(c["p_holm"])),
        Cell("yes" if apart else "no"),
      ]
    )
  note = (
    "Paired by image (accuracy, attention) or by probe vector (trace); t intervals and p values adjusted after Holm "
    "over this table. They cover the choice of images and probes for these very checkpoints: “yes” says that these two "
    "checkpoints differ, not that their training methods do."
  )
  first = result["models"][0]["name"]
  columns = ["Model", "Measure", f"Difference to {first}", "p (Holm)", "Told apart"]
  return Table(
    f"What differs from {first} beyond the choice of images", columns, rows, frozenset({2, 3}), note
  )


def sources_table(result: Mapping[str, Any], marks: Marks) -> Table:
  """Where every model comes from."""
  columns = ["Model", "Checkpoint", "Digest", "Step", "Grid", "Special tokens"]
  rows = []
  for m in result["models"]:
    grid = " × ".join(map(str, m["grid"])) if m.get("grid") else MISSING
    rows.append(
      [
        Cell(m["name"], m["model"], marks[m["name"]]),
        Cell(m["checkpoint"]),
        Cell((m.get("digest") or MISSING)[:16]),
        Cell(number(m.get("step"))),
        Cell(grid),
        Cell(number(m.get("special_tokens"))),
      ]
    )
  return Table("Checkpoints", columns, rows, frozenset({3, 4, 5}))


def pairs_table(
  caption: str, values: Mapping[str, Any], columns: Sequence[str] = ("Setting", "Value")
) -> Table:
  """Two columns of keys and values."""
  rows = [
    [Cell(str(k)), Cell(number(v) if isinstance(v, int) and not isinstance(v, bool) else setting(v))]
    for k, v in values.items()
  ]
  return Table(caption, list(columns), rows)


def _summary_cell(summary: Mapping[str, Any] | None, metric: Mapping[str, Any]) -> Cell:
  if not summary:
    return Cell(MISSING)
  value, low, high = (shown(summary[k], metric) for k in ("mean", "low", "high"))
  return Cell(number(value, metric["digits"]), interval(low, high, metric["digits"]) if finite(low) else "")


def arms_table(study: Mapping[str, Any], marks: Marks) -> Table:
  """Mean and interval of every metric for every arm."""
  columns = ["Arm", *(axis_name(m) for m in study["metrics"])]
  rows = []
  for arm in study["arms"].values():
    name = Cell(arm["label"], arm["description"], marks[arm["label"]])
    rows.append([name, *(_summary_cell(arm["summary"].get(m["key"]), m) for m in study["metrics"])])
  note = (
    f"Means over {len(study['seeds'])} seeds; second lines: 95 % t intervals over seeds."
    if len(study["seeds"]) > 1
    else "One seed: there is no interval, and no ordering can be decided."
  )
  return Table("Every arm in numbers", columns, rows, _numeric(1, columns), note)


def verdicts_table(study: Mapping[str, Any]) -> Table:
  """The verdict on every hypothesis with its reason."""
  rows = [
    [Cell(v["claim"]), Cell(v["verdict"], badge=v["verdict"]), Cell(v["reason"], v.get("power") or "")]
    for v in study["verdicts"]
  ]
  note = (
    "Supported: the Holm-adjusted 95 % paired t intervals over seeds lie on the claimed side; "
    "contradicted: on the other side; undecided: 0 is inside. Undecided is not evidence of equality."
  )
  return Table("Hypotheses and verdicts", ["Hypothesis", "Verdict", "Why"], rows, note=note)


def comparisons_table(study: Mapping[str, Any]) -> Table:
  """Every paired comparison with its interval and p values."""
  known = {m["key"]: m for m in study["metrics"]}
  label = {k: a["label"] for k, a in study["arms"].items()}
  columns = ["Metric", "Difference", "Mean", "t interval", "Bootstrap", "Level", "p", "p (Holm)", "Hedges’ g"]
  columns += ["Seeds", "Detectable", "Seeds for 80 %"]
  rows = []
  for c in study["comparisons"]:
    m = known[c["metric"]]
    value, low, high = (shown(c[k], m) for k in ("mean", "low", "high"))
    rows.append(
      [
        Cell(axis_name(m)),
        Cell(f"{label[c['b']]} − {label[c['a']]}"),
        Cell(number(value, m["digits"], sign=True)),
        Cell(interval(low, high, m["digits"], sign=True)),
        Cell(_bootstrap(c, m, sign=True)),
        Cell(percent(c["level"])),
        Cell(probability(c.get("p"))),
        Cell(probability(c["p_holm"])),
        Cell(number(c.get("g"), 2, sign=True), interval(c.get("g_low"), c.get("g_high"), 2, sign=True)),
        Cell(number(c["n"])),
        *_power_cells(c, m),
      ]
    )
  note = (
    "Paired by seed. Both intervals are at the level that Holm’s adjustment over this table leaves; bootstrap: "
    "percentiles over all resamples of the seeds, which cannot leave their range and are too short for few seeds, so "
    "verdicts rest on t. Hedges’ g: mean difference over its standard deviation, without small-sample bias, with its "
    "95 % interval (noncentral t). Detectable: the true difference that these seeds find with 80 % probability. Seeds "
    "for 80 %: to find the difference seen; second line: the smallest of interest."
  )
  return Table("Paired differences over seeds", columns, rows, _numeric(2, columns), note, False)


def _bootstrap(c: Mapping[str, Any], metric: Mapping[str, Any], *, sign: bool = False) -> str:
  low, high = (shown(c.get(f"bootstrap_{end}"), metric) for end in ("low", "high"))
  return interval(low, high, metric["digits"], sign=sign)


def _power_cells(c: Mapping[str, Any], metric: Mapping[str, Any]) -> list[Cell]:
  found = c.get("power")
  if not found:
    return [Cell(MISSING), Cell(MISSING)]
  size = shown(found.get("smallest"), metric)
  sub = "" if size is None else f"{_seeds(found['seeds_for_smallest'])} for {number(size, metric['digits'])}"
  return [
    Cell(number(shown(found["detectable"], metric), metric["digits"])),
    Cell(_seeds(found["seeds_for_observed"]), sub),
  ]


def _seeds(count: Any) -> str:
  return number(count) if count else "> 10,000"


def intervals_table(study: Mapping[str, Any], marks: Marks) -> Table:
  """Mean, standard deviation, t and bootstrap interval over seeds of every arm and metric."""
  columns = ["Arm", "Metric", "Mean", "Standard deviation", "95 % t interval", "95 % bootstrap", "Seeds"]
  rows = []
  for m in study["metrics"]:
    for arm in study["arms"].values():
      if s := arm["summary"].get(m["key"]):
        mean_, low, high, sd = (shown(s.get(k), m) for k in ("mean", "low", "high", "sd"))
        digits = m["digits"]
        numbers = [number(mean_, digits), number(sd, digits + 1), interval(low, high, digits)]
        numbers += [_bootstrap(s, m), number(len(arm["runs"]))]
        name = Cell(arm["label"], mark=marks[arm["label"]])
        rows.append([name, Cell(axis_name(m)), *map(Cell, numbers)])
  return Table("Intervals over seeds", columns, rows, _numeric(2, columns))


def seeds_table(study: Mapping[str, Any], marks: Marks) -> Table:
  """Every run of every arm."""
  columns = ["Arm", "Seed", *(axis_name(m) for m in study["metrics"])]
  rows = [
    [
      Cell(arm["label"], mark=marks[arm["label"]]),
      Cell(number(run["seed"])),
      *(Cell(number(shown(run.get(m["key"]), m), m["digits"])) for m in study["metrics"]),
    ]
    for arm in study["arms"].values()
    for run in arm["runs"]
  ]
  return Table("Every run", columns, rows, _numeric(1, columns))


def terms_table(study: Mapping[str, Any], marks: Marks) -> Table:
  """The loss terms of every arm: the only thing in which the arms differ."""
  rows = []
  for arm in study["arms"].values():
    words = "; ".join(f"{name}: {setting(term)}" for name, term in (arm.get("terms") or {}).items())
    rows.append([Cell(arm["label"], arm["description"], marks[arm["label"]]), Cell(words or "labels only")])
  return Table("Loss terms by arm", ["Arm", "Terms"], rows)


def teacher_tables(study: Mapping[str, Any]) -> list[Table]:
  """One table per teacher: what it is, and how well it does beside its controls."""
  tables = []
  for t in study["teachers"]:
    facts = [str(t[k]) for k in ("model", "trained_on") if t.get(k)]
    facts += [f"{number(t['parameters'])} parameters"] if t.get("parameters") else []
    facts += [f"k-NN and probes: {t['probed_with']}"] if t.get("probed_with") else []
    rows = [
      [
        Cell(str(what)),
        Cell(value if isinstance(value, str) else number(value, 3 if isinstance(value, float) else 0)),
      ]
      for what, value in t["rows"]
    ]
    tables.append(Table(t["label"], ["Measured", "Value"], rows, frozenset({1}), " · ".join(facts)))
  return tables


def console_table(study: Mapping[str, Any]) -> ConsoleTable:
  """The result of a study for a terminal of 100 columns: arms by metrics, then the verdicts.

  Raises ValueError for a study that does not follow the schema in `jaxkd.report`.
  """
  check_study(study)
  study = cleaned(study)
  metrics = [m for m in study["metrics"] if m["key"] in CONSOLE]
  table = ConsoleTable(
    box=SIMPLE_HEAD,
    pad_edge=False,
    padding=(0, 1),
    title_justify="left",
    title=Text(_console_title(study)),
  )
  table.add_column("Arm", overflow="fold", min_width=12)
  for m in metrics:
    unit = f"\n({m['unit']})" if m["unit"] else ""
    table.add_column(CONSOLE[m["key"]] + unit, justify="right", overflow="fold")
  for arm in study["arms"].values():
    cells = [_summary_cell(arm["summary"].get(m["key"]), m) for m in metrics]
    table.add_row(
      Text(arm["label"]),
      *(Text.assemble(c.text, ("\n" + c.sub, "dim")) if c.sub else Text(c.text) for c in cells),
    )
  grid = ConsoleTable.grid()
  grid.add_row(table)
  grid.add_row(_console_verdicts(study))
  return grid


def _console_title(study: Mapping[str, Any]) -> str:
  title = f"Study {study['name']}: mean and 95 % interval over {len(study['seeds'])} seeds"
  return f"{title} (partial: {study['partial']})" if study.get("partial") else title


def _console_verdicts(study: Mapping[str, Any]) -> ConsoleTable:
  table = ConsoleTable(
    box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), title=Text("Hypotheses"), title_justify="left"
  )
  table.add_column("Hypothesis", overflow="fold")
  table.add_column("Verdict", no_wrap=True)
  for v in study["verdicts"]:
    table.add_row(Text(v["claim"]), Text(f"{SIGNS[v['verdict']]} {v['verdict']}", COLORS[v["verdict"]]))
  return table


def for_console(table: Table) -> ConsoleTable:
  """A table of the page for a terminal, second lines dimmed."""
  shown = ConsoleTable(box=SIMPLE_HEAD, pad_edge=False, title=Text(table.caption), title_justify="left")
  for k, name in enumerate(table.columns):
    shown.add_column(Text(name), justify="right" if k in table.numeric else "left", overflow="fold")
  for row in table.rows:
    shown.add_row(*(Text.assemble(c.text, ("\n" + c.sub, "dim")) if c.sub else Text(c.text) for c in row))
  return shown
