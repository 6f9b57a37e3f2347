"""Figures: no label touches another or the data, files are valid, values land where they should."""

import itertools
import re

import matplotlib.text
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from PIL import Image

from jaxkd.report import figures, plots, run_figures, study_figures, style
from jaxkd.report.plots import Guide, Row, Series
from jaxkd.report.style import MARKERS, Mark, marks, text_width, wrap

SLACK = 0.5  # pixels


def _box(text, renderer):
  return text.get_window_extent(renderer)


def _apart(a, b):
  return a.x1 <= b.x0 + SLACK or b.x1 <= a.x0 + SLACK or a.y1 <= b.y0 + SLACK or b.y1 <= a.y0 + SLACK


def collisions(figure: Figure) -> list[str]:
  """Pairs of visible labels that touch, labels outside the figure or on a data point, legends on an axes."""
  figure.draw_without_rendering()
  figure.set_layout_engine("none")
  renderer = FigureCanvasAgg(figure).get_renderer()
  texts = [t for t in figure.findobj(matplotlib.text.Text) if t.get_visible() and t.get_text().strip()]
  shown = [t for t in texts if not _hidden_tick(t, figure)]
  boxes = [(t.get_text(), _box(t, renderer)) for t in shown]
  found = [f"{a!r} touches {b!r}" for (a, x), (b, y) in itertools.combinations(boxes, 2) if not _apart(x, y)]
  width, height = figure.bbox.width, figure.bbox.height
  found += [
    f"{text!r} leaves the figure"
    for text, box in boxes
    if box.x0 < -SLACK or box.y0 < -SLACK or box.x1 > width + SLACK or box.y1 > height + SLACK
  ]
  for legend, axes in itertools.product(figure.findobj(Legend), figure.axes):
    if not _apart(legend.get_window_extent(renderer), axes.bbox):
      found.append("the legend lies on an axes")
  return found + _on_points(figure, renderer)


def _on_points(figure, renderer) -> list[str]:
  """Labels written inside an axes that lie on a drawn marker."""
  found = []
  for axes in figure.axes:
    lines = [line for line in axes.lines if line.get_marker() in {*MARKERS, "|"}]
    points = [
      p for line in lines for p in line.get_transform().transform(line.get_xydata()) if np.isfinite(p).all()
    ]
    for text in axes.texts:
      box = _box(text, renderer)
      if any(box.x0 - 2 < x < box.x1 + 2 and box.y0 - 2 < y < box.y1 + 2 for x, y in points):
        found.append(f"{text.get_text()!r} lies on a data point")
  return found


def _hidden_tick(text, figure) -> bool:
  """Tick labels beyond the limits, and those of invisible axes, exist as artists but are not drawn."""
  for axes in figure.axes:
    for axis in (axes.xaxis, axes.yaxis):
      for tick in [*axis.majorTicks, *axis.minorTicks]:
        if text in (tick.label1, tick.label2):
          low, high = sorted(axis.get_view_interval())
          return not axis.get_visible() or not low - 1e-9 <= tick.get_loc() <= high + 1e-9
  return False


def _all_forensics(result):
  styles = marks(m["name"] for m in result["models"])
  panels = figures.forensics_panels(result, styles)
  return {p.key: p.figure for section in panels.values() for p in section} | {
    "summary": figures.summary(result, styles)
  }


def test_the_collision_check_sees_collisions():
  figure = Figure(figsize=(3, 2))
  figure.text(0.3, 0.5, "one label")
  figure.text(0.32, 0.5, "another")
  figure.text(0.9, 0.1, "beyond the edge of it")
  assert len(collisions(figure)) == 2
  on_data = Figure(figsize=(3, 2))
  axes = on_data.add_subplot()
  axes.plot([0, 1, 2], [0, 1, 2], marker="o")
  axes.text(1, 1, "here", va="center")
  assert any("data point" in c for c in collisions(on_data))


@pytest.mark.parametrize("count", [1, 3, 8])
def test_no_labels_overlap_in_forensics(fake, count):
  names = {1: fake.LONG, 3: None, 8: None}[count]
  result = fake.forensics((names,) if names else fake.EIGHT[:count], layers=4 if count < 8 else 12)
  result["cka"] = result["cka"][-4:]  # the last ones have the longest names; the others differ in nothing
  found = {key: bad for key, figure in _all_forensics(result).items() if (bad := collisions(figure))}
  assert found == {}


@pytest.mark.parametrize("long", [False, True])
def test_no_labels_overlap_in_a_study(fake, long):
  arms = {f"a{k}": (n, "", {"kd": {}}) for k, n in enumerate(fake.EIGHT)} if long else fake.ARMS
  study = fake.study(arms)
  styles = marks(a["label"] for a in study["arms"].values())
  panels = study_figures.study_panels(study, styles, uniform=4.1365)
  if long:  # equal kinds of figure only once
    panels = panels | {"shares": panels["shares"][:1], "differences": panels["differences"][:1]}
  drawn = {p.key: p.figure for section in panels.values() for p in section}
  drawn["summary"] = study_figures.summary(study, styles, uniform=4.1365)
  assert {key: bad for key, figure in drawn.items() if (bad := collisions(figure))} == {}


