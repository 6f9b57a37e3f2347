"""From the examinations of all students to `study.json`: means, paired differences, verdicts, curves."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import math
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd import config as configs
from jaxkd import data, schema, study_power, teacher_quality
from jaxkd.analysis import (
  Comparison,
  bootstrap_few,
  compare,
  hedges_g,
  mean_interval,
  smallest_detectable,
  verdict,
)
from jaxkd.analysis.statistics import unclear_steps
from jaxkd.diagnosis import INERT_SHARE, gradient_share

SCHEMA = "jaxkd.study/1"
QUESTION = (
  "Does a Vision Transformer distilled from a CNN inherit the CNN's locality and pay for it, and does a "
  "self-supervised ViT teacher do better?"
)
METRICS: list[dict[str, Any]] = [
  {
    "key": "accuracy_cls",
    "label": "Accuracy (cls head)",
    "unit": "%",
    "scale": 100,
    "digits": 1,
    "higher_is": "better",
  },
  {
    "key": "mean_distance",
    "label": "Attention distance",
    "unit": "patches",
    "scale": 1,
    "digits": 2,
    "higher_is": "more global",
  },
  {
    "key": "cls_dispersion",
    "label": "CLS dispersion",
    "unit": "patches²",
    "scale": 1,
    "digits": 2,
    "higher_is": "more global",
  },
  {
    "key": "collapsed_heads",
    "label": "Collapsed heads",
    "unit": "",
    "scale": 1,
    "digits": 1,
    "higher_is": "more local",
  },
  {
    "key": "hessian_trace",
    "label": "Hessian trace",
    "unit": "",
    "scale": 1,
    "digits": 0,
    "higher_is": "sharper",
  },
  {
    "key": "accuracy_mean",
    "label": "Accuracy (mean of heads)",
    "unit": "%",
    "scale": 100,
    "digits": 1,
    "higher_is": "better",
  },
  {
    "key": "accuracy_dist",
    "label": "Accuracy (dist head)",
    "unit": "%",
    "scale": 100,
    "digits": 1,
    "higher_is": "better",
  },
]


def summarize(
  config: ConfigDict,
  runs: dict[str, list[dict[str, Any]]],
  teachers: list[dict[str, Any]],
  curves: dict[str, list[list[dict[str, float]]]],
  forensics: dict[str, Any],
) -> dict[str, Any]:
  """`study.json` (schema in `jaxkd.report`) from one examination per arm and seed.

  Where some are not there yet, it is marked as `partial`: "7 of 12 students".
  """
  arms = {arm: _arm(config.study.arms[arm], arm, entries) for arm, entries in runs.items() if entries}
  partial = _partial(config, arms)
  comparisons, verdicts = judge(config, arms, partial)
  dataset, test = data.load(config.data), data.load_test(config.data)
  found = {arm: _curve(rows) for arm, rows in curves.items() if rows}
  return {
    "schema": SCHEMA,
    "name": config.study.name,
    "question": QUESTION,
    **{k: forensics[k] for k in ("command", "hardware", "versions")},
    "date": datetime.date.today().isoformat(),
    "partial": partial,
    "seeds": sorted({r["seed"] for arm in arms.values() for r in arm["runs"]}),
    "conditions": _conditions(config),
    "warnings": [
      *_unfinished(partial),
      *_warnings(config, found, comparisons),
      *teacher_quality.weak(teachers),
    ],
    "data": {
      "name": config.data.name,
      "train": len(dataset.train),
      "validation": len(dataset.validation),
      "test": len(test),
      "classes": len(dataset.class_names),
      "image_size": dataset.image_shape[0],
    },
    "student": _student(config, next(entries for entries in runs.values() if entries)[0]),
    "metrics": [m for m in METRICS if any(m["key"] in r for a in arms.values() for r in a["runs"])],
    "arms": arms,
    "baseline": config.study.baseline,
    "teachers": teachers,
    "comparisons": comparisons,
    "verdicts": verdicts,
    "curves": found,
  }


def _partial(config: ConfigDict, arms: dict[str, Any]) -> str:
  """ "7 of 12 students", or nothing for a complete study."""
  done, planned = (
    sum(len(a["runs"]) for a in arms.values()),
    len(config.study.seeds) * len(config.study.arms),
  )
  return f"{done} of {planned} students" if done < planned else ""


def _unfinished(partial: str) -> list[str]:
  if not partial:
    return []
  return [
    f"Partial study: {partial} are done. Numbers are of these, differences of the seeds that all arms shown have in "
    "common; nothing is decided before the rest is there."
  ]


def _student(config: ConfigDict, first: dict[str, Any]) -> dict[str, Any]:
  return {
    "model": config.model.name,
    "parameters": first["parameters"],
    "epochs": config.train.epochs,
    "steps": first["trained_steps"],
    "batch_size": config.train.batch_size,
    "optimizer": config.optim.name,
    "lr": config.optim.lr,
  }


def _arm(options: ConfigDict, arm: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
  runs = [{"seed": e["seed"], **measures(e)} for e in entries]
  keys = [m["key"] for m in METRICS if m["key"] in runs[0]]
  return {
    "label": options.label or arm,
    "description": options.description,
    "runs": runs,
    "summary": {k: summary([r[k] for r in runs]) for k in keys},
    "distance_per_layer": [e["attention"]["layer_distance"]["mean"] for e in entries],
    "terms": {n: {"kind": t.kind, "weight": t.weight} for n, t in options.terms.items()},
  }


def measures(entry: dict[str, Any]) -> dict[str, float]:
  """The study's metrics of one examined student (spec 6), attention averaged over layers and heads."""
  attention, curvature = entry["attention"], entry["hessian"]
  return {
    **{f"accuracy_{head}": a["value"] for head, a in entry["accuracy"].items()},
    "mean_distance": float(np.mean(attention["mean_distance"])),
    "cls_dispersion": float(np.mean(attention["cls_dispersion"])),
    "collapsed_heads": float(np.sum(attention["collapsed"])),
    "hessian_trace": curvature["trace"],
    "hessian_stderr": curvature["stderr"],
  }


