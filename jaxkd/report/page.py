"""The HTML pages: one self-contained file each, figures inside as SVG, and the same figures as files
beside it."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from rich.table import Table as ConsoleTable

from jaxkd.report import (
  curvature_figures,
  evaluation,
  evidence_figures,
  exports,
  figures,
  run_figures,
  study_figures,
  tables,
)
from jaxkd.report.figures import Marks, Panel, ranking
from jaxkd.report.schemas import VERDICTS, check_evaluation, check_forensics, check_study, check_training
from jaxkd.report.style import Mark, marks, save
from jaxkd.report.text import clean, cleaned, finite, interval, listing, number, plural

_LOADER = jinja2.PackageLoader("jaxkd.report", "templates")
_ENVIRONMENT = jinja2.Environment(
  loader=_LOADER, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


def _write(template: str, out_dir: Path, **context: Any) -> Path:
  page = _ENVIRONMENT.get_template(template).render(signs=tables.SIGNS, tied=tied, **context)
  path = out_dir / "report.html"
  out_dir.mkdir(parents=True, exist_ok=True)
  path.write_text(page, encoding="utf-8")
  return path


def tied(text: str) -> str:
  """The text with percent signs held to their numbers."""
  return text.replace(" %", "\u00a0%")


def _drawn(panels: Iterable[Panel], folder: Path) -> list[dict[str, str]]:
  """Panels as the templates take them, each saved as SVG, PNG and PDF."""
  result = []
  for p in panels:
    svg = base64.b64encode(save(p.figure, folder / p.key)).decode("ascii")
    width, height = (round(100 * x) for x in p.figure.get_size_inches())
    result.append(
      dict(
        key=p.key,
        title=p.title,
        read=tied(p.read),
        shows=tied(p.shows),
        alt=p.alt,
        width=width,
        height=height,
        source="data:image/svg+xml;base64," + svg,
      )
    )
  return result


def _sections(panels: Mapping[str, Sequence[Panel]], folder: Path) -> dict[str, Any]:
  return {name: _drawn(items, folder) for name, items in panels.items()}


def _forensics_context(
  result: Mapping[str, Any], styles: Marks, folder: Path, pictures: Mapping[str, Any] | None = None
) -> dict[str, Any]:
  """What the forensics part of a page needs, on its own or inside a study's page."""
  panels = figures.forensics_panels(result, styles)
  more = evidence_figures.evidence_panels(result, styles, pictures or {})
  panels = {key: [*panels.get(key, ()), *more.get(key, ())] for key in dict.fromkeys([*panels, *more])}
  drawn = _sections(panels, folder)
  save(figures.summary(result, styles), folder / "summary")
  optional = [
    tables.comparisons_of_models(result, styles),
    curvature_figures.sharpness_table(result, styles),
    tables.heads_table(result, styles),
  ]
  return dict(
    result=result,
    figures=drawn,
    legend=[(m["name"], styles[m["name"]]) for m in result["models"]],
    findings=forensics_findings(result),
    models=tables.models_table(result, styles),
    extra=[t for t in optional if t],
    sources=tables.sources_table(result, styles),
    differs=tables.differences_table(result, styles),
    settings=tables.pairs_table("Analyses", result.get("settings") or {}),
  )


def forensics_report(
  result: Mapping[str, Any], out_dir: Path, *, pictures: Mapping[str, Any] | None = None
) -> Path:
  """Draws a forensics result (`jaxkd.forensics/2`) as `out_dir/report.html` and `out_dir/figures/`.

  Every figure is written as SVG, PNG and PDF. Returns the page's path.

  Args:
    pictures: images in [0, 1] with heat maps and feature maps by model, as `jaxkd.forensics.forensics` gives them.

  Raises ValueError, before anything is written, for a result that does not follow the schema.
  """
  check_forensics(result)
  result = cleaned(result)
  check_forensics(result)  # cleaning could have made two names equal
  out_dir = Path(out_dir)
  styles = marks(m["name"] for m in result["models"])
  context = _forensics_context(result, styles, out_dir / "figures", _named(pictures or {}))
  names = listing(m["name"] for m in result["models"])
  heading = names if len(names) < 64 else f"{len(result['models'])} models compared"
  table = tables.hypotheses_table()
  return _write(
    "forensics.html.j2", out_dir, heading=heading, forensics=context, hypotheses=table, **_frame(result)
  )


def _named(pictures: Mapping[str, Any]) -> dict[str, Any]:
  """Pictures under the cleaned names of their models."""
  by_model = {
    k: {clean(n): v for n, v in pictures[k].items()} for k in ("saliency", "features") if k in pictures
  }
  return {**pictures, **by_model}


def forensics_exports(result: Mapping[str, Any]) -> dict[str, str]:
  """The tables of a forensics result as files: CSV in full precision, LaTeX as on the page."""
  result = cleaned(result)
  styles = marks(m["name"] for m in result["models"])
  shown = {
    "models.tex": tables.models_table(result, styles),
    "differences.tex": tables.comparisons_of_models(result, styles),
  }
  return {
    **exports.forensics_csv(result),
    **{name: exports.latex_text(table) for name, table in shown.items() if table},
  }


