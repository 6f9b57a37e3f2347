"""Rows, other writers that fail, progress on odd terminals, names that would forge lines."""

import json
import logging
import sys
import types

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from jaxkd import metrics, run_folder, writers
from jaxkd.errors import UserError
from jaxkd.metrics import MetricLog, ProgressLine

ROW = {"step": 1, "loss": 0.5}


class Failing:
  """A writer that works once."""

  def __init__(self):
    self.calls = 0

  def write(self, row):
    self.calls += 1
    if self.calls > 1:
      raise ConnectionError("no network")

  def close(self):
    raise ConnectionError("still no network")


def test_a_failing_writer_is_said_once_and_the_rows_go_on(tmp_path, monkeypatch):
  said = []
  monkeypatch.setattr(metrics.log, "warning", lambda text, *values: said.append(text % values))
  writer = Failing()
  log = MetricLog(tmp_path, resume_step=0, writers={"Somewhere": writer})
  for step in range(1, 6):
    log.write({"step": step, "loss": 0.5})
  log.close()
  assert writer.calls == 2
  assert said == ["Somewhere stopped (ConnectionError: no network); metrics.jsonl goes on"]
  assert [r["step"] for r in metrics.read(log.path)] == [1, 2, 3, 4, 5]


def test_tensorboard_gets_every_value_at_once(tmp_path):
  board = writers.TensorBoard(tmp_path / "tb", resume_step=4)
  board.write({"step": 5, "loss": 0.25, "lr": 0.5})
  (file,) = (tmp_path / "tb").iterdir()
  events = [Event.FromString(r) for r in records(file.read_bytes())]
  assert any(e.session_log.status and e.step == 5 for e in events)  # hides steps >= 5 of an earlier attempt
  values = {v.tag: (e.step, v.simple_value) for e in events for v in e.summary.value}
  assert values == {"loss": (5, 0.25), "lr": (5, 0.5)}
  board.close()


def records(content):
  """The TFRecord format: length (8 bytes), checksum (4), data, checksum (4)."""
  while content:
    size = int.from_bytes(content[:8], "little")
    yield content[12 : 12 + size]
    content = content[16 + size :]


def test_tensorboard_that_cannot_write_does_not_stop_the_run(tmp_path, monkeypatch, caplog):

  def full(*_):
    raise OSError(28, "No space left on device")

  found = writers.open_writers(tmp_path, resume_step=0)
  log = MetricLog(tmp_path, resume_step=0, writers=found)
  monkeypatch.setattr(RecordWriter, "write", full)
  log.write(ROW)
  log.write({**ROW, "step": 2})
  log.close()
  monkeypatch.undo()
  assert len(metrics.read(log.path)) == 2
  assert [r.message.split(" (")[0] for r in caplog.records] == ["TensorBoard stopped"]
  monkeypatch.setattr(writers, "EventsWriter", full)
  assert writers.open_writers(tmp_path, resume_step=0) == {}  # nor when it cannot even start
  assert "TensorBoard did not start" in caplog.text


def fake_wandb(calls):
  class Run:
    def log(self, row, step):
      calls.append((step, row))

    def finish(self):
      calls.append("finished")

  module = types.ModuleType("wandb")
  module.init = lambda **options: calls.append(options) or Run()
  return module


ABOUT = {"project": "p", "config": {"seed": 0}, "label": "run"}


def test_wandb_gets_the_rows_under_one_id(tmp_path, monkeypatch):
  calls = []
  monkeypatch.setitem(sys.modules, "wandb", fake_wandb(calls))
  for _ in range(2):
    found = writers.open_writers(tmp_path, resume_step=0, wandb=ABOUT)
    found.pop("TensorBoard").close()
    found["Weights & Biases"].write(ROW)
    found["Weights & Biases"].close()
  assert calls[1:3] == [(1, {"loss": 0.5}), "finished"]
  assert calls[0]["id"] == calls[3]["id"]
  assert (calls[0]["project"], calls[0]["resume"], calls[0]["config"]) == ("p", "allow", {"seed": 0})