def summary(values: list[float]) -> dict[str, float | None]:
  """Mean over seeds with its 95 % t interval, and the percentile bootstrap interval beside it."""
  found, (low, high) = mean_interval(values), bootstrap_few(np.array(values))
  kept = {k: _number(getattr(found, k)) for k in ("mean", "low", "high", "sd", "n")}
  return {**kept, "bootstrap_low": _number(low), "bootstrap_high": _number(high)}


def _number(value: float) -> float | None:
  """None for what does not exist with these few seeds (an infinite interval)."""
  return value if math.isfinite(value) else None


def judge(
  config: ConfigDict, arms: dict[str, Any], partial: str = ""
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
  """All paired differences as one family after Holm, and a verdict on each claimed ordering: entries of `study.json`.

  Of a partial study, over the seeds that all arms shown have, and every verdict is undecided.

  Args:
    config: of the study; read are its arms, claims, baseline and smallest differences of interest.
    arms: entries with `label` and `runs`, as in `study.json`. partial: what is done of a part of a study.
  """
  every = [(c, *configs.parse_claim(c, set(config.study.arms))) for c in config.study.claims]
  claims = [(text, metric, order) for text, metric, order in every if set(order) <= set(arms)]
  shared = set.intersection(*({r["seed"] for r in arm["runs"]} for arm in arms.values()))
  if not shared or len(arms) < 2:
    return [], []
  values = {
    m["key"]: {
      a: {r["seed"]: r[m["key"]] for r in arm["runs"] if r["seed"] in shared} for a, arm in arms.items()
    }
    for m in METRICS
    if all(m["key"] in r for arm in arms.values() for r in arm["runs"])
  }
  baseline = config.study.baseline
  pairs = [(metric, a, b) for _, metric, order in claims for a, b in itertools.pairwise(order)]
  claimed = dict.fromkeys(metric for _, metric, _ in claims)
  pairs += [(m, baseline, a) for m in claimed or values for a in arms if a != baseline]
  unique = {(m, frozenset((a, b))): (m, a, b) for m, a, b in reversed(pairs)}
  comparisons = compare(values, list(reversed(unique.values())))
  smallest = configs.parse_smallest(config.study.smallest)
  entries = [_comparison_entry(c, values[c.metric], smallest.get(c.metric)) for c in comparisons]
  verdicts = []
  for claim, metric, order in claims:
    labels = {a: arm["label"] for a, arm in arms.items()}
    named = [dataclasses.replace(c, a=labels[c.a], b=labels[c.b]) for c in comparisons if c.metric == metric]
    shown = next(m for m in METRICS if m["key"] == metric)
    unit = "points" if shown["unit"] == "%" else shown["unit"]
    names = [labels[a] for a in order]
    found = verdict(names, named, scale=shown["scale"], unit=unit)
    entry = {
      "claim": f"{shown['label']}: {' < '.join(names)}",
      "text": claim,
      "metric": metric,
      "order": list(order),
    }
    outcome = {"verdict": found.outcome, "reason": found.reason}
    if partial:
      outcome = {"verdict": "undecided", "reason": f"{partial} are done; so far {found.reason}"}
    elif found.outcome == "undecided":
      entry["power"] = study_power.note(unclear_steps(names, named), smallest.get(metric), shown)
    verdicts.append({**entry, **outcome})
  return entries, verdicts


def _comparison_entry(
  c: Comparison, values: dict[str, dict[int, float]], smallest: float | None
) -> dict[str, Any]:
  numbers = {k: _number(getattr(c, k)) for k in ("low", "high", "level", "p", "p_holm", "sd", "effect", "n")}
  differences = np.array([values[c.b][s] - values[c.a][s] for s in values[c.a]])
  low, high = bootstrap_few(differences, confidence=c.level)
  g = hedges_g(c.effect if c.sd else math.nan, c.n)
  more = {"bootstrap_low": low, "bootstrap_high": high, "g": g.mean, "g_low": g.low, "g_high": g.high}
  return {
    "metric": c.metric,
    "a": c.a,
    "b": c.b,
    "mean": c.difference,
    **numbers,
    **{k: _number(v) for k, v in more.items()},
    "power": study_power.planned(c, smallest),
  }


def _conditions(config: ConfigDict) -> list[str]:
  used = {t.weights for arm in config.study.arms.values() for t in arm.teachers.values()}
  out = []
  if used:
    out.append(
      f"One teacher of each kind ({', '.join(sorted(used))}) is shared by all seeds: intervals hold for these teachers "
      "and say nothing about other teachers trained the same way."
    )
  out.append(
    "Arms of a seed share student, initial weights, data order, geometries, steps and optimiser; they differ in "
    "teacher and terms only. The primary accuracy and the Hessian use the cls head in every arm."
  )
  untrained = [o.label or a for a, o in config.study.arms.items() if not _trains_dist(o)]
  if untrained:
    out.append(
      f"No term reaches the distillation head in {', '.join(untrained)}: its accuracy there, and the mean's, is "
      "that of an untrained head."
    )
  return out


def _trains_dist(arm: ConfigDict) -> bool:
  """Whether some term of the arm uses the distillation head's logits (the default of the KD kinds)."""
  return any(
    "logits/dist" in t.student_taps or (t.kind in schema.LOGIT_KINDS and not t.student_taps)
    for t in arm.terms.values()
  )


def _warnings(config: ConfigDict, curves: dict[str, Any], comparisons: list[dict[str, Any]]) -> list[str]:
  out = []
  seeds = len(config.study.seeds)
  if seeds < 5:
    worst = [c for c in comparisons if c["metric"] == "accuracy_cls" and c["sd"] is not None]
    text = f"{seeds} seeds decide little: after Holm over {len(comparisons)} differences"
    if worst:
      limit = max(smallest_detectable(c["sd"], c["n"], level=c["level"]) for c in worst)
      text += f" an accuracy difference must reach up to {100 * limit:.1f} points to count"
    out.append(f"{text}. Undecided means undecided, not equal. {study_power.caution(seeds)}".strip())
  for arm, curve in curves.items():
    for term, shares in curve["gradient_share"].items():
      # The last measurement, when every warm-up is over.
      if shares and shares[-1] is not None and shares[-1] < INERT_SHARE:
        out.append(
          f"Term '{term}' of arm '{arm}' is inert: {100 * shares[-1]:.2f} % of the gradient norms at the end."
        )
  return out


# --- curves ---


def _curve(seeds: list[list[dict[str, float]]]) -> dict[str, Any]:
  """Mean and t interval over seeds of what metrics.jsonl holds."""
  logged = _common(seeds, "loss")
  validated = _common(seeds, "validation/accuracy_cls")
  names = [k.removeprefix("loss/") for k in seeds[0][0] if k.startswith("loss/")]
  return {
    "step": [row["step"] for row in logged[0]],
    "train_loss": _band(logged, "loss"),
    "validation_accuracy": {
      "step": [row["step"] for row in validated[0]],
      **_band(validated, "validation/accuracy_cls"),
    },
    "terms": {n: _band(logged, f"loss/{n}")["mean"] for n in names},
    "gradient_share": {n: _shares(logged, n) for n in names if f"gradient/{n}" in _keys(logged)},
  }


def _common(seeds: list[list[dict[str, float]]], key: str) -> list[list[dict[str, float]]]:
  return [[row for row in rows if key in row] for rows in seeds]


def _keys(seeds: list[list[dict[str, float]]]) -> set[str]:
  return {k for rows in seeds for row in rows for k in row}


def _band(seeds: list[list[dict[str, float]]], key: str) -> dict[str, list[float | None]]:
  points = [
    mean_interval(list(values)) for values in zip(*([r[key] for r in rows] for rows in seeds), strict=True)
  ]
  return {k: [_number(getattr(p, k)) for p in points] for k in ("mean", "low", "high")}


def _shares(seeds: list[list[dict[str, float]]], name: str) -> list[float | None]:
  """Norm of this term's gradient over the sum of all terms' norms, mean over seeds; None where not measured."""
  out: list[float | None] = []
  for rows in zip(*seeds, strict=True):
    if f"gradient/{name}" not in rows[0]:
      out.append(None)
      continue
    out.append(float(np.mean([gradient_share(row, name) for row in rows])))
  return out
