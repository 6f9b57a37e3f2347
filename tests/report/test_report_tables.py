"""Numbers in words, the console table, and the messages for input that does not follow the schemas."""

import copy
import csv
import io

import pytest
from rich.console import Console
from rich.table import Table

from jaxkd.report import console_table, forensics_report, study_exports, study_report, training_report
from jaxkd.report.schemas import check_forensics, check_study, check_training
from jaxkd.report.text import error_digits, interval, listing, number, percent, probability, setting, slugs


@pytest.mark.parametrize(
  ("value", "digits", "text"),
  [
    (93.14, 1, "93.1"),
    (-0.04, 1, "0.0"),
    (-1.25, 2, "−1.25"),
    (5365076, None, "5,365,076"),
    (120.04, None, "120.0"),
    (0.0001234, None, "0.0001234"),
    (9.0123e-8, None, "9.01e−8"),
    (12345.6, None, "12,346"),
    (0.0, None, "0"),
    (None, 1, "–"),
    (float("nan"), 1, "–"),
    (float("inf"), None, "–"),
  ],
)
def test_numbers(value, digits, text):
  assert number(value, digits) == text


def test_other_words():
  assert number(0.5, 1, sign=True) == "+0.5"
  assert number(0.01, 1, sign=True) == "0.0"
  assert interval(-1, 2.04, 1, sign=True) == "[−1.0, +2.0]"
  assert interval(None, 2.0, 1) == "–"
  assert [error_digits(e) for e in (4.5, 0.032, 12.0, 0.0, None)] == [1, 3, 0, None, None]
  assert [probability(p) for p in (0.0412, 1e-5, None)] == ["0.041", "< 0.001", "–"]
  assert [percent(p) for p in (0.95, 1 - 0.05 / 3)] == ["95 %", "98.33 %"]
  assert [listing(x) for x in ([], ["a"], ["a", "b", "c"])] == ["nothing", "a", "a, b and c"]
  assert setting({"a": [1, 0.5], "b": True, "c": None}) == "a 1, 0.5, b yes, c none"


def test_file_names_are_safe_and_different():
  names = slugs(["a/b", "a b", "A-B", "../..", "<script>", "x" * 80])
  assert names == ["a-b", "a-b-2", "A-B-3", "model", "script", "x" * 48]


def _lines(table, width=100):
  console = Console(width=width, record=True, file=io.StringIO())
  console.print(table)
  return console.export_text().splitlines()


def test_the_console_table_fits_and_holds_the_means(fake):
  study = fake.study()
  table = console_table(study)
  assert isinstance(table, Table)
  lines = _lines(table)
  text = "\n".join(lines)
  assert max(map(len, lines)) <= 100
  assert "…" not in text
  for arm in study["arms"].values():
    accuracy, trace = (arm["summary"][k] for k in ("accuracy_cls", "hessian_trace"))
    assert f"{100 * accuracy['mean']:.1f}" in text
    assert f"[{100 * accuracy['low']:.1f}, {100 * accuracy['high']:.1f}]" in text
    assert f"[{trace['low']:.1f}, {trace['high']:.1f}]" in text
  for verdict in study["verdicts"]:
    assert verdict["claim"] in text
  assert "✗ contradicted" in text


def test_the_console_table_with_hostile_and_long_labels(fake):
  study = fake.study({f"a{k}": (n, "", {}) for k, n in enumerate(("[bold]x[/bold]", "W" * 80, fake.SPACED))})
  for arm in study["arms"].values():
    arm["summary"]["hessian_trace"] = dict(mean=123456.7, low=-123456.7, high=9876543.2, sd=1.0, n=3)
  lines = _lines(console_table(study))
  assert max(map(len, lines)) <= 100
  text = "\n".join(lines)
  assert "[bold]x" in text
  assert sum(line.count("W") for line in lines) == 80
  assert "123,456.7" in text


def _set(tree, path, value):
  tree = copy.deepcopy(tree)
  *parents, last = path
  node = tree
  for key in parents:
    node = node[key]
  if value is _set:
    del node[last]
  else:
    node[last] = value
  return tree


