"""Pieces of `configs/study.py`: arms and teachers by name, for any student. Plain dicts, no jax.

An arm's name is TEACHER_SIGNAL: `cnn_kd` learns from the CNN by its logits, `cnn_tokens` from the same CNN by tokens
and CKA. Two arms differ in what their names say; everything else is the study's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from jaxkd.errors import UserError, did_you_mean

LABELS = {"ce": {"kind": "cross_entropy", "student_taps": ("logits/cls",), "smoothing": 0.1}}
TEACHERS = {  # label, and what it is
  "cnn": ("CNN", "the CNN"),
  "resnet": ("ResNet-18", "ResNet-18"),
  "convnext": ("ConvNeXtV2", "ConvNeXtV2"),
  "vit": ("ViT", "a ViT trained on labels"),
  "ssl": ("SSL ViT", "the self-supervised ViT"),
  "self": ("Self", "a network like the student, trained on labels"),
}
CKA = {"kind": "cka", "weight": 0.5, "start_epoch": 2.0}
GRAM = {"kind": "gram", "weight": 0.5}
SIGNALS = {  # label; what is compared; the structural term; what the teacher sees
  "tokens": ("tokens", "token and CKA terms", {"cka": CKA}, "aligned"),
  "gram": ("tokens and Gram", "token and Gram terms", {"gram": GRAM}, "aligned"),
  "clean": ("tokens, clean views", "token and CKA terms, un-augmented teacher", {"cka": CKA}, "clean"),
  "biased": (
    "tokens, biased CKA",
    "token and biased CKA terms",
    {"cka": {**CKA, "debiased": False}},
    "aligned",
  ),
}
ALONE = ("none", "dist_ce", "local_50")  # arms without a teacher
LOCAL = re.compile(r"local_(\d{1,3})")  # the locality knob: percent of uniform attention's distance


def arms() -> list[str]:
  """Every name that `arm` knows; `local_50` stands for any percentage."""
  return [*ALONE, *(f"{t}_{signal}" for t in TEACHERS for signal in ("kd", *SIGNALS, "cls"))]


def arm(
  name: str, *, depth: int, stages: Mapping[str, int], external: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
  """`study.arms.NAME`.

  Args:
    depth: blocks of the student. stages: stages of each convolutional teacher, whose tokens are the last one's grid.
    external: options of the teachers that the study does not train (`weights`, `bank`).

  Raises:
    UserError: no arm has this name.
  """
  if found := LOCAL.fullmatch(name):
    return _local(int(found[1]) / 100, depth)
  if name not in arms():
    raise UserError(
      f"unknown arm '{name}'", f"{did_you_mean(name, arms())}; local_N is the knob at N percent"
    )
  if name in ALONE:
    return ALONE_ARMS[name]
  teacher, _, signal = name.partition("_")
  if signal == "kd":
    return _by_logits(teacher, external)
  options = external.get(teacher, {"weights": teacher})
  if signal == "cls":
    return _by_cls(teacher, options, depth)
  return _by_tokens(teacher, signal, options, depth, stages.get(teacher))


def needed(names: Iterable[str]) -> tuple[str, ...]:
  """The teachers that these arms learn from, in order of training: a probe comes after what it probes."""
  known = {name.partition("_")[0] for name in names} & set(TEACHERS)
  return (*(t for t in TEACHERS if t in known), *(("ssl_probe",) if "ssl_kd" in names else ()))


ALONE_ARMS = {
  "none": {"label": "Baseline", "description": "labels only, no teacher", "terms": LABELS},
  "dist_ce": {
    "label": "Head on labels",
    "description": "the distillation head trained on labels: a second head without a teacher",
    "terms": {**LABELS, "head": {**LABELS["ce"], "student_taps": ("logits/dist",), "weight": 0.5}},
  },
}


def _local(target: float, depth: int) -> dict[str, Any]:
  taps = tuple(f"block{i:02d}/attn" for i in range(depth))
  knob = {"kind": "locality", "weight": 1.0, "student_taps": taps, "targets": (target,) * depth}
  return {
    "label": f"Locality {target:.0%}",
    "description": f"no teacher; each layer's attention distance held at {target:.0%} of uniform attention's",
    "terms": {**LABELS, "knob": knob},
  }


def _by_logits(teacher: str, external: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
  source = "ssl_probe" if teacher == "ssl" else teacher
  label, what = TEACHERS[teacher]
  what = f"a linear probe of {what}" if teacher == "ssl" else what
  return {
    "label": f"{label} by logits",
    "description": f"soft knowledge distillation from {what} on the distillation head",
    "teachers": {teacher: external.get(source, {"weights": source})},
    "terms": {**LABELS, "kd": {"kind": "soft_kd", "teacher": teacher, "weight": 0.5, "temperature": 4.0}},
  }


def _by_tokens(
  teacher: str, signal: str, options: dict[str, Any], depth: int, stages: int | None
) -> dict[str, Any]:
  label, what, structural, view = SIGNALS[signal]
  taps = tuple(f"block{i:02d}/tokens" for i in (depth // 2 - 1, depth - 1))
  pair = {"teacher": teacher, "student_taps": taps}
  if stages is not None:
    pair["teacher_taps"] = (f"stage{stages - 1}",) * 2
  terms: dict[str, Any] = {"tokens": {"kind": "token_cosine", "head": "linear", "weight": 0.5, **pair}}
  if teacher == "ssl":
    rest = {"kind": "correlation", "weight": 0.05, "start_epoch": 4.0, "teacher": teacher}
    terms["relation"] = {**rest, "student_taps": taps[-1:]}
  terms |= {name: {**term, **pair} for name, term in structural.items()}
  return {
    "label": f"{TEACHERS[teacher][0]} by {label}",
    "description": f"{what} against {TEACHERS[teacher][1]}",
    "teachers": {teacher: {**options, "view": view}},
    "terms": {**LABELS, **terms},
  }


def _by_cls(teacher: str, options: dict[str, Any], depth: int) -> dict[str, Any]:
  taps = tuple(f"block{i:02d}/cls" for i in (depth // 2 - 1, depth - 1))
  term = {"kind": "cka", "over": "samples", "weight": 1.0, "teacher": teacher, "student_taps": taps}
  label, what = TEACHERS[teacher]
  return {
    "label": f"{label} by cls",
    "description": f"CKA over the samples of a batch between the cls tokens and those of {what}",
    "teachers": {teacher: options},
    "terms": {**LABELS, "cka": term},
  }
