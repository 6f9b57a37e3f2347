"""Pages: self-contained, escaped, captioned, complete, and their numbers are the inputs' numbers."""

import base64
import copy
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from jaxkd.report import forensics_report, study_report, training_report
from jaxkd.report.text import clean, cleaned, number

VOID = {"meta", "link", "img", "br", "hr", "input", "polygon"}
FORBIDDEN = {"script", "iframe", "object", "embed", "audio", "video", "source", "base", "form"}


class Page(HTMLParser):
  """Elements in order as (tag, attributes, parents) with their text, checking that tags nest."""

  def __init__(self, path):
    super().__init__()
    self.source = path.read_text(encoding="utf-8")
    self.size = path.stat().st_size
    self.elements, self.stack, self.text = [], [], []
    self.feed(self.source)
    assert self.stack == []

  def handle_starttag(self, tag, attrs):
    element = dict(tag=tag, attrs=dict(attrs), parents=[e["tag"] for e in self.stack], text="", children=[])
    for parent in self.stack:
      parent["children"].append(element)
    self.elements.append(element)
    if tag not in VOID:
      self.stack.append(element)

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)
    if tag not in VOID:
      self.stack.pop()

  def handle_endtag(self, tag):
    if tag not in VOID:
      assert self.stack.pop()["tag"] == tag

  def handle_data(self, data):
    self.text.append(data)
    for element in self.stack:
      element["text"] += data

  def all(self, tag):
    return [e for e in self.elements if e["tag"] == tag]

  def table(self, caption):
    """Rows of cell texts of the table with this caption."""
    found = next(
      t
      for t in self.all("table")
      if any(c["tag"] == "caption" and c["text"] == caption for c in t["children"])
    )
    rows = [e for e in found["children"] if e["tag"] == "tr"]
    return [
      [" ".join(c["text"].split()) for c in row["children"] if c["tag"] in {"th", "td"}] for row in rows
    ]


def check_structure(page):
  """What holds for every page."""
  assert page.size < 5e6
  tags = {e["tag"] for e in page.elements}
  assert not tags & FORBIDDEN
  for element in page.elements:
    for key, value in element["attrs"].items():
      assert not key.startswith("on")
      if key in {"src", "srcset", "data", "poster"} or (key == "href" and element["tag"] == "link"):
        assert value.startswith("data:")
  assert not re.search(r"@import|url\(", page.source)
  policy = next(m for m in page.all("meta") if m["attrs"].get("http-equiv") == "Content-Security-Policy")
  assert policy["attrs"]["content"].startswith("default-src 'none'")
  assert any(m["attrs"].get("name") == "viewport" for m in page.all("meta"))
  ids = [e["attrs"]["id"] for e in page.elements if "id" in e["attrs"]]
  assert len(ids) == len(set(ids))
  assert all(a["attrs"]["href"][1:] in ids for a in page.all("a") if a["attrs"]["href"].startswith("#"))
  for image in page.all("img"):
    assert len(image["attrs"]["alt"]) > 20
    head, data = image["attrs"]["src"].split(",", 1)
    assert head == "data:image/svg+xml;base64"
    assert ElementTree.fromstring(base64.b64decode(data)).tag.endswith("svg")
  for figure in page.all("figure"):
    inside = [c["tag"] for c in figure["children"]]
    assert inside.count("img") == inside.count("figcaption") == 1
    caption = next(c for c in figure["children"] if c["tag"] == "figcaption")
    assert "Here:" in caption["text"]
    assert len(caption["text"]) > 60
  for table in page.all("table"):
    assert "div" in table["parents"]
  assert page.source.count('class="scroll"') == len(page.all("table"))
  assert "None" not in "".join(page.text)
  assert "nan" not in re.findall(r"\w+", "".join(page.text))


def test_a_forensics_page_is_complete(fake, tmp_path):
  result = fake.forensics()
  before = copy.deepcopy(result)
  path = forensics_report(result, tmp_path)
  assert result == before
  assert path == tmp_path / "report.html"
  page = Page(path)
  check_structure(page)
  sections = [s["attrs"]["id"] for s in page.all("section")]
  assert sections == ["summary", "hypotheses", "figures", "methods", "configuration", "reproduce"]
  shown = {f["attrs"]["id"].removeprefix("figure-") for f in page.all("figure")}
  pairs = {f"cka_{a}__{b}" for i, a in enumerate(fake.THREE) for b in fake.THREE[i:]}
  assert {
    "locality_spectrum",
    "layer_progression",
    "hessian_trace",
    "hessian_per_block",
    "accuracy",
  } | pairs <= shown
  for key in shown | {"summary"}:
    for suffix in ("svg", "png", "pdf"):
      assert (tmp_path / "figures" / f"{key}.{suffix}").stat().st_size > 1000
  text = "".join(page.text)
  for wanted in (
    result["command"],
    result["hardware"],
    "0.10.2",
    "terms.kd.weight = 0.5",
    "arXiv:2108.08810",
  ):
    assert wanted in text


