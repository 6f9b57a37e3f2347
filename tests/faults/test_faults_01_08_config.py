"""Faults 1 to 8: a wrong config ends with exit code 2 and two lines that name value, limit and fix.

Each goes through the command line; nothing is compiled, and no run folder appears.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxkd.main import main
from tests import tiny

ROOT = Path(__file__).parents[2]
KD = {
  "teachers": {"cnn": {"weights": "ema", "view": "same"}},
  "terms": {"kd": {"kind": "soft_kd", "teacher": "cnn"}, "ce": tiny.CE},
  "train": {"ema": 0.9, "batch_size": 16, "steps": 1},
}
compiled: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
  lambda event, _, **more: compiled.append(event) if "backend_compile" in event else None
)


def write(folder, **more):
  """The tiny run as a config file."""
  path = folder / "run.json"
  path.write_text(json.dumps(tiny.config(**more).to_dict()))
  return path


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
  """`refused(*argv, config=...)`: the message and the hint of a run that is refused as it should be."""
  monkeypatch.chdir(tmp_path)

  def run(*argv, config=None):
    before, count = set(tmp_path.iterdir()), len(compiled)
    config = config or write(tmp_path, **KD)
    before |= {Path(config)} & set(tmp_path.iterdir())
    capsys.readouterr()
    assert main(["train", f"--config={config}", "--workdir=run", *argv]) == 2
    out, err = capsys.readouterr()
    lines = err.strip().splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["error", "hint"], err
    assert not out
    assert set(tmp_path.iterdir()) == before, "a refused command leaves nothing behind"
    assert len(compiled) == count, "refused only after a compilation"
    return lines[0].removeprefix("error: "), lines[1].removeprefix("hint: ")

  return run


def test_a_compilation_would_be_seen():  # negative control of `refused`
  count = len(compiled)
  jax.jit(lambda x: x * 3.25)(jax.numpy.ones(3))
  assert len(compiled) > count


def test_fault_01_a_misspelt_key_is_named_with_a_suggestion(refused):
  message, hint = refused("--config.terms.kd.temprature=2")
  assert "'terms.kd.temprature'" in message
  assert hint == "did you mean 'temperature'?"


@pytest.mark.parametrize("value", ["2.5", "abc", "true", "1e2", "[1]"])
def test_fault_02_a_value_of_another_type_names_key_value_and_type(refused, value):
  message, hint = refused(f"--config.train.batch_size={value}")
  assert "'train.batch_size'" in message
  assert value in message.lower()
  assert "is not a whole number" in message
  assert "128" in hint


@pytest.mark.parametrize(
  ("key", "value", "limit"),
  [
    ("optim.lr", "nan", "> 0 and <= 100"),
    ("optim.lr", "inf", "> 0 and <= 100"),
    ("optim.lr", "-1", "> 0 and <= 100"),
    ("optim.lr", "0", "> 0 and <= 100"),
    ("terms.kd.temperature", "0", "> 0"),
    ("terms.kd.temperature", "nan", "> 0"),
    ("terms.kd.weight", "-0.5", ">= 0"),
    ("terms.kd.weight", "inf", ">= 0"),
    ("terms.ce.smoothing", "1.5", ">= 0 and <= 0.999"),
    ("train.ema", "1.5", ">= 0 and <= 1"),
    ("optim.milestones", "15,-1", "> 0"),
    ("seed", "99999999999", ">= 0 and <= 2147483647"),
  ],
)
def test_fault_03_a_number_out_of_range_states_the_range(refused, key, value, limit):
  message, hint = refused(f"--config.{key}={value}")
  assert f"'{key}'" in message
  assert value.split(",")[-1] in message
  assert f"allowed: {limit}" in hint


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("c.py", None, "does not exist"),
    ("c.py", "x = 1\n", "has no get_config"),
    ("c.py", "x = 1\ndef get_config(arg=None)\n  return {}\n", "c.py line 2: expected ':'"),
    ("c.py", "def get_config(arg=None):\n  return 1 / 0\n", "c.py line 2: ZeroDivisionError"),
    ("c.py", "import nowhere\n", "c.py line 1: ModuleNotFoundError"),
    ("c.py", "def get_config(arg=None):\n  return 3\n", "the config: 3 is not a section"),
    ("c.json", '{"seed": 1,\n "optim" {}}', "c.json line 2: Expecting ':' delimiter"),
    ("c.yaml", "seed: 1\noptim: {lr: [1\nterms: 3\n", "c.yaml line 3"),
    ("c.yaml", None, "c.yaml does not exist"),
    ("c.toml", "seed = 1\n", "is not a Python file"),
  ],
)
def test_fault_04_each_way_a_config_file_fails_has_its_message(refused, tmp_path, name, text, message):
  if text is not None:
    (tmp_path / name).write_text(text)
  found, _ = refused(config=tmp_path / name)
  assert f"config file {tmp_path / name}" in found or message.startswith("the config")
  assert message in found


@pytest.mark.parametrize(
  ("argument", "words"),
  [
    ("model.patch_size=3", ("patch_size=3", "image_size=8x8", "patch sizes: 2, 4", "image sides: 6 or 9")),
    ("data.image_size=10", ("patch_size=4", "image_size=10x10", "patch sizes: 2, 5", "image sides: 8 or 12")),
    ("model.heads=3", ("heads=3", "width=16", "nearest: 2, 4")),
  ],
)
def test_fault_05_sizes_that_do_not_divide_name_both_and_the_nearest(refused, argument, words):
  message, _ = refused(f"--config.{argument}")
  assert all(word in message for word in words), message


def test_fault_05_crops_must_hold_whole_patches(refused, tmp_path):
  views = {"views": {"local_count": 1, "local_size": 6}}
  message, hint = refused(config=write(tmp_path, **{**KD, "data": views}))
  assert "data.views.local_size=6" in message
  assert "patch_size=4" in message
  assert "4 or 8" in hint


TOKENS = {"kind": "token_cosine", "teacher": "cnn", "student_taps": ("block00/tokens",)}


@pytest.mark.parametrize(
  ("term", "message", "field"),
  [
    ({"kind": "soft_kd", "teacher": ""}, "terms.t: 'soft_kd' needs a teacher", "terms.t.teacher"),
    ({**TOKENS, "teacher": "dino"}, "terms.t.teacher: no teacher 'dino'", "teachers.dino"),
    (
      {**TOKENS, "teacher_taps": ("features",)},
      "terms.t.teacher_taps: 'features' of teacher 'cnn' has no tokens",
      "stageN",
    ),
    (
      {**TOKENS, "teacher_taps": ("stage3",)},
      "terms.t.teacher_taps: teacher 'cnn' has no 'stage3'",
      "features",
    ),
    ({**TOKENS, "student_taps": ()}, "terms.t.student_taps is empty", "student_taps"),
  ],
)
def test_fault_06_a_term_without_what_it_needs_names_the_field(refused, tmp_path, term, message, field):
  raw = tiny.config(**KD).to_dict()
  raw["terms"]["t"] = term
  path = tmp_path / "term.json"
  path.write_text(json.dumps(raw))
  found, hint = refused(config=path)
  assert message in found
  assert field in hint


def test_fault_07_a_batch_larger_than_the_data_set_names_both(refused):
  message, hint = refused("--config.train.batch_size=100")
  assert "batch size 100 is larger than the 76 training images" in message
  assert "at most 76" in hint


def test_fault_07_a_batch_that_the_devices_do_not_divide_names_both(tmp_path):
  argv = [f"--config={write(tmp_path, **KD)}", "--workdir=run", "--config.train.batch_size=20"]
  env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
  command = [sys.executable, "-m", "jaxkd.main", "train", *argv]
  done = subprocess.run(
    command, cwd=tmp_path, env={**env, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
  )
  assert done.returncode == 2, done.stderr
  assert done.stderr.splitlines() == [
    "error: batch size 20 is not divisible by 8 devices",
    "hint: set --config.train.batch_size=16 or 24",
  ]
  assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_fault_07_fsdp_must_divide_the_devices(refused):
  number = jax.device_count() + 1
  message, hint = refused(f"--config.sharding.fsdp={number}")
  assert f"sharding.fsdp={number} does not divide {jax.device_count()} device" in message
  assert "divisor" in hint


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  """A run of one step on 4 classes."""
  folder = tmp_path_factory.mktemp("teacher")
  cnn = {"name": "adaptive_cnn", "widths": (4,), "depths": (1,), "stem_pool": False}
  path = write(folder, model=cnn, train={"steps": 1, "batch_size": 16})
  with jax.numpy_dtype_promotion("standard"):
    assert main(["train", f"--config={path}", f"--workdir={folder / 'cnn'}"]) == 0
  return folder / "cnn"


def test_fault_08_a_teacher_of_other_classes_names_counts_and_both(refused, teacher):
  more = {"teachers": {"cnn": {"weights": str(teacher)}}, "train": {"steps": 1, "batch_size": 16}}
  raw = tiny.config(**{**KD, **more}).to_dict()
  raw["data"]["classes"] = 5
  path = Path("classes.json").absolute()
  path.write_text(json.dumps(raw))
  message, hint = refused(config=path)
  assert f"teachers.cnn ({teacher}) has 4 classes, data 'synthetic' has 5" in message
  assert "same classes" in hint
