"""Evaluates a checkpoint on the sealed test split: accuracy, top-k, macro F1, confusion matrix, ROC."""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxkd.commands import parse
from jaxkd.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("checkpoint", help="a run folder (its best step), or one step's folder")
  parser.add_argument("-o", "--out", default="", help="folder of the JSON and figures (default: <run>/eval)")


def run(parser: argparse.ArgumentParser, argv: list[str]) -> int:
  args, overrides = parse(parser, argv)
  if overrides:
    raise UserError("a checkpoint brings its own config; --config.* has no effect", "leave it out")

  from rich.console import Console

  from jaxkd import checkpoint, data, evaluation, files, report, subjects

  found = checkpoint.load(args.checkpoint)
  if not found.meta["num_classes"]:
    raise UserError(
      f"{args.checkpoint} has no classifier to evaluate", "use forensics, or study for its features"
    )
  config = subjects.run_config(found)
  subject = subjects.as_subject(Path(args.checkpoint).name, found)
  test = data.load_test(config.data)
  logits = evaluation.head_logits(
    subject.model,
    subject.variables,
    test,
    mean=subject.mean,
    std=subject.std,
    batch_size=config.eval.batch_size,
  )
  names = tuple(found.meta["class_names"])
  heads = {head: evaluation.classification_report(z, test.labels, names) for head, z in logits.items()}
  about = {"checkpoint": str(found.path), "step": found.step, "digest": found.digest, "split": "test"}
  result = {"schema": "jaxkd.evaluation/1", **about, "data": config.data.name, "heads": heads}
  out = Path(args.out) if args.out else found.path.parent.parent / "eval"
  files.write_json(out / f"evaluation_{found.step}.json", result)
  report.evaluation_figures(result, out)
  Console().print(report.evaluation_table(result))
  print(f"written: {out}/evaluation_{found.step}.json")
  return 0