def test_the_forensics_table_holds_the_inputs(fake, tmp_path):
  result = fake.forensics(("Baseline", "CNN"), cnn=("CNN",))
  result["cka"] = []
  result["models"][0]["attention"]["mean_distance"] = [[1.0, 2.0], [3.0, 4.5], [2.0, 2.0], [2.0, 2.0]]
  result["models"][0]["attention"]["layer_distance"]["stderr"] = [0.02, 0.04, 0.06, 0.08]
  result["models"][0]["attention"]["collapsed"] = [
    [True, False],
    [False, False],
    [False, True],
    [False, False],
  ]
  rows = Page(forensics_report(result, tmp_path)).table("The models in numbers")
  assert rows[1][0] == "Baseline deit, 5,365,076 parameters".replace("Baseline ", "Baseline")
  assert rows[1][1] == "90.0[87.0, 92.0]"
  assert rows[1][2] == "2.31± 0.05"  # 18.5 / 8 = 2.3125
  assert rows[1][4] == "2of 8"
  assert rows[1][5] == "120.0± 4.5"
  assert rows[2][2:5] == ["–no attention", "–", "–"]


def test_hostile_and_long_names(fake, tmp_path):
  result = fake.forensics(fake.EIGHT, cnn=("Teacher",))
  result["cka"] = result["cka"][7:9] + result["cka"][-1:]
  result["models"][5]["differs"] = {"<img src=x onerror=1>": "</style><script>"}
  page = Page(forensics_report(result, tmp_path))
  check_structure(page)
  assert "<script" not in page.source
  assert "&lt;script&gt;" in page.source
  assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", page.source)
  assert fake.LONG in page.source
  files = [p.name for p in (tmp_path / "figures").iterdir()]
  assert all(re.fullmatch(r"[A-Za-z0-9._-]+", f) and len(f) < 120 for f in files)


def test_one_model_with_nothing_but_accuracy(fake, tmp_path):
  result = fake.forensics(("only",))
  result["models"][0].update(hessian=None, attention=None)
  result["cka"] = []
  page = Page(forensics_report(result, tmp_path))
  check_structure(page)
  assert [f["attrs"]["id"] for f in page.all("figure")] == ["figure-accuracy"]
  assert page.all("h1")[0]["text"] == "only"


@pytest.fixture(scope="module")
def study_page(fake, tmp_path_factory):
  out = tmp_path_factory.mktemp("study")
  study = fake.study()
  study["metrics"] = [
    m for m in study["metrics"] if m["key"] in {"accuracy_cls", "mean_distance", "hessian_trace"}
  ]
  study["comparisons"] = [
    c for c in study["comparisons"] if c["metric"] in {m["key"] for m in study["metrics"]}
  ]
  result = fake.forensics([a["label"] for a in study["arms"].values()])
  result["cka"] = result["cka"][:2]
  return study, out, Page(study_report(study, result, out))


def test_a_study_page_is_complete(study_page):
  study, out, page = study_page
  check_structure(page)
  sections = [s["attrs"]["id"] for s in page.all("section")]
  assert sections[:3] == ["summary", "hypotheses", "results"]
  shown = {f["attrs"]["id"].removeprefix("figure-") for f in page.all("figure")}
  wanted = {
    "study_accuracy_cls",
    "difference_mean_distance",
    "study_distance_per_layer",
    "study_hessian_trace",
  }
  wanted |= {
    "curves_train_loss",
    "curves_validation_accuracy",
    "gradient_share_cnn_tokens",
    "terms_cnn_kd",
    "locality_spectrum",
  }
  assert wanted <= shown
  assert (out / "figures" / "study_summary.pdf").exists()
  summary = page.all("section")[0]["text"]
  for line in (*study["conditions"], *study["warnings"]):
    assert line in summary
  assert page.all("h1")[0]["text"] == study["question"]


def test_the_study_table_holds_the_inputs(study_page):
  study, _, page = study_page
  rows = page.table("Every arm in numbers")
  assert rows[0][1:3] == ["Accuracy (cls head), %", "Mean attention distance, patches"]
  for row, arm in zip(rows[1:], study["arms"].values(), strict=True):
    s = arm["summary"]["accuracy_cls"]
    assert row[0] == arm["label"] + arm["description"]
    assert row[1] == f"{100 * s['mean']:.1f}[{100 * s['low']:.1f}, {100 * s['high']:.1f}]"
    s = arm["summary"]["hessian_trace"]
    assert row[3] == f"{s['mean']:.1f}[{s['low']:.1f}, {s['high']:.1f}]"


