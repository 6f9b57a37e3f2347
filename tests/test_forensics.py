"""`forensics` and `analyze` end to end on tiny runs: every metric, paired comparisons, predicted time, any mix of
architectures, and the same numbers on eight devices as on one."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxkd import cost, schema, subjects
from jaxkd.analysis import forensics as analyses
from jaxkd.analysis.examination import Subject
from jaxkd.analysis.forensics import METRICS, Observed
from jaxkd.data import Split
from jaxkd.errors import UserError
from jaxkd.forensics import PICTURED, Budget, chosen_metrics, forensics
from jaxkd.main import main
from jaxkd.report import page, style
from jaxkd.train import train
from tests import tiny

pytestmark = pytest.mark.usefixtures("optax_promotion")
SMALL = ["--probes=3", "--hessian-images=8", "--images=16"]
CNN = {"name": "adaptive_cnn", "widths": (4, 8), "depths": (1, 1), "stem_pool": False}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, optax_promotion):
  """A ViT, a CNN of the same classes, and a ViT of other classes and three channels."""
  root = tmp_path_factory.mktemp("runs")
  train(tiny.config(train={"steps": 2}), root / "vit")
  train(tiny.config(train={"steps": 2}, model=CNN, terms={"ce": {"kind": "cross_entropy"}}), root / "cnn")
  train(tiny.config(train={"steps": 1}, data={"classes": 3, "channels": 3}), root / "other")
  return root


def result_of(out):
  return json.loads((out / "forensics.json").read_text())


def drawn(stem):
  """Of the figure files only the saliency's: the page has its own copies, and `tests/report` looks at the formats."""
  return stem if stem is not None and stem.name.startswith("saliency") else None


