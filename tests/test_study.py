"""The whole study on a tiny config, through the command line: stages, restart, report, and the other commands."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxkd import checkpoint, checkpoint_file, replicas, study_pieces
from jaxkd import config as configs
from jaxkd import study as study_module
from jaxkd.errors import IntegrityFailure, UserError
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
  assert "With the spread between these 2 seeds" in study["verdicts"][0]["power"]
  tables = {p.name for p in (folder / "out" / "tables").iterdir()}
  assert tables == {
    *(
      "arms.csv",
      "arms.tex",
      "differences.csv",
      "differences.tex",
      "runs.csv",
      "verdicts.csv",
      "verdicts.tex",
    )
  }
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
  other = study_config()
  with other.unlocked():
    other.study.smallest = ("mean_distance: 0.5",)  # asks no more than another sentence
  sizes = {
    c["metric"]: (c["power"] or {}).get("smallest") for c in run_study(other, folder / "out")["comparisons"]
  }
  assert sizes["accuracy_cls"] is None
  assert sizes["mean_distance"] == 0.5


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
  monkeypatch.setattr(study_module, "_examined", lambda config, piece, found: {"seconds": 0.0})
  config = study_config()
  with config.unlocked():
    config.study.arms = {"none": config.study.arms.none}
    config.study.replicas = True
  places = study_module.open_study(config, tmp_path)
  pieces = study_pieces.students(config)
  records = [study_module.run_piece(config, piece, places) for piece in pieces]
  assert [p.name for p in pieces] == ["students/none_seed0", "students/none_seed1"]
  assert records[0]["digest"] != records[1]["digest"]
  for piece in pieces:
    assert places.run(piece) == tmp_path / "students" / "none" / f"seed{piece.seed}"
    alone = replicas.single(student_config(config, "none", 0, tmp_path), piece.seed)
    assert configs.difference(configs.complete(checkpoint.load(places.kept(piece)).config), alone) == {}


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


# --- pieces ---

PIECE = "students/cnn_kd_seed1"


@pytest.fixture
def carried(folder, tmp_path):
  """What a study keeps, without its run folders: as on another machine, after a checkout."""
  shutil.copytree(
    folder / "out",
    tmp_path / "kept",
    ignore=lambda d, names: [n for n in names if Path(d, n, "DONE").exists()],
  )
  assert not list((tmp_path / "kept").glob("*/*/checkpoints"))
  return tmp_path


def study_command(folder, carried, *more):
  words = [f"--config={folder / 'study_config.py'}", f"--workdir={carried / 'runs'}"]
  return main(["study", *words, f"--results={carried / 'kept'}", *more])


def measured(record):
  return {k: v for k, v in record["examination"].items() if k not in ("seconds", "checkpoint")}


def test_a_piece_made_again_from_the_kept_teacher_is_the_same_to_the_bit(folder, carried):
  record = carried / "kept" / f"{PIECE}.json"
  before = json.loads(record.read_text())
  record.unlink()
  record.with_suffix(".safetensors").unlink()
  assert study_command(folder, carried, "--piece=next") == 0
  after = json.loads(record.read_text())
  assert after["digest"] == before["digest"]
  assert measured(after) == measured(before)
  assert after["rows"] == before["rows"]
  assert after["teachers"] == {"cnn": json.loads((carried / "kept/teachers/cnn.json").read_text())["digest"]}
  runs = sorted(p.parent.name for p in (carried / "runs").glob("*/*/DONE"))
  assert runs == [PIECE.split("/")[1]]  # nothing else was trained


def test_another_seed_is_another_student(folder):
  one, other = (json.loads((folder / "out" / f"students/cnn_kd_seed{s}.json").read_text()) for s in (0, 1))
  assert one["digest"] != other["digest"]
  assert one["rows"] != other["rows"]


def test_a_part_of_a_study_says_so(folder, carried, capsys):
  (carried / "kept" / f"{PIECE}.json").unlink()
  assert study_command(folder, carried, "--pieces") == 0
  listed = capsys.readouterr().out
  assert [line.split()[1] for line in listed.splitlines()[:-1]].count("done") == 7
  assert "1 of 8 pieces are left: about" in listed
  assert study_command(folder, carried, "--piece=report") == 0
  assert "partial: 5 of 6 students" in " ".join(capsys.readouterr().out.split())
  study = json.loads((carried / "kept" / "study.json").read_text())
  assert study["partial"] == "5 of 6 students"
  assert "Partial study: 5 of 6 students" in study["warnings"][0]
  assert all(v["verdict"] == "undecided" and "5 of 6" in v["reason"] for v in study["verdicts"])
  assert {c["n"] for c in study["comparisons"]} == {1}  # seed 0, which all arms have
  assert "Partial study: 5 of 6 students" in (carried / "kept" / "report.html").read_text()
  assert json.loads((folder / "out" / "study.json").read_text())["partial"] == ""


def test_a_study_may_get_more_seeds_and_other_claims(folder, carried):
  config = study_config()
  with config.unlocked():
    config.study.seeds, config.study.claims = (0, 1, 2), ("accuracy_cls: none < ssl",)
  places = study_module.open_study(config, carried / "runs", carried / "kept")
  left = [r["piece"] for r in study_pieces.listing(config, places) if r["state"] != "done"]
  assert left == ["students/none_seed2", "students/cnn_kd_seed2", "students/ssl_seed2"]
  with config.unlocked():
    config.optim.lr = 0.5
  with pytest.raises(UserError, match=r"optim.lr"):
    study_module.open_study(config, carried / "runs", carried / "kept")


def test_pieces_that_do_not_belong_together_are_refused(folder, carried):
  config, places = study_config(), study_pieces.Places(carried / "runs", carried / "kept")
  record = places.results / f"{PIECE}.json"
  entry = json.loads(record.read_text())
  record.write_text(json.dumps({**entry, "teachers": {"cnn": "0" * 64}}))
  with pytest.raises(UserError, match="learnt from another 'cnn'"):
    study_module.make_report(config, places)
  record.write_text(json.dumps({**entry, "data_digest": "0" * 64}))
  with pytest.raises(UserError, match="different data"):
    study_module.make_report(config, places)
  record.write_text(json.dumps(entry))
  shutil.copy(places.results / "students/none_seed0.safetensors", record.with_suffix(".safetensors"))
  with pytest.raises(IntegrityFailure, match="not the model"):
    study_module.make_report(config, places)
  shutil.copy(places.results / "teachers/ssl.safetensors", places.results / "teachers/cnn.safetensors")
  with pytest.raises(IntegrityFailure, match="not the model"):
    study_module.run_piece(config, study_pieces.find(config, places, PIECE), places)
  with pytest.raises(UserError, match="no piece 'students/cnn_kd_seed7'"):
    study_pieces.find(config, places, "students/cnn_kd_seed7")
  (places.results / "teachers/cnn.json").unlink()
  record.unlink()
  with pytest.raises(UserError, match=r"learns from teachers/cnn, which is not done"):
    study_module.run_piece(config, study_pieces.find(config, places, PIECE), places)


def test_a_kept_model_is_a_checkpoint_for_every_command(folder, carried, capsys):
  kept, run = carried / "kept" / f"{PIECE}.safetensors", folder / "out" / PIECE
  found, original = checkpoint.load(kept), checkpoint.load(run)
  assert found.meta == {**original.meta, "inference": "params"}
  assert (found.config, found.step) == (original.config, original.step)
  np.testing.assert_equal(found.variables, original.variables)
  again = carried / "again.safetensors"
  checkpoint_file.write(found, again)
  assert again.read_bytes() == kept.read_bytes()
  assert main(["evaluate", str(kept)]) == 0
  assert list(kept.with_suffix("").glob("eval/evaluation_*.json"))
  damaged = bytearray(kept.read_bytes())
  damaged[-1] ^= 1
  kept.write_bytes(damaged)
  with pytest.raises(IntegrityFailure, match="not those that were written"):
    checkpoint.load(kept)
