"""The command line: exit codes, one `error:` and one `hint:` line, a help that does not import jax."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxkd.main import main, reason

ROOT = Path(__file__).parent.parent
QUICKSTART = str(ROOT / "configs" / "quickstart.py")


def lines(text):
  return [line.split(":")[0] for line in text.strip().splitlines()]


def test_help_is_fast_and_does_not_import_jax():
  code = "import sys, jaxkd.main as m; m.main(['--help']); sys.exit('jax' in sys.modules)"
  start = time.monotonic()
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
  assert done.returncode == 0
  assert "exit codes" in done.stdout
  assert time.monotonic() - start < 1.0


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["trian"], "unknown command 'trian'"),
    (["train"], "no config given"),
    (["--config=nowhere.py"], "nowhere.py does not exist"),
    ([f"--config={QUICKSTART}", "--config.optim.lrr=1"], "unknown config key 'optim.lrr'"),
    ([f"--config={QUICKSTART}", "--config.optim.lr"], "has no value"),
    ([f"--config={QUICKSTART}", "--workdri=x"], "unknown argument"),
    (["evaluate", "nowhere"], "no checkpoint at"),
    (["inspect", "nowhere"], "no checkpoint at"),
    (["evaluate"], "required: checkpoint"),
    (["study", f"--config={QUICKSTART}"], "not a study"),
    (["train", f"--config={ROOT / 'configs' / 'study.py'}"], "describes a study"),
    (["forensics", "a", "b", "-n", "A"], "1 names (A) for 2 checkpoints"),
    (["forensics", "a", "--probes", "1"], "--probes needs"),
  ],
)
def test_user_errors_are_two_lines_and_exit_2(argv, message, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert main(argv) == 2
  text = capsys.readouterr().err
  assert message in text
  assert lines(text) == ["error", "hint"]
  assert not list(tmp_path.iterdir()), "a refused command leaves nothing behind"


def test_no_arguments_prints_usage_and_exits_2(capsys):
  assert main([]) == 2
  assert "usage" in capsys.readouterr().out


def test_out_of_device_memory_is_exit_5_and_other_errors_are_not_hidden(capsys, monkeypatch):  # fault 38
  def exhausted(_):
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.\nmore")

  monkeypatch.setattr("jaxkd.main.run", exhausted)
  assert main(["train"]) == 5
  assert lines(capsys.readouterr().err) == ["error", "hint"]

  def bug(_):
    raise RuntimeError("something else")

  monkeypatch.setattr("jaxkd.main.run", bug)
  with pytest.raises(RuntimeError, match="something else"):
    main(["train"])


def test_the_reason_of_a_runtime_error_is_said_once():
  found = reason(
    RuntimeError("INTERNAL: " + "Error dispatching: " * 9 + "closed by peer [10.0.0.1]: 80\nmore")
  )
  assert found == "INTERNAL: Error dispatching: closed by peer [10.0.0.1]: 80"
