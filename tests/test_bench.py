"""What the benchmarks conclude from their numbers: targets, spreads, exponents, clocks. Nothing is timed here."""

import json
import shutil
import subprocess
import time

import jax
import numpy as np
import pytest

from bench import growth, newcomer, profile, summary


@pytest.fixture
def folder(tmp_path):
  job = {
    "what": "a small job",
    "replicas": 2,
    "speed of one program": {"median": 0.8, "low": 0.7, "high": 1.2, "n": 3},
  }
  files = {
    "bench_replicas.json": {"jobs": {"a": job}, "date": "2026-01-01"},
    "bench_bank.json": {
      "date": "x",
      "runs": [
        {"banked / constant": 9},
        {
          "banked / constant": 1.02,
          "banked / labels only": 1.3,
          "live / banked": 5.0,
          "by round": {"banked / constant": {"median": 1.01, "low": 0.9, "high": 1.1, "n": 5}},
        },
      ],
    },
  }
  for name, value in files.items():
    (tmp_path / name).write_text(json.dumps(value))
  return tmp_path


def test_a_target_is_reached_from_its_own_side(folder):
  """`at most` and `at least`; the last of several runs counts."""
  found = {(r.job, r.measure): r for r in summary.rows(folder)}
  constant = found["step with the feature bank", "banked / constant"]
  assert (constant.value, constant.low, constant.reached) == (1.01, 0.9, True)
  assert constant.relative(2.1) == pytest.approx(0.5)
  assert found["step with the feature bank", "banked / labels only"].reached is False
  assert found["step with the feature bank", "live / banked"].reached is None
  replicas = found["2 replicas: a small job", "k runs' time / one program's"]
  assert (replicas.reached, replicas.relative(0.5)) == (False, 0.5)


def test_the_table_and_the_plot_hold_every_measure(folder):
  summary.write(folder)
  page = (folder / "bench_cpu.md").read_text()
  assert (
    "| 2 replicas: a small job | k runs' time / one program's | **0.8** | 0.7 to 1.2 | at least 1 | missed |"
    in page
  )
  assert page.count("\n| step with the feature bank |") == 3
  labels = [label.get_text() for label in summary.plot(folder).axes[0].get_yticklabels()]
  assert len(labels) == 3


def test_nothing_measured_is_an_empty_table(tmp_path):
  summary.write(tmp_path)
  assert "missed" not in (tmp_path / "bench_cpu.md").read_text()
  assert not (tmp_path / "bench_cpu.png").exists()


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_an_exponent_is_that_of_the_larger_sizes(power):
  sizes = np.array([1, 2, 4, 8, 16, 32])
  values = 3.0 * sizes.astype(float) ** power
  values[:3] = values[3]  # a floor below
  assert growth.exponent(list(sizes), list(values)) == pytest.approx(power)


def test_a_second_counts_once():
  """Sections inside sections, and compiling inside both."""
  clock = profile.Clock()
  with clock.section("steps"):
    time.sleep(0.02)
    with clock.section("input"):
      time.sleep(0.05)
      jax.jit(lambda x: x * 2 + 1)(np.float32(1))
  seconds = clock.seconds
  assert seconds["compiling"] > 0
  assert 0.02 <= seconds["steps"] < 0.05 <= seconds["input"] < 0.2
  assert sum(seconds.values()) < 1


def test_tracing_inside_tracing_is_told_twice_and_counts_once():
  clock = profile.Clock()
  clock.seconds["compiling"] = 0.0
  time.sleep(0.03)
  clock._compiled(profile.COMPILE + "x", 0.01)
  clock._compiled(profile.COMPILE + "y", 0.02)
  assert clock.seconds["compiling"] == pytest.approx(0.02)
  time.sleep(0.01)
  clock._compiled(profile.COMPILE + "z", 0.005)
  assert clock.seconds["compiling"] == pytest.approx(0.025)


def test_two_runs_are_compared_measure_by_measure(folder, tmp_path):
  other = tmp_path / "other"
  shutil.copytree(folder, other, ignore=shutil.ignore_patterns("other"))
  assert "more than a tenth" not in summary.twice(folder, other)
  replicas = json.loads((other / "bench_replicas.json").read_text())
  replicas["jobs"]["a"]["speed of one program"]["median"] = 0.7
  (other / "bench_replicas.json").write_text(json.dumps(replicas))
  line = "| 2 replicas: a small job | k runs' time / one program's | 0.7 | 0.8 | +14.3% | more than a tenth |"
  assert line in summary.twice(folder, other)


def test_a_page_is_done_as_printed():
  """Python blocks share one session, files are written, commands run in the page's folder; a failing one is no time."""
  page = """# Page
## Write
```python
from pathlib import Path
n = 2
```
```python
# mine.py
n = 3
```
```python
assert Path("mine.py").read_text() == "# mine.py\\nn = 3\\n" and n == 2
```
## Read
```bash
python mine.py
python -c 'import mine; assert mine.n == 3'
```
"""
  found = newcomer.tasks(page)
  assert [list(steps) for steps in found.values()] == [
    [
      "from pathlib import Path ...",
      'assert Path("mine.py").read_text() == "# mine.py\\nn = 3\\n" and n == 2 ...',
    ],
    ["python mine.py", "python -c 'import mine; assert mine.n == 3'"],
  ]
  assert all(s > 0 for steps in found.values() for s in steps.values())
  with pytest.raises(subprocess.CalledProcessError):
    newcomer.tasks(page.replace("== 3'", "== 2'"))


def test_the_profile_watches_functions_that_are_there():
  watched = [pair for functions in profile.SECTIONS.values() for pair in functions]
  assert watched
  assert all(callable(getattr(owner, name)) for owner, name in watched)
