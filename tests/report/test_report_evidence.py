"""Pages and figures of further evidence: nothing overlaps, everything is shown, escaped, exported, and small."""

import csv
import io
import re

import pytest

from jaxkd.report import evidence_figures, forensics_exports, forensics_report, page
from jaxkd.report.exports import csv_text, latex, latex_text
from jaxkd.report.style import marks, save
from jaxkd.report.tables import Cell, Table
from tests.report.test_report_figures import collisions
from tests.report.test_report_page import Page, check_structure

SECTIONS = {
  "attention",
  "curvature",
  "locality",
  "robustness",
  "knowledge",
  "alignment",
  "saliency",
  "features",
}


@pytest.mark.parametrize("count", [1, 3, 8])
def test_no_labels_overlap(fake, count):
  names = (fake.LONG,) if count == 1 else fake.EIGHT[:count]
  result, pictures = fake.evidence(fake.forensics(names, layers=12 if count == 8 else 4, cnn=fake.THREE[1:2]))
  styles = marks(m["name"] for m in result["models"])
  panels = evidence_figures.evidence_panels(result, styles, pictures)
  assert set(panels) == SECTIONS
  drawn = {p.key: p.figure for section in panels.values() for p in section[:6]}
  assert len(drawn) >= 13
  assert {key: bad for key, figure in drawn.items() if (bad := collisions(figure))} == {}


def test_the_page_shows_every_kind_and_says_that_one_checkpoint_decides_nothing(fake, tmp_path):
  result, pictures = fake.evidence(fake.forensics((*fake.THREE, fake.NASTY), cnn=("CNN-Distilled",)))
  result["cka"] = result["cka"][:2]
  page = Page(forensics_report(result, tmp_path, pictures=pictures))
  check_structure(page)
  assert "<script" not in page.source
  shown = {f["attrs"]["id"].removeprefix("figure-") for f in page.all("figure")}
  wanted = {"receptive_field", "receptive_maps", "spectrum", "spectrum_depth", "robustness_shuffle"}
  wanted |= {
    "robustness_occlude",
    "cue_conflict",
    "probes_knn",
    "probes_linear",
    "rollout",
    "attention_classes",
  }
  wanted |= {"hessian_types", "hessian_heads", "eigenvalues", "eigenvalue_density", "landscape"}
  wanted |= {f"{kind}_{n}" for kind in ("saliency", "features") for n in fake.THREE}
  assert wanted <= shown
  verdicts = page.table("Claims about training methods")[1:]
  assert len(verdicts) == 6
  assert {row[1] for row in verdicts} == {"? undecided"}
  assert "One checkpoint each decides nothing" in page.source
  assert page.table("Flatness in other measures")[1][1:] == [
    "0.5000radius 0.05",
    "0.6000radius 0.5",
    "40.0± 2.0",
    "30.00",
  ]
  rows = page.table("What differs from Baseline beyond the choice of images")[1:]
  assert rows[0] == ["CNN-Distilled", "Accuracy (points)", "+20.0[+10.0, +50.0]", "0.030", "yes"]
  assert rows[1][4] == "no"


def test_eight_models_with_everything_stay_under_5_megabytes(fake, tmp_path, monkeypatch):
  monkeypatch.setattr(
    page, "save", lambda figure, stem: save(figure, None)
  )  # the page alone, no files beside it
  result, pictures = fake.evidence(fake.forensics(fake.EIGHT, layers=12, cnn=("Teacher",)))
  assert forensics_report(result, tmp_path, pictures=pictures).stat().st_size < 5e6


def test_tables_hold_the_numbers_in_full_precision(fake):
  result, _ = fake.evidence(fake.forensics())
  files = forensics_exports(result)
  assert {"models.csv", "layers.csv", "heads.csv", "hessian.csv", "similarity.csv", "differences.csv"} <= set(
    files
  )
  read = {n: list(csv.DictReader(io.StringIO(t))) for n, t in files.items() if n.endswith(".csv")}
  first = result["models"][0]
  heads = [r for r in read["heads.csv"] if r["name"] == "Baseline" and r["statistic"] == "mean_distance"]
  assert [float(r["value"]) for r in heads] == [v for row in first["attention"]["mean_distance"] for v in row]
  assert [(r["layer"], r["head"]) for r in heads[:4]] == [
    ("block00", "0"),
    ("block00", "1"),
    ("block00", "2"),
    ("block01", "0"),
  ]
  trace = next(r for r in read["hessian.csv"] if r["name"] == "Baseline" and r["part"] == "block01")
  assert float(trace["trace"]) == first["hessian"]["per_block"]["block01"][0]
  cells = sum(len(c["matrix"]) * len(c["matrix"][0]) for c in result["cka"])
  assert len([r for r in read["similarity.csv"] if r["measure"] == "cka_linear"]) == cells
  assert "90.0 {\\footnotesize [87.0, 92.0]}" in files["models.tex"]


def test_cells_cannot_run_in_a_spreadsheet_or_in_latex():
  assert (
    csv_text([{"a": "=1+1", "b": 0.1 + 0.2, "c": None}], ("a", "b", "c"))
    == "a,b,c\n'=1+1,0.30000000000000004,\n"
  )
  assert latex(r"50% of $x_1 & \input{y}") == r"50\% of \$x\_1 \& \textbackslash{}input\{y\}"
  text = latex_text(Table("A_b", ["x", "y"], [[Cell("a&b"), Cell("−1", "± 2")]], frozenset({1})))
  assert r"\caption{A\_b}" in text
  assert r"a\&b & $-$1 {\footnotesize $\pm$ 2} \\" in text
  assert r"\begin{tabular}{lr}" in text
  assert not re.search(r"(?<!\\)[_%]", text.split("\n", 1)[1].replace(r"\%", ""))