def forensics_console_table(result: Mapping[str, Any]) -> ConsoleTable:
  """The main numbers of every model for a terminal."""
  result = cleaned(result)
  return tables.for_console(tables.models_table(result, marks(m["name"] for m in result["models"])))


def _frame(source: Mapping[str, Any]) -> dict[str, Any]:
  """Date, hardware, versions and the command, as every page shows them."""
  environment = {
    "Date": source.get("date"),
    "Hardware": source.get("hardware"),
    **(source.get("versions") or {}),
  }
  kept = {k: v for k, v in environment.items() if v}
  return dict(
    command=source.get("command") or "",
    environment=tables.pairs_table("Environment", kept, ("What", "Version")),
  )


def study_report(study: Mapping[str, Any], forensics: Mapping[str, Any], out_dir: Path) -> Path:
  """Draws a study (`jaxkd.study/1`) with the forensics of one of its seeds, files as in `forensics_report`.

  A forensics model named like an arm's label (or beginning with it) is drawn in that arm's colour.
  Returns the page's path. Raises ValueError, before anything is written, for input that does not follow
  the schemas.
  """
  for check, data in ((check_study, study), (check_forensics, forensics)):
    check(data)
    check(cleaned(data))
  study, forensics, out_dir = cleaned(study), cleaned(forensics), Path(out_dir)
  folder = out_dir / "figures"
  styles = marks(_baseline_first(study))
  uniform = _uniform(forensics)
  context = dict(
    study=study,
    legend=[(a["label"], a["description"], styles[a["label"]]) for a in study["arms"].values()],
    counts={v: sum(row["verdict"] == v for row in study["verdicts"]) for v in VERDICTS},
    findings=study_findings(study),
    arms=tables.arms_table(study, styles),
    verdicts=tables.verdicts_table(study),
    comparisons=tables.comparisons_table(study),
    seeds=tables.seeds_table(study, styles),
    intervals=tables.intervals_table(study, styles),
    terms=tables.terms_table(study, styles),
    teachers=tables.teacher_tables(study),
    student=tables.pairs_table("Student", study["student"]),
    data=tables.pairs_table("Data", study["data"]),
    figures=_sections(study_figures.study_panels(study, styles, uniform=uniform), folder),
    forensics=_forensics_context(
      forensics, marks((m["name"] for m in forensics["models"]), known=styles), folder
    ),
  )
  save(study_figures.summary(study, styles, uniform=uniform), folder / "study_summary")
  return _write("study.html.j2", out_dir, **context, **_frame(study))


def study_exports(study: Mapping[str, Any]) -> dict[str, str]:
  """The tables of a study as files: CSV in full precision, LaTeX as on the page."""
  study = cleaned(study)
  styles = marks(_baseline_first(study))
  shown = {
    "arms.tex": tables.arms_table(study, styles),
    "verdicts.tex": tables.verdicts_table(study),
    "differences.tex": tables.comparisons_table(study),
  }
  return {**exports.study_csv(study), **{name: exports.latex_text(table) for name, table in shown.items()}}


def _baseline_first(study: Mapping[str, Any]) -> list[str]:
  """Arm labels with the baseline's first: it takes the neutral colour."""
  order = sorted(study["arms"], key=lambda arm: arm != study["baseline"])
  return [study["arms"][arm]["label"] for arm in order]


def _uniform(forensics: Mapping[str, Any]) -> float | None:
  """The uniform distance of the models' grid, None where they have several or none."""
  found = {m["attention"]["uniform_distance"] for m in forensics["models"] if m.get("attention")}
  return found.pop() if len(found) == 1 else None


def training_report(run: Mapping[str, Any], out_dir: Path) -> Path:
  """Draws one training run (`jaxkd.training/1`), files as in `forensics_report`; returns the page's path.

  Raises ValueError, before anything is written, for a run that does not follow the schema.
  """
  check_training(run)
  return runs_report([run], out_dir, command=run.get("command") or "")


def runs_report(runs: Sequence[Mapping[str, Any]], out_dir: Path, *, command: str) -> Path:
  """Draws training runs (`jaxkd.training/1`, different names) over each other; see `training_report`.

  Args:
    command: what made the page; of a single run, what made the run.
  """
  for run in runs:
    check_training(run)
  runs, out_dir = cleaned(list(runs)), Path(out_dir)
  styles: dict[str, Mark] = marks(run["name"] for run in runs)
  several = len(runs) > 1
  config = {} if several else run_figures.flattened(runs[0].get("config") or {})
  prefix = (lambda r: f"{r['name']}: ") if several else (lambda r: "")
  return _write(
    "training.html.j2",
    out_dir,
    heading=f"{len(runs)} training runs compared" if several else f"Training run {runs[0]['name']}",
    runs=runs,
    warnings=[prefix(r) + w for r in runs for w in r.get("warnings") or ()],
    legend=list(styles.items()),
    compared=run_figures.runs_table(runs, styles) if several else None,
    settings=run_figures.settings_table(runs, styles),
    figures=_drawn(run_figures.run_panels(runs, styles), out_dir / "figures"),
    values=[run_figures.run_table(r) for r in runs],
    config=tables.pairs_table("Configuration", config),
    **_frame({**runs[0], "command": command}),
  )