def test_without_the_package_wandb_is_a_user_error_with_the_remedy(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(UserError, match="needs the package wandb") as e:
    writers.open_writers(tmp_path, resume_step=0, wandb=ABOUT)
  assert "pip install 'jaxkd[wandb]'" in e.value.hint


def test_a_service_that_does_not_answer_is_left_out(tmp_path, monkeypatch, caplog):
  module = types.ModuleType("wandb")

  def init(**_):
    raise TimeoutError("no answer")

  module.init = init
  monkeypatch.setitem(sys.modules, "wandb", module)
  found = writers.open_writers(tmp_path, resume_step=0, wandb=ABOUT)
  assert list(found) == ["TensorBoard"]
  found["TensorBoard"].close()
  assert "Weights & Biases did not start (TimeoutError: no answer)" in caplog.text


@pytest.mark.parametrize("times", [[100.0, 50.0], [100.0, 100.0], [100.0, 50.0, 40.0]])
def test_a_clock_that_goes_backwards_gives_no_negative_time_left(monkeypatch, capsys, times):
  clock = iter(times)
  last = times[-1]
  monkeypatch.setattr(metrics.time, "monotonic", lambda: next(clock, last))
  line = ProgressLine("run", done=0, total=10, unit_size=16)
  for done in range(1, 11):
    line.update(done)
  text = capsys.readouterr().err
  assert "10/10, time left unknown" in text
  assert "-" not in text


def test_time_left_is_the_rest_at_the_mean_rate(monkeypatch, capsys):
  now = [0.0]
  monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
  line = ProgressLine("run", done=4, total=10, unit_size=16)
  now[0] = 20.0
  line.update(6)  # two steps in 20 s; four are left
  assert capsys.readouterr().err == "run: 6/10, 40 s left 2 images/s\n"


class Terminal:
  """stderr as a terminal."""

  def __init__(self):
    self.text = ""

  def write(self, text):
    self.text += text
    return len(text)

  def flush(self):
    pass

  def isatty(self):
    return True


@pytest.mark.parametrize("term", ["dumb", "unknown", "xterm"])
def test_progress_on_a_dumb_and_on_a_narrow_terminal(monkeypatch, term):
  screen = Terminal()
  monkeypatch.setenv("TERM", term)
  monkeypatch.setenv("COLUMNS", "40")
  monkeypatch.setattr(sys, "stderr", screen)
  line = ProgressLine("a run with [red] in its name", done=0, total=3)
  for done in (1, 2, 3):
    line.update(done, "loss 0.1 " * 5)
  line.close()
  if term == "xterm":
    assert line.bar is not None
  else:
    assert "\x1b" not in screen.text
    assert "3/3" in screen.text


def test_control_characters_of_names_forge_neither_log_nor_progress(tmp_path, capsys):
  name = "cat\n2026-01-01 00:00:00 INFO step 1 forged\x1b[2J"
  with run_folder.FileLog(tmp_path / "train.log"):
    logging.getLogger("jaxkd").warning("class '%s' has no image", name)
  lines = (tmp_path / "train.log").read_text().splitlines()
  assert len(lines) == 1
  ProgressLine(name, done=0, total=1).update(1, name)
  text = capsys.readouterr().err
  assert "\x1b" not in text
  assert len(text.splitlines()) == 2  # one warning, one progress line


def test_rows_are_json_lines(tmp_path):
  log = MetricLog(tmp_path, resume_step=0)
  log.write(ROW)
  log.sync()
  assert json.loads(log.path.read_text()) == ROW
  log.close()


def test_rows_of_later_steps_and_half_a_row_are_dropped_on_resume(tmp_path):
  rows = "".join(json.dumps({"step": s}) + "\n" for s in (1, 2, 3))
  (tmp_path / "metrics.jsonl").write_text(rows + '{"step": 4, "lo')
  MetricLog(tmp_path, resume_step=2).close()
  assert [r["step"] for r in metrics.read(tmp_path / "metrics.jsonl")] == [1, 2]
