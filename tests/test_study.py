"""The whole study on a tiny config, through the command line: stages, restart, report, and the other commands."""

import json
from pathlib import Path

import pytest

from jaxkd import checkpoint, replicas
from jaxkd import config as configs
from jaxkd import study as study_module
from jaxkd.errors import UserError
from jaxkd.main import main
from jaxkd.study import run_study, student_config
from tests import tiny

pytestmark = pytest.mark.usefixtures("optax_promotion")

SHORT = {"epochs": 1.0, "batch_size": 16}
BLOCKS = ("block00/tokens", "block01/tokens")


def study_config():
  run = tiny.config(train=SHORT, data={"image_size": 16}).to_dict()
  ssl = tiny.dino_config().to_dict()
  ssl["train"] |= SHORT
  ssl["data"] |= {"image_size": 16, "views": {**ssl["data"]["views"], "local_size": 8}}
  cka = {"kind": "cka", "student_taps": BLOCKS, "teacher_taps": BLOCKS, "teacher": "ssl"}
  arms = {
    "none": {"label": "Baseline", "terms": {"ce": tiny.CE}},
    "cnn_kd": {
      "label": "CNN <b>",
      "teachers": {"cnn": {"weights": "cnn"}},
      "terms": {"ce": tiny.CE, "kd": {"kind": "soft_kd", "teacher": "cnn"}},
    },
    "ssl": {"label": "SSL", "teachers": {"ssl": {"weights": "ssl"}}, "terms": {"ce": tiny.CE, "cka": cka}},
  }
  cnn = {**run, "model": {"name": "adaptive_cnn", "widths": (4, 8), "depths": (1, 1), "stem_pool": False}}
  return configs.complete(
    {
      **run,
      "study": {
        "name": "tiny",
        "seeds": (0, 1),
        "teachers": {"cnn": {"label": "A CNN", "run": cnn}, "ssl": {"label": "A ViT", "run": ssl}},
        "arms": arms,
        "claims": ("accuracy_cls: cnn_kd < none < ssl", "mean_distance: none < ssl"),
        "hessian_images": 12,
        "probes": 3,
        "images": 16,
      },
    }
  )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, optax_promotion):
  root = tmp_path_factory.mktemp("study")
  (root / "study_config.py").write_text(
    "from tests.test_study import study_config\n\ndef get_config(arg=None):\n  return study_config()\n"
  )
  code = main(["study", f"--config={root / 'study_config.py'}", f"--workdir={root / 'out'}"])
  assert code == 0
  return root


def test_the_study_leaves_numbers_verdicts_and_a_page(folder):
  study = json.loads((folder / "out" / "study.json").read_text())
  assert {a: len(arm["runs"]) for a, arm in study["arms"].items()} == {"none": 2, "cnn_kd": 2, "ssl": 2}
  assert [v["verdict"] for v in study["verdicts"]] == ["undecided", "undecided"]
  assert "One teacher of each kind (cnn, ssl) is shared" in study["conditions"][0]
  page = (folder / "out" / "report.html").read_text()
  assert "CNN &lt;b&gt;" in page
  assert "CNN <b>" not in page
  rows = dict(map(tuple, study["teachers"][1]["rows"]))
  assert {
    "k-NN (k=20), frozen features",
    "k-NN (k=20), raw pixels",
    "k-NN (k=20), random initialisation",
  } <= rows.keys()


def test_arms_of_a_seed_differ_in_teachers_and_terms_only(folder):
  config = study_config()
  runs = [student_config(config, arm, 0, folder / "out") for arm in config.study.arms]
  for other in runs[1:]:
    changed = configs.difference(runs[0], other)
    assert changed
    assert all(k.startswith(("teachers", "terms")) for k in changed)


def test_a_finished_study_trains_and_examines_nothing_again(folder, monkeypatch):
  def forbidden(*_, **__):
    raise AssertionError("worked again")

  monkeypatch.setattr(study_module, "examine", forbidden)
  monkeypatch.setattr(study_module, "forensics", forbidden)
  monkeypatch.setattr("jaxkd.train.build", forbidden)
  before = (folder / "out" / "study.json").read_text()
  run_study(study_config(), folder / "out")
  assert json.loads(before)["arms"] == json.loads((folder / "out" / "study.json").read_text())["arms"]


def test_a_study_folder_of_another_study_is_refused(folder):
  other = study_config()
  with other.unlocked():
    other.optim.lr = 0.5
  with pytest.raises(UserError, match=r"optim.lr"):
    run_study(other, folder / "out")


def test_evaluate_forensics_and_inspect_need_only_the_path(folder, capsys):
  runs = [str(folder / "out" / "students" / f"{arm}_seed0") for arm in ("none", "ssl")]
  assert main(["evaluate", runs[0]]) == 0
  evaluation = json.loads(next(Path(runs[0]).glob("eval/*.json")).read_text())
  report = evaluation["heads"]["cls"]
  total, right = sum(map(sum, report["confusion"])), sum(report["confusion"][i][i] for i in range(4))
  assert report["accuracy"]["value"] == pytest.approx(right / total)
  cnn = str(folder / "out" / "teachers" / "cnn")
  out = folder / "compared"
  options = ["--probes=2", "--hessian-images=4", "--images=16", "-o", str(out)]
  assert main(["forensics", *runs, cnn, "-n", "A", "-n", "B", "-n", "A CNN", *options]) == 0
  assert {p.name for p in out.glob("*.json")} == {
    "A_forensics.json",
    "B_forensics.json",
    "A_CNN_forensics.json",
    "forensics.json",
  }
  assert (out / "report.html").exists()
  capsys.readouterr()
  assert main(["inspect", runs[0], "--json"]) == 0
  shown = json.loads(capsys.readouterr().out)
  parameters = [a for a in shown["arrays"] if a["name"].startswith("params/model")]
  assert (
    sum(a["bytes"] for a in parameters)
    == 4 * json.loads((out / "forensics.json").read_text())["models"][0]["parameters"]
  )


def test_seeds_trained_together_are_students_like_any_other(tmp_path, monkeypatch):
  monkeypatch.setattr(
    study_module, "_examined", lambda config, path: {"digest": checkpoint.load(path).digest}
  )
  config = study_config()
  with config.unlocked():
    config.study.arms = {"none": config.study.arms.none}
    config.study.replicas = True
  students = study_module._students(config, tmp_path, 2)["none"]
  assert [run["seed"] for run in students] == [0, 1]
  assert students[0]["digest"] != students[1]["digest"]
  for seed in (0, 1):
    own = study_module.student_folder(config, "none", seed, tmp_path)
    assert own == tmp_path / "students" / "none" / f"seed{seed}"
    alone = replicas.single(student_config(config, "none", 0, tmp_path), seed)
    assert configs.difference(configs.complete(checkpoint.load(own).config), alone) == {}


@pytest.mark.parametrize(
  ("change", "match"),
  [
    (lambda c: c.train.update(replicas=(0, 1)), "study.seeds"),
    (lambda c: c.study.teachers.cnn.run.train.update(replicas=(0, 1)), "a teacher is one model"),
    (lambda c: (c.study.update(replicas=True), c.train.update(patience=3)), "another step"),
  ],
)
def test_a_study_with_replicas_in_the_wrong_place_is_refused(change, match):
  config = study_config()
  with config.unlocked():
    change(config)
  with pytest.raises(UserError, match=match):
    configs.validate(config)