def test_every_metric_of_a_mix_of_architectures(runs, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(page, "save", lambda figure, stem: style.save(figure, drawn(stem)))
  paths = [str(runs / n) for n in ("vit", "cnn", "other")]
  names = ["-n", "A/b <script>", "-n", "CNN", "-n", "Other"]
  assert main(["forensics", *paths, *names, "--metrics=all", *SMALL, "-o", str(tmp_path)]) == 0
  shown = capsys.readouterr().out
  assert shown.startswith("predicted time: about")
  result = result_of(tmp_path)
  vit, cnn, other = result["models"]
  assert result["schema"] == "jaxkd.forensics/2"
  assert result["settings"]["metrics"] == list(METRICS)
  assert {"eigenvalues", "landscape", "receptive_field", "spectrum", "robustness", "probes"} <= vit.keys()
  assert sum(v for v, _ in vit["hessian"]["per_type"].values()) == pytest.approx(
    vit["hessian"]["trace"], rel=1e-5
  )
  assert len(vit["hessian"]["per_head"]) == 4
  assert cnn["attention"] is None
  assert (other["accuracy"], other["hessian"]) == ({}, None)  # of other classes: none of its answers count
  assert other["attention"]["mean_distance"]
  assert {(c["a"], c["b"], c["kernel"]) for c in result["cka"]} >= {
    ("CNN", "Other", "rbf"),
    ("CNN", "CNN", "linear"),
  }
  assert {c["estimator"].split(",")[0] for c in result["cka"]} == {"debiased linear", "debiased RBF"}
  assert len(result["alignment"]) == 3
  assert {(c["metric"], c["b"]) for c in result["comparisons"]} == {
    ("accuracy_cls", "CNN"),
    ("hessian_trace", "CNN"),
    ("mean_distance", "Other"),
  }
  files = {p.name for p in tmp_path.iterdir()}
  assert {"A_b__script__forensics.json", "CNN_forensics.json", "tables", "figures", "report.html"} <= files
  assert "<script" not in (tmp_path / "report.html").read_text()
  assert (tmp_path / "figures" / "saliency_CNN.pdf").exists()


def test_analyze_is_one_checkpoint_alone_or_against_its_teacher(runs, tmp_path, capsys):
  vit, cnn = str(runs / "vit"), str(runs / "cnn")
  assert main(["analyze", vit, "--metrics=cka", *SMALL]) == 0
  assert "predicted time" in capsys.readouterr().out
  alone = result_of(runs / "vit" / "analysis")
  assert [(c["a"], c["b"]) for c in alone["cka"]] == [("vit", "vit")]
  np.testing.assert_allclose(np.diag(alone["cka"][0]["matrix"]), 1, atol=1e-6)
  assert alone["models"][0]["hessian"] is None
  assert main(["analyze", vit, "--against", cnn, "--metrics=cka", *SMALL, "-o", str(tmp_path)]) == 0
  assert [(c["a"], c["b"]) for c in result_of(tmp_path)["cka"]] == [
    ("vit", "vit"),
    ("vit", "cnn"),
    ("cnn", "cnn"),
  ]


def test_the_hessian_is_the_same_however_the_sample_is_cut(runs, monkeypatch):
  from jaxkd.analysis import flatness

  [subject], _ = subjects.load_subjects([str(runs / "vit")], ["a"])
  rng = np.random.default_rng(0)
  sample = Split(rng.integers(0, 256, (8, 8, 8, 1), dtype=np.uint8), rng.integers(0, 4, 8))
  found = []
  for size in (8, 2):
    monkeypatch.setattr(flatness, "CHUNK", size)
    found.append(flatness.examined(subject, sample, ("hessian",), probes=3, key=jax.random.key(0)))
  a, b = (f["hessian"]["trace"] for f in found)
  assert a == pytest.approx(b, rel=1e-4)
  assert found[0]["hessian"]["loss"] == pytest.approx(found[1]["hessian"]["loss"], rel=1e-5)


def test_paired_differences_see_what_unpaired_intervals_do_not():
  rng = np.random.default_rng(0)
  base = rng.normal(3, 1, 200)

  def seen(name, distance, trace, grid=(4, 4)):
    return Observed({"name": name, "grid": list(grid)}, {"mean_distance": distance, "hessian_trace": trace})

  near = seen("near", base + rng.normal(0.05, 0.02, 200), rng.normal(9, 5, 10))
  other_grid = seen("grid", base + 1, rng.normal(9, 5, 10), grid=(8, 8))
  found = analyses.comparisons([seen("first", base, rng.normal(9, 5, 10)), near, other_grid])
  by = {(c["metric"], c["b"]): c for c in found}
  assert set(by) == {("mean_distance", "near"), ("hessian_trace", "near"), ("hessian_trace", "grid")}
  distance, trace = by["mean_distance", "near"], by["hessian_trace", "near"]
  assert 0.04 < distance["low"] < distance["difference"] < distance["high"] < 0.06
  assert trace["low"] < 0 < trace["high"]  # the control: equal on average
  assert trace["p_holm"] >= trace["p"]
  assert analyses.comparisons([near]) == []


def test_images_are_brought_to_a_models_channels_and_size():
  class Model:
    image_size, patch_size = (16, 16), 4

  subject = Subject("a", Model(), {}, (0.5,) * 3, (0.25,) * 3, {"num_classes": 0}, 8)
  assert subject.grid == (2, 2)
  grey = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 1), dtype=np.uint8)
  seen = subject.shown(grey).images
  assert seen.shape == (2, 8, 8, 3)
  np.testing.assert_array_equal(seen[..., 0], seen[..., 2])
  flat = subject.shown(np.full((1, 12, 12, 1), 51, np.uint8)).images
  np.testing.assert_allclose(flat, (0.2 - 0.5) / 0.25, atol=1e-5)
  own = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
  np.testing.assert_allclose(subject.shown(own).images, (own / 255 - 0.5) / 0.25, atol=1e-6)