def test_verdicts_and_teachers_are_said_in_words(study_page):
  study, _, page = study_page
  rows = page.table("Hypotheses and verdicts")[1:]
  assert [r[1] for r in rows] == ["✗ contradicted", "? undecided", "✓ supported"]
  assert [r[0] for r in rows] == [v["claim"] for v in study["verdicts"]]
  assert page.table("SSL teacher")[1:3] == [
    ["k-NN (k=20), frozen CLS", "0.910"],
    ["k-NN, raw pixels", "0.970"],
  ]
  differences = page.table("Paired differences over seeds")
  assert len(differences) == 1 + len(study["comparisons"])
  row, c = differences[1], study["comparisons"][0]
  assert row[:2] == ["Accuracy (cls head), %", "CNN, logits − Baseline"]
  assert row[2] == f"{100 * c['mean']:+.1f}".replace("-", "−")
  low, high = (f"{100 * c[k]:+.1f}".replace("-", "−") for k in ("bootstrap_low", "bootstrap_high"))
  assert row[4:8] == [f"[{low}, {high}]", "95 %", "0.030", "0.090"]
  assert row[8] == "+1.50[−0.20, +4.00]"
  assert row[9:] == ["3", f"{100 * c['power']['detectable']:.1f}", "12> 10,000 for 1.0"]
  assert "about 210 seeds would find it" in rows[1][2]
  intervals = page.table("Intervals over seeds")
  assert len(intervals) == 1 + len(study["metrics"]) * len(study["arms"])


def test_arms_keep_their_colours_in_the_forensics_section(study_page):
  study, _, page = study_page
  swatches = {}
  for row in page.all("th"):
    if polygons := [c for c in row["children"] if c["tag"] == "polygon"]:
      name = next(a["label"] for a in study["arms"].values() if row["text"].strip().startswith(a["label"]))
      swatches.setdefault(name, set()).add((polygons[0]["attrs"]["fill"], polygons[0]["attrs"]["points"]))
  assert all(len(s) == 1 for s in swatches.values())
  assert len({next(iter(s)) for s in swatches.values()}) == len(study["arms"])


def test_a_study_of_one_seed_has_no_intervals(fake, tmp_path):
  study = fake.study({k: fake.ARMS[k] for k in ("none", "cnn_kd")}, seeds=(0,))
  study["curves"], study["teachers"], study["metrics"] = {}, [], study["metrics"][:2]
  study["comparisons"] = [c for c in study["comparisons"] if c["metric"] == "accuracy_cls"]
  result = fake.forensics(("Baseline",))
  page = Page(study_report(study, result, tmp_path))
  check_structure(page)
  assert "One seed: there is no interval" in page.source
  assert (
    page.table("Every arm in numbers")[1][1]
    == f"{100 * study['arms']['none']['summary']['accuracy_cls']['mean']:.1f}"
  )
  assert "Too few seeds for an interval" in page.source


def test_a_training_page_is_complete(fake, tmp_path):
  run = fake.training(rows=50)
  page = Page(training_report(run, tmp_path))
  check_structure(page)
  shown = [f["attrs"]["id"].removeprefix("figure-") for f in page.all("figure")]
  assert shown == ["total_loss", "validation_accuracy", "learning_rate", "terms", "gradient_share"]
  rows = {r[0]: r[1:] for r in page.table("Every logged value")}
  assert rows["loss"] == [number(run["rows"][0]["loss"]), number(run["rows"][-1]["loss"]), "490"]
  assert rows["validation/accuracy_cls"][2] == "400"
  assert set(rows) >= {"loss/ce", "gradient/kd", "time/images_per_s"}
  assert page.table("Configuration")[1:] == [["optim/lr", "0.001"], ["seed", "0"]]


def test_optional_entries_may_be_missing(fake, tmp_path):
  result = fake.forensics(("a", "b"))
  for model in result["models"]:
    for key in ("digest", "step", "grid", "special_tokens"):
      del model[key]
    for key in ("entropy", "cls_dispersion"):
      del model["attention"][key]
    del model["hessian"]["per_block"]
  result["cka"] = []
  study = fake.study({"none": ("a", "", {}), "b": ("b", "", {})})
  for arm in study["arms"].values():
    del arm["terms"], arm["distance_per_layer"]
  del study["curves"]
  study["metrics"], study["comparisons"], study["verdicts"], study["teachers"] = (
    study["metrics"][:1],
    [],
    [],
    [],
  )
  check_structure(Page(study_report(study, result, tmp_path / "study")))
  run = dict(schema="jaxkd.training/1", name="bare", rows=[dict(step=1, loss=2.0)])
  check_structure(Page(training_report(run, tmp_path / "run")))


def test_the_room_does_not_import_jax():
  code = "import sys, jaxkd.report; assert not {'jax', 'torch', 'matplotlib.pyplot'} & set(sys.modules)"
  subprocess.run([sys.executable, "-c", code], check=True)


def test_clean_removes_what_a_page_cannot_hold():
  assert clean("a\x00b\u202ec\ud800d\n e") == "abcd e"
  assert cleaned({"\x07k": ["\x1b[31mx", 1, None]}) == {"k": ["[31mx", 1, None]}