@pytest.mark.parametrize(
  ("path", "value", "message"),
  [
    (["schema"], "jaxkd.forensics/9", r"forensics.schema is 'jaxkd.forensics/9'; this version reads"),
    (["models"], [], r"forensics.models is \[\], expected a list with at least 1"),
    (["models", 1, "name"], _set, r"forensics.models\[1\].name is missing; .* has accuracy, attention"),
    (["models", 1, "name"], "Baseline", r"expected different names"),
    (["models", 0, "hessian", "trace"], "12", r"models\[0\].hessian.trace is '12', expected a number"),
    (
      ["models", 0, "attention", "layer_distance", "mean"],
      [1.0],
      r"layer_distance.mean has 1 layers, mean_distance 4",
    ),
    (["models", 0, "accuracy", "cls"], 0.9, r"accuracy.cls is 0.9, expected an object"),
    (["cka", 0, "b"], "nobody", r"cka\[0\].b is 'nobody', expected one of Baseline"),
    (["cka", 0, "layers_a"], ["x"], r"cka\[0\].matrix is not 1 x 4"),
  ],
)
def test_bad_forensics_are_refused(fake, tmp_path, path, value, message):
  result = fake.forensics()
  check_forensics(result)
  with pytest.raises(ValueError, match=message):
    forensics_report(_set(result, path, value), tmp_path)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ("path", "value", "message"),
  [
    (["schema"], None, r"study.schema is None"),
    (["baseline"], "cnn", r"study.baseline is 'cnn', expected one of the arms none, cnn_kd"),
    (["arms", "cnn_kd", "label"], "Baseline", r"expected different labels"),
    (["arms", "cnn_kd", "runs"], [], r"arms.cnn_kd.runs is \[\]"),
    (
      ["comparisons", 0, "metric"],
      "speed",
      r"comparisons\[0\].metric is 'speed', expected one of accuracy_cls",
    ),
    (["comparisons", 0, "b"], "x", r"comparisons\[0\].b is 'x'"),
    (["verdicts", 0, "verdict"], "true", r"verdicts\[0\].verdict is 'true', expected one of supported"),
    (["curves", "who"], {"step": []}, r"study.curves is 'who'"),
    (["conditions"], _set, r"study.conditions is missing"),
  ],
)
def test_bad_studies_are_refused(fake, tmp_path, path, value, message):
  study = fake.study()
  check_study(study)
  bad = _set(study, path, value)
  with pytest.raises(ValueError, match=message):
    study_report(bad, fake.forensics(), tmp_path)
  with pytest.raises(ValueError, match=message):
    console_table(bad)
  assert list(tmp_path.iterdir()) == []


def test_bad_runs_are_refused(fake, tmp_path):
  run = fake.training(rows=3)
  check_training(run)
  with pytest.raises(ValueError, match=r"run.rows\[1\].step is missing; run.rows\[1\] has loss"):
    training_report(_set(run, ["rows", 1, "step"], _set), tmp_path)
  with pytest.raises(ValueError, match=r"run is a list, expected an object with schema 'jaxkd.training/1'"):
    training_report([], tmp_path)


def test_study_tables_as_files(fake):
  """Full precision in CSV, in the stored unit; LaTeX as the page shows it."""
  study = fake.study()
  files = study_exports(study)
  rows = list(csv.DictReader(io.StringIO(files["differences.csv"])))
  assert len(rows) == len(study["comparisons"])
  first, c = rows[0], study["comparisons"][0]
  assert float(first["mean"]) == c["mean"]
  assert float(first["bootstrap_low"]) == c["bootstrap_low"]
  assert (first["seeds_for_observed"], first["seeds_for_smallest"]) == ("12", "")
  runs = list(csv.DictReader(io.StringIO(files["runs.csv"])))
  assert len(runs) == sum(len(a["runs"]) for a in study["arms"].values()) * len(study["metrics"])
  assert "about 210 seeds would find it" in files["verdicts.csv"]
  assert r"p{0.36\linewidth}" in files["verdicts.tex"]
  assert r"with 80 \% probability" in files["verdicts.tex"]
  for name in ("arms.tex", "differences.tex", "verdicts.tex"):
    assert files[name].count(r"\begin{tabular}") == files[name].count(r"\end{tabular}") == 1


def test_studies_written_before_the_bootstrap_are_still_drawn(fake, tmp_path):
  study = fake.study()
  new = ("bootstrap_low", "bootstrap_high", "g", "g_low", "g_high", "power")
  summaries = [s for a in study["arms"].values() for s in a["summary"].values()]
  for entry in [*study["comparisons"], *study["verdicts"], *summaries]:
    for key in new:
      entry.pop(key, None)
  page = study_report(study, fake.forensics(fake.THREE), tmp_path).read_text()
  assert "Intervals over seeds" in page
  assert study_exports(study)["differences.csv"].count("\n") == 1 + len(study["comparisons"])