def test_no_labels_overlap_in_training_curves(fake):
  run = fake.training(rows=60)
  panels = run_figures.run_panels([run], marks([run["name"]]))
  assert [p.key for p in panels] == [
    "total_loss",
    "validation_accuracy",
    "learning_rate",
    "terms",
    "gradient_share",
  ]
  assert {p.key: bad for p in panels if (bad := collisions(p.figure))} == {}
  shares = panels[-1].figure.axes[0].lines
  assert [set(line.get_ydata()) for line in shares] == [{0.75}, {0.25}]  # norms 3 and 1
  assert list(shares[0].get_xdata()) == [10 * k for k in range(0, 60, 5)]


@pytest.mark.parametrize("values", [(1e-6, 3e-6), (-4e5, 2.2e6), (0.0, 0.0), (1234.5, 1234.6), (-3e-4, 9e-4)])
def test_rows_and_lines_hold_any_size_of_number(values):
  mark = Mark("#000000", "o")
  items = [Row("a", mark, v, v - abs(v) / 2, v + abs(v) / 2, f"{v}", [v]) for v in values]
  guides = [Guide(min(values), "low"), Guide(max(values), "high")]
  assert (
    collisions(plots.rows(items, xlabel="x", guides=guides if values[0] != values[1] else guides[:1])) == []
  )
  line = [Series("a", mark, [0, 1], values)]
  assert collisions(plots.lines(line, xlabel="step", ylabel="y")) == []


def test_missing_numbers_are_not_drawn():
  mark = Mark("#000000", "o")
  items = [
    Row("a", mark, None),
    Row("b", mark, 1.0, None, 2.0),
    Row("c", mark, float("nan"), dots=[None, 0.5]),
  ]
  assert collisions(plots.rows(items, xlabel="x")) == []
  series = [Series("a", mark, [0, 1, 2], [1.0, None, float("nan")])]
  assert collisions(plots.lines(series, xlabel="x", ylabel="y")) == []
  figure = plots.heatmap(
    [[1.0, None]],
    rows_name="a",
    columns_name="b",
    row_labels=["0"],
    column_labels=["0", "1"],
    value_name="CKA",
  )
  assert collisions(figure) == []


def test_values_are_drawn_where_they_belong():
  mark = Mark("#D55E00", "s")
  figure = plots.rows([Row("a", mark, 2.0, 1.0, 4.0, dots=[1.5, 3.0])], xlabel="x")
  drawn = {tuple(line.get_xdata()) for line in figure.axes[0].lines}
  assert {(2.0,), (1.0, 4.0), (1.5, 3.0)} <= drawn
  band = plots.lines([Series("a", mark, [0, 1], [1.0, 2.0], [0.5, 1.5], [1.5, 2.5])], xlabel="x", ylabel="y")
  vertices = band.axes[0].collections[0].get_paths()[0].vertices
  assert {(0.0, 0.5), (0.0, 1.5), (1.0, 1.5), (1.0, 2.5)} <= {tuple(v) for v in vertices.tolist()}


def test_heatmap_keeps_orientation_and_one_scale():
  matrix = [[1.0, -0.2, 0.3], [0.4, 0.5, 0.6]]
  figure = plots.heatmap(
    matrix,
    rows_name="first",
    columns_name="second",
    row_labels=["block00/tokens", "norm/tokens"],
    column_labels=["stage0", "stage1", "stage2"],
    value_name="CKA",
  )
  axes = figure.axes[0]
  np.testing.assert_array_equal(axes.images[0].get_array(), matrix)
  assert axes.images[0].get_clim() == (0.0, 1.0)
  assert (axes.get_ylabel(), axes.get_xlabel()) == ("first", "second")
  assert [t.get_text() for t in axes.get_yticklabels()] == ["0", "norm"]
  assert [t.get_text() for t in axes.texts] == ["1.00", "−.20", ".30", ".40", ".50", ".60"]


def test_parts_are_ordered_by_depth_not_by_name():
  vit = ["block00", "block01", "block02", "block10", "cls_token", "head", "head_dist", "norm", "patch_embed"]
  cnn = ["bn1", "fc", "layer1_0", "layer2_0"]
  order = figures.depth_order([vit, cnn])
  assert order[:3] == ["bn1", "cls_token", "patch_embed"]
  assert order[3:9] == ["block00", "block01", "layer1_0", "block02", "block10", "layer2_0"]
  assert order[9:] == ["norm", "fc", "head", "head_dist"]


def test_several_grids_are_compared_as_ratios(fake):
  result = fake.forensics(("a", "b"))
  result["models"][1]["attention"]["uniform_distance"] = 8.326
  styles = marks("ab")
  panel = figures.layer_progression(result, styles)
  ratio = np.array(result["models"][1]["attention"]["layer_distance"]["mean"]) / 8.326
  np.testing.assert_allclose(panel.figure.axes[0].lines[1].get_ydata(), ratio, rtol=1e-12)
  assert "times uniform attention" in panel.read


