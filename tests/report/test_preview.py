"""The preview: words, pictures and columns agree with what training draws; the command writes a picture."""

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from PIL import Image

from jaxkd import config as configs
from jaxkd import data
from jaxkd.data.augment import make_views
from jaxkd.main import main
from jaxkd.preview import preview
from jaxkd.report.preview import _figure
from jaxkd.report.style import RC
from tests import tiny

CONFIG = tiny.config(
  data={
    "channels": 3,
    "augment": {"crop": 1, "policy": "trivialaugment", "erase": 1.0, "mixup": 0.8, "brightness": 0.2},
    "views": {"local_count": 1, "local_size": 4},
  },
  teachers={
    "far": {"weights": "nowhere", "size": 16, "view": "same"},
    "own": {"weights": "ema", "view": "aligned"},
  },
  train={"ema": 0.9},
)


@pytest.fixture(scope="module")
def grid():
  return preview(CONFIG, 4)


def test_columns_are_the_views_of_training(grid):
  titles = [c["title"] for c in grid["columns"]]
  assert titles == ["original", "student", "aligned", "far (no weights): same", "own: aligned", "local 1"]
  columns = dict(zip(titles, grid["columns"], strict=True))
  sample = data.balanced_sample(data.load(CONFIG.data).train, 4, seed=CONFIG.seed)
  options = {"augment": CONFIG.data.augment.to_dict(), "views": CONFIG.data.views.to_dict()}
  mean = data.load(CONFIG.data).mean
  make = jax.jit(lambda x, k: make_views(x, k, mean=mean, **options))
  seen = make(jnp.asarray(sample.images), jax.random.key(CONFIG.seed))
  for title, view in (
    ("original", "clean"),
    ("student", "student"),
    ("aligned", "aligned"),
    ("local 1", "local"),
  ):
    np.testing.assert_allclose(columns[title]["images"], seen[view], atol=1e-6)
  np.testing.assert_allclose(columns["own: aligned"]["images"], seen["aligned"], atol=1e-6)
  assert columns["far (no weights): same"]["images"].shape == (4, 16, 16, 3)
  assert columns["far (no weights): same"]["notes"][0] == "16 x 16"


def test_notes_say_what_was_drawn(grid):
  student, aligned = grid["columns"][1]["notes"], grid["columns"][2]["notes"]
  for i, note in enumerate(student):
    assert "brightness ×" in note
    assert "erase" in note
    assert f"% row {4 - i}" in note
    assert "brightness" not in aligned[i]
  assert [n.split(":")[0] for n in grid["columns"][0]["notes"]] == ["row 1", "row 2", "row 3", "row 4"]
  assert "policy trivialaugment" in grid["subtitle"]
  assert "policy_magnitude" not in grid["subtitle"], "only what differs from the defaults"


def test_no_two_texts_and_no_text_and_picture_overlap(grid):
  long = "brightness ×0.123, a_long_operation_name -0.123, " * 6
  crowded = {**grid, "columns": [{**c, "notes": [long] * 4} for c in grid["columns"]], "subtitle": long}
  with matplotlib.rc_context(RC):
    figure = _figure(crowded)
    figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in figure.texts] + [a.get_window_extent() for a in figure.axes]
  assert all(b.x0 >= 0 and b.x1 <= figure.bbox.x1 and b.y0 >= -1 for b in boxes)
  for i, a in enumerate(boxes):
    for b in boxes[:i]:
      assert not (a.x0 < b.x1 - 1 and b.x0 < a.x1 - 1 and a.y0 < b.y1 - 1 and b.y0 < a.y1 - 1)


def test_the_command_writes_a_picture_and_refuses_others(tmp_path, capsys):
  out = tmp_path / "p.png"
  config = "configs/quickstart.py"
  assert main(["preview", f"--config={config}", "--count", "2", "-o", str(out)]) == 0
  with Image.open(out) as image:
    assert image.width > 300
  assert main(["preview", f"--config={config}", "--count", "0"]) == 2
  assert "--count 0 is out of range" in capsys.readouterr().err
  assert main(["preview", f"--config={config}", "-o", "p.jpg"]) == 2
  assert "p.jpg is no .png file" in capsys.readouterr().err


def test_a_study_shows_the_teachers_of_its_arms():
  raw = tiny.config().to_dict()
  term = {"kind": "soft_kd", "teacher": "cnn"}
  arm = {"teachers": {"cnn": {"weights": "cnn"}}, "terms": {"kd": term}}
  study = configs.complete(
    {**raw, "study": {"arms": {"none": {"terms": {"ce": tiny.CE}}, "kd": arm, "kd2": arm}}}
  )
  titles = [c["title"] for c in preview(study, 2)["columns"]]
  assert titles == ["original", "student", "aligned", "cnn (no weights): aligned"]