def runs_exports(runs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """The table of the runs as files: name -> text."""
  styles = marks(clean(run["name"]) for run in runs)
  numbers = [run_figures.run_numbers(run) for run in cleaned(list(runs))]
  return {
    "runs.csv": exports.csv_text(numbers, list(numbers[0])),
    "runs.tex": exports.latex_text(run_figures.runs_table(cleaned(list(runs)), styles)),
  }


def runs_console_table(runs: Sequence[Mapping[str, Any]]) -> ConsoleTable:
  """The table of the runs for a terminal."""
  styles = marks(clean(run["name"]) for run in runs)
  return tables.for_console(run_figures.runs_table(cleaned(list(runs)), styles))


def evaluation_report(result: Mapping[str, Any], out_dir: Path, *, pictures: Sequence[Any] = ()) -> Path:
  """Draws an evaluation (`jaxkd.evaluation/2`), files as in `forensics_report`; returns the page's path.

  Args:
    pictures: images [h w c] in [0, 1] of the first of `result["mistakes"]`, in order.

  Raises ValueError, before anything is written, for a result that does not follow the schema.
  """
  check_evaluation(result)
  result, out_dir = cleaned(result), Path(out_dir)
  check_evaluation(result)
  head = result["heads"][evaluation.PRIMARY]
  tta = result.get("tta")
  caption = f"Every head, each image with {tta['views']} augmented views" if tta else ""
  return _write(
    "evaluation.html.j2",
    out_dir,
    result=result,
    examples=head["examples"],
    classes=len(head["per_class"]),
    findings=evaluation.evaluation_findings(result),
    heads=evaluation.heads_table(result["heads"], "Every head in numbers"),
    averaged=evaluation.heads_table(tta["heads"], caption) if tta else None,
    figures=_drawn(evaluation.evaluation_panels(result, pictures), out_dir / "figures"),
    confused=evaluation.confusions_table(head),
    by_class=evaluation.classes_table(head),
    source=tables.pairs_table(
      "Checkpoint", {k: result[k] for k in ("checkpoint", "model", "step", "digest", "data", "split")}
    ),
    **_frame(result),
  )


def forensics_findings(result: Mapping[str, Any]) -> list[str]:
  """What a forensics result says, one sentence per kind of evidence."""
  found = []
  models = result["models"]
  if scored := {
    m["name"]: 100 * c["value"] for m in models if (c := m["accuracy"].get("cls")) and finite(c["value"])
  }:
    found.append(f"Accuracy: {ranking(scored, 1, ' %')}.")
  if attentive := [m for m in models if m.get("attention")]:
    factor, unit, uniform = figures.distance_scale(attentive)
    means = {
      m["name"]: figures.mean([v * factor(m) for v in figures.flat(m["attention"]["mean_distance"])])
      for m in attentive
    }
    found.append(
      f"Attention distance in {unit} (uniform attention: {number(uniform, 2)}): {ranking(means, 2)}."
    )
  if traces := {m["name"]: m["hessian"]["trace"] for m in models if m.get("hessian")}:
    found.append(f"Hessian trace: {ranking(traces, figures.trace_digits(result))}.")
  last = {f"{c['a']} with {c['b']}": c["matrix"][-1][-1] for c in result["cka"] if c["a"] != c["b"]}
  if last:
    found.append(f"CKA of the last layers: {ranking(last, 2)}.")
  return found


def study_findings(study: Mapping[str, Any]) -> list[str]:
  """For every metric, which arms differ from the baseline, with the difference and its interval."""
  base = study["arms"][study["baseline"]]["label"]
  found, open_ = [], []
  for metric in study["metrics"]:
    clear, rows = [], study_figures.against_baseline(study, metric["key"])
    for arm, *numbers, _ in rows:
      value, low, high = (study_figures.shown(n, metric) for n in numbers)
      if low is not None and high is not None and (low > 0 or high < 0):
        digits = metric["digits"]
        words = f"{number(value, digits, sign=True)} {interval(low, high, digits, sign=True)}"
        clear.append(f"{study['arms'][arm]['label']} {words}")
    if clear:
      found.append(f"{study_figures.axis_name(metric)}, difference to {base}: {'; '.join(clear)}.")
    elif rows:
      open_.append(metric["label"])
  if open_:
    found.append(
      f"No arm can be told from {base} with {plural(len(study['seeds']), 'seed')} by {listing(open_)}."
    )
  return found
