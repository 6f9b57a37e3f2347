"""Configs from JSON and YAML, and a run's own config again."""

import subprocess
import sys
from pathlib import Path

import pytest

from docs import config_reference
from jaxkd import config as configs
from jaxkd import config_files
from jaxkd.errors import UserError

ROOT = Path(__file__).parent.parent
QUICKSTART = str(ROOT / "configs" / "quickstart.py")
FROM_FILE = ROOT / "configs" / "from_file.py"


@pytest.fixture
def stored(tmp_path):
  """A config as a run and a user keep it: in config.json, run.yaml and run.yml."""
  config = configs.load(QUICKSTART, {"optim.milestones": "15", "model.widths": "8,16"})
  (tmp_path / "config.json").write_text(configs.to_json(config))
  for name in ("run.yaml", "run.yml"):
    (tmp_path / name).write_text(configs.to_yaml(config))
  return tmp_path, config


@pytest.mark.parametrize("name", ["config.json", "run.yaml", "run.yml", ""])
def test_a_stored_config_is_the_same_again(stored, name):
  folder, config = stored
  assert configs.load(f"{FROM_FILE}:{folder / name}") == config
  if name:
    assert configs.load(str(folder / name)) == config
    changed = configs.load(str(folder / name), {"optim.lr": "0.5"})
    assert configs.difference(config, changed) == {"optim.lr": (config.optim.lr, 0.5)}


def test_yaml_as_people_write_it(tmp_path):
  path = tmp_path / "c.yaml"
  path.write_text(
    "optim: {lr: 3e-4, milestones: [1, 2.5], schedule: step, warmup_epochs: 0}\n"
    "train:\n  ema: 1e-1\nteachers:\nterms:\n  ce:\n    kind: cross_entropy\n"
  )
  config = configs.load(str(path))
  assert (config.optim.lr, config.optim.milestones, config.train.ema) == (3e-4, (1.0, 2.5), 0.1)


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("c.json", '{"seed": 1,\n"seed": 2}', "key 'seed' is given twice"),
    ("c.json", "[1]", "is not a section"),
    ("c.json", '{"optim": 3}', "config key 'optim': 3 is not a section"),
    ("c.json", '{"optim": {"lr": NaN}}', "optim.lr.* out of range"),
    ("c.json", "", "line 1: Expecting value"),
    ("c.json", "[" * 100_000, "c.json"),
    ("c.yaml", "seed: 1\nterms: {a: 1, a: 2}\n", "line 2: key 'a' is given twice"),
    ("c.yaml", "a: &x [*x]\n", "unknown config key 'a'"),
    ("c.yaml", "!!python/object/apply:os.system [ls]\n", "line 1: could not determine a constructor"),
    ("c.yaml", "", "the config: None is not a section"),
    ("c.yaml", "1: 2\n", "unknown config key '1'"),
    ("c.yaml", "terms: {items: {}}\n", "'items' cannot be a name"),
    ("c.yaml", "terms: {a.b: {}}\n", "'a.b' cannot be a name"),
    ("c.yaml", "terms: {a: 3}\n", "config key 'terms.a': 3 is not a section"),
    ("c.yaml", "terms: {a: {kind: [1]}}\n", r"terms.a.kind: unknown loss \[1\]"),
  ],
)
def test_files_that_hold_no_config_are_told_with_their_line(tmp_path, name, text, message):
  path = tmp_path / name
  path.write_text(text)
  for spec in (str(path), f"{FROM_FILE}:{path}"):
    with pytest.raises(UserError, match=message) as e:
      configs.load(spec)
    assert e.value.hint


def test_files_and_arguments_that_do_not_go_together(tmp_path):
  (tmp_path / "c.json").write_text("{}")
  (tmp_path / "c.txt").write_text("{}")
  (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
  for spec, message in (
    (f"{tmp_path / 'c.json'}:smoke", "takes no argument, ':smoke' was given"),
    (str(FROM_FILE), "names no file"),
    (f"{FROM_FILE}:{tmp_path / 'c.txt'}", "holds no plain values"),
    (f"{FROM_FILE}:{tmp_path / 'd.json'}", "d.json does not exist"),
    (str(tmp_path / "latin.yaml"), "not UTF-8"),
  ):
    with pytest.raises(UserError, match=message) as e:
      configs.load(spec)
    assert e.value.hint


def test_configs_do_not_import_jax():
  code = f"import sys; from jaxkd import config; config.load({QUICKSTART!r}); sys.exit('jax' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_reference_is_current():
  assert config_reference.FILE.read_text() == config_reference.text(), "run python -m docs.config_reference"
  assert "| `optim.milestones` | list of numbers |" in config_reference.text()


def test_a_shipped_preset_is_found_by_its_name_in_any_folder(tmp_path, monkeypatch):
  expected = configs.to_json(configs.load(f"{config_files.SHIPPED / 'quickstart.py'}:smoke"))
  monkeypatch.chdir(tmp_path)
  for name in ("quickstart", "quickstart.py", "configs/quickstart.py"):
    assert configs.to_json(configs.load(f"{name}:smoke")) == expected
  own = "{'seed': 7, 'terms': {'ce': {'kind': 'cross_entropy'}}}"
  Path("quickstart.py").write_text(f"def get_config(arg=None):\n  return {own}\n")
  assert configs.load("quickstart.py").seed == 7  # an own file goes first
  with pytest.raises(UserError) as e:
    configs.load("elsewhere/quickstart.py")
  assert "does not exist" in e.value.message
  with pytest.raises(UserError) as e:
    configs.load("quickstrt")
  assert "'quickstart.py'" in e.value.hint
  Path("quickstart.py").unlink()
  with pytest.raises(UserError) as e:
    configs.load("quickstrt")
  assert "'quickstart'" in e.value.hint
