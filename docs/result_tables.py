"""Writes the tables of measured and planned numbers in README and docs, and the README's figure, from `results/`.

python -m docs.result_tables

A table stands between `<!-- results: NAME -->` and `<!-- end -->`; a test says when it is out of date.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxkd.report import study_figures
from jaxkd.report.style import marks, save
from jaxkd.report.text import interval, number, plural

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "scaling.md", ROOT / "docs" / "cifar10_on_h100.md")
FIGURE = ROOT / "docs" / "images" / "study_digits"
PART = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
SHOWN = ("accuracy_cls", "mean_distance", "cls_dispersion", "collapsed_heads", "hessian_trace")
DOUBTS = "(planned, compiled for H100, never run)"


def text(page: Path) -> str:
  """The page with its tables as they should be."""
  return PART.sub(lambda m: f"{m[1]}{MAKERS[m[2]]()}\n{m[3]}", page.read_text())


def table(header: list[str], rows: list[list[str]]) -> str:
  return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


# --- studies ---


def study(name: str) -> str:
  """Arms by metrics, with what the numbers are and where they are from; or how far the study has come."""
  path = RESULTS / name / "study.json"
  if not path.exists():
    return under_way(name)
  found = json.loads(path.read_text())
  metrics = [m for m in found["metrics"] if m["key"] in SHOWN]
  metrics.sort(key=lambda m: SHOWN.index(m["key"]))
  header = ["arm", *(f"{m['label']} ({m['unit']})" if m["unit"] else m["label"] for m in metrics)]
  rows = [
    [arm["label"], *(_cell(arm["summary"][m["key"]], m) for m in metrics)] for arm in found["arms"].values()
  ]
  outcomes = [v["verdict"] for v in found["verdicts"]]
  counted = ", ".join(f"{outcomes.count(o)} {o}" for o in sorted(set(outcomes)))
  note = (
    f"Mean and 95 % t interval over {plural(len(found['seeds']), 'seed')} (not cut at 100 %), sealed test split of "
    f"{number(found['data']['test'])} images; {found['date']}, {found['hardware']}; "
    f"[configs/study.py](configs/study.py), numbers in [results/{name}/study.json](results/{name}/study.json). Of "
    f"{plural(len(outcomes), 'claimed ordering')}: {counted}."
  )
  partial = f"**Partial: {found['partial']}.** " if found.get("partial") else ""
  return f"{table(header, rows)}\n\n{partial}{note}{_teachers(found['teachers'])}"


def _cell(summary: dict[str, Any], metric: dict[str, Any]) -> str:
  value, low, high = (study_figures.shown(summary[k], metric) for k in ("mean", "low", "high"))
  digits = metric["digits"]
  return number(value, digits) + (f" {interval(low, high, digits)}" if low is not None else "")


def _teachers(teachers: list[dict[str, Any]]) -> str:
  """A sentence on what each teacher knows, beside its controls."""
  sentences = []
  for t in teachers:
    known = ", ".join(f"{what} {100 * share:.1f} %" for what, share in t["rows"])
    sentences.append(f" {t['label']}: {known}.")
  return "".join(sentences)


def under_way(name: str) -> str:
  """How many models of a study are done, and what is known of its teachers."""
  folder = RESULTS / name
  config = json.loads((folder / "config.json").read_text())["study"]
  paths = [*sorted(folder.glob("teachers/*.json")), *sorted(folder.glob("students/*.json"))]
  done = [json.loads(p.read_text()) for p in paths]
  planned = len(config["teachers"]) + len(config["arms"]) * len(config["seeds"])
  teachers = [r["quality"] for r in done if "quality" in r]
  return f"Under way: {len(done)} of {planned} models are trained and examined.{_teachers(teachers)}"


# --- plans ---


def plans() -> dict[str, Any]:
  return json.loads((RESULTS / "h100_plan.json").read_text())


def paper_plan() -> str:
  names = {"deit_base_16": "", "deit_base_16_remat": ", blocks recomputed", "deit_base_256": ""}
  rows = []
  for name, more in names.items():
    if p := plans().get(name):
      memory, state = p["memory_per_device"]["total"] / 2**30, p["state_bytes"] / 2**30
      cells = (f"{p['devices']} H100{more}", number(p["batch_size"]), f"{memory:.2f} GiB", f"{state:.2f} GiB")
      times = (
        f"{p['step_ms']:.1f} ms",
        number(round(p["images_per_s"])),
        number(p["steps"]),
        f"{p['hours']:.1f}",
      )
      rows.append([*cells, *times])
  columns = ["on", "batch", "memory per device", "of it state", "step ≥", "images/s ≤", "updates", "hours ≥"]
  return table(columns, rows)


def cifar_plan() -> str:
  what = {
    "resnet18": "teacher: ResNet-18",
    "vit": "student without teacher",
    "kd_resnet18": "student of ResNet-18, by logits",
    "ss_cka": "student of DINOv2-S, tokens, correlation, CKA; bank",
    "ss_cka_live": "the same, teacher live",
    "ss_cka_cls": "student of DINOv2-S, CKA of cls",
  }
  rows = []
  for name, words in what.items():
    if p := plans().get(name):
      memory = f"{p['memory_per_device']['total'] / 2**20:.0f} MiB"
      cells = [words, f"`{name}`", number(p["batch_size"]), number(p["steps"]), memory]
      rows.append([*cells, f"{p['step_ms']:.2f} ms", f"{60 * p['hours']:.1f}"])
  devices = {p["devices"] for n, p in plans().items() if n in what}
  columns = ["run", "preset", "batch", "updates", "memory per device", "step ≥", "minutes ≥"]
  return f"{table(columns, rows)}\n\nOn {', '.join(map(str, devices))} H100 {DOUBTS}."


MAKERS: dict[str, Callable[[], str]] = {
  "digits": lambda: study("digits"),
  "fashion_mnist": lambda: study("fashion_mnist"),
  "paper_plan": paper_plan,
  "cifar_plan": cifar_plan,
}


def draw() -> None:
  """The README's figure: the digits study over seeds."""
  found = json.loads((RESULTS / "digits" / "study.json").read_text())
  order = sorted(found["arms"], key=lambda arm: arm != found["baseline"])
  save(study_figures.summary(found, marks(found["arms"][a]["label"] for a in order)), FIGURE)
  for suffix in (".svg", ".pdf"):  # the page shows the PNG
    FIGURE.with_suffix(suffix).unlink()


def main() -> None:
  for page in PAGES:
    page.write_text(text(page))
  draw()


if __name__ == "__main__":
  main()