def test_colour_images_for_a_grey_model_are_refused(runs, tmp_path, capsys):
  assert main(["forensics", str(runs / "other"), str(runs / "vit"), "-o", str(tmp_path)]) == 2
  text = capsys.readouterr().err
  assert "vit takes 1 channels" in text
  assert [line.split(":")[0] for line in text.strip().splitlines()] == ["error", "hint"]


def test_metrics_are_named_or_refused():
  assert chosen_metrics("cka, hessian") == ("hessian", "cka")
  assert chosen_metrics("all") == tuple(METRICS)
  with pytest.raises(UserError, match="unknown metric 'hesian'") as e:
    chosen_metrics("hesian")
  assert e.value.hint == "did you mean 'hessian'?"
  assert set(schema.METRICS) == set(METRICS) - set(PICTURED)
  with pytest.raises(ValueError, match="unknown metric 'x'"):
    analyses.observe(None, None, None, images=1, probes=2, key=None, metrics=("x",))


def test_the_predicted_time_grows_with_what_is_asked(runs):
  [subject], _ = subjects.load_subjects([str(runs / "vit")], ["a"])
  base = {"test_images": 24, "images": 16, "hessian_images": 8, "probes": 10, "speed": 1e9}
  one = cost.predict([subject], ("hessian",), **base)
  more = cost.predict([subject], ("hessian",), **{**base, "probes": 110})
  forward = cost.forward_operations(subject) / (cost.EFFICIENCY * 1e9)
  assert more.computing - one.computing == pytest.approx(8 * cost.PROBE * 100 * forward)
  assert more.compiling == one.compiling
  two = cost.predict([subject, subject], ("hessian",), **base)
  assert (two.computing, two.compiling) == (pytest.approx(2 * one.computing), one.compiling)
  assert cost.predict([subject], ("cka",), **base).computing < one.computing
  dense = 2 * 16 * (4 * 16 * 16 + 2 * 16 * 32) * 2 / 1e6  # depth 2, some tokens: the order of magnitude
  assert 0.1 < cost.forward_operations(subject) / 1e6 / dense < 10
  assert [cost.span(s) for s in (0.2, 89, 200, 180, 7500)] == [
    "1 s",
    "89 s",
    "3 min 20 s",
    "3 min",
    "2 h 5 min",
  ]


def compared(vit, cnn, out):
  models, config = subjects.load_subjects([str(vit), str(cnn)], ["vit", "cnn"])
  budget = Budget(("hessian", "attention", "cka", "locality", "robustness"), 16, 8, 3)
  forensics(models, config, out, budget=budget, date="")
  return result_of(out)


ON_EIGHT = """
import sys
from pathlib import Path
import jax
import numpy as np
from jaxkd.analysis.streaming import spread
from tests.test_forensics import compared
compared(*map(Path, sys.argv[1:]))
assert len(spread(np.zeros((16, 2))).devices()) == jax.device_count() == 8
"""


def test_eight_devices_give_one_devices_numbers(runs, tmp_path):
  flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
  paths = [str(p) for p in (runs / "vit", runs / "cnn", tmp_path / "8")]
  env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
  done = subprocess.run([sys.executable, "-c", ON_EIGHT, *paths], env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  one, eight = compared(runs / "vit", runs / "cnn", tmp_path / "1"), result_of(tmp_path / "8")
  for a, b in zip(one["models"], eight["models"], strict=True):
    assert a["accuracy"] == b["accuracy"]
    assert a["hessian"]["trace"] == pytest.approx(b["hessian"]["trace"], rel=2e-3, abs=1e-3)
    assert a["robustness"] == b["robustness"]
    for key in ("mean_distance", "entropy") if a["attention"] else ():
      np.testing.assert_allclose(a["attention"][key], b["attention"][key], rtol=1e-5)
    distances = [m["receptive_field"]["mean_distance"]["value"] for m in (a, b)]
    np.testing.assert_allclose(*distances, rtol=1e-4)
  for a, b in zip(one["cka"], eight["cka"], strict=True):
    np.testing.assert_allclose(a["matrix"], b["matrix"], atol=2e-5)