def test_captions_name_extremes_and_overlap():
  assert figures.ranking({"b": 2.0, "a": 1.0, "c": 2.001}, 2) == "a 1.00 < b 2.00 ≈ c 2.00"
  assert figures.ranking({str(k): float(k) for k in range(6)}, 0) == "lowest 0 0, highest 5 5, 4 more between"
  assert figures.ranking({"a": None}, 2) == "no value could be computed"
  assert figures.overlap({"a": (1.0, 0.0, 2.0), "b": (3.0, 1.9, 4.0)}) == "The intervals of a and b overlap."
  assert (
    figures.overlap({"a": (1.0, 0.0, 2.0), "b": (3.0, 2.1, 4.0)})
    == "The intervals of a and b do not overlap."
  )
  items = [Series("a", Mark("", "o"), [0, 1], [1.0, 2.0]), Series("b", Mark("", "o"), [0, 1], [1.5, 4.0])]
  assert figures.widest_gap(items, 1) == " They differ most at block 1: a 2.0, b 4.0."


def test_difference_to_the_baseline_changes_sign_when_stored_the_other_way(fake):
  study = fake.study()
  row = next(c for c in study["comparisons"] if c["metric"] == "accuracy_cls" and c["b"] == "cnn_kd")
  before = study_figures.against_baseline(study, "accuracy_cls")[0]
  assert before[:4] == ("cnn_kd", row["mean"], row["low"], row["high"])
  row.update(a="cnn_kd", b="none", mean=-row["mean"], low=-row["high"], high=-row["low"])
  assert study_figures.against_baseline(study, "accuracy_cls")[0][:4] == before[:4]


def test_long_curves_are_thinned_to_means():
  values = [float(k) for k in range(4000)]
  thin = study_figures.thinned(values)
  assert len(thin) == 400
  assert thin[0] == np.mean(values[:10])
  assert thin[-1] == np.mean(values[-10:])
  assert study_figures.thinned([None, 1.0]) == [None, 1.0]


@pytest.mark.parametrize("size", [9.0, 10.0])
def test_wrapped_lines_fit_and_lose_nothing(fake, size):
  for name in fake.EIGHT:
    lines = wrap(name, 150, size, lines=20)
    assert all(text_width(line, size) <= 150 for line in lines)
    assert re.sub(r"\s", "", "".join(lines)) == re.sub(r"\s", "", style.drawable(name))
  assert wrap("W" * 80, 100, size, lines=2)[-1].endswith("…")
  assert wrap("", 100, size) == [""]
  assert wrap("two words", 1e4, size) == ["two words"]


def test_glyphs_that_the_font_lacks_become_squares():
  assert style.drawable("a漢b") == "a□b"
  assert style.drawable("σ²→−") == "σ²→−"


def test_marks_are_distinct_stable_and_shared():
  many = marks(str(k) for k in range(30))
  assert len(set(many.values())) == 30
  assert many["0"].color == "#333333"
  known = marks(["Baseline", "CNN"])
  later = marks(["CNN", "Teacher", "Baseline, seed 0"], known=known)
  assert later["CNN"] == known["CNN"]
  assert later["Baseline, seed 0"] == known["Baseline"]
  assert later["Teacher"] not in known.values()
  assert all(len(m.polygon.split()) >= 3 for m in many.values())


def test_colours_differ_for_every_common_kind_of_colour_vision():
  """Viénot, Brettel and Mollon (1999): protan and deutan projections of linear RGB."""
  protan = np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]])
  deutan = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
  colors = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in style.COLORS[:5]]) ** 2.2
  for matrix in (np.eye(3), protan, deutan):
    seen = np.clip(colors @ matrix.T, 0, 1) ** (1 / 2.2)
    gaps = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
    assert min(gaps) > 0.1
  red_green = np.array([[1.0, 0, 0], [0, 0.5, 0]])  # the control: a plain red and green pair must fail
  assert np.linalg.norm(np.subtract(*(red_green @ deutan.T)[:, :2])) < 0.1


def test_files_are_valid_and_repeatable(tmp_path):
  def draw():
    return plots.lines([Series("a $b$", Mark("#000000", "o"), [0, 1], [1.0, 2.0])], xlabel="x", ylabel="y")

  svg = style.save(draw(), tmp_path / "one.two")
  assert svg == style.save(draw(), None)
  assert (tmp_path / "one.two.svg").read_bytes() == svg
  assert b"<text" not in svg  # outlines only: no font is needed to show it
  pdf = (tmp_path / "one.two.pdf").read_bytes()
  assert pdf.startswith(b"%PDF-")
  assert pdf.rstrip().endswith(b"%%EOF")
  assert b"/Type3" not in pdf
  with Image.open(tmp_path / "one.two.png") as image:
    image.verify()
    assert image.size[0] == round(200 * style.WIDTH)
