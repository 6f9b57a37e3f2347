"""Evaluates a checkpoint on the sealed test split: accuracy, top-k, macro scores, AUC, calibration, confusions, ROC,
most confident mistakes; every head, with intervals; with and without test-time augmentation. Writes JSON, figures and
report.html."""

from __future__ import annotations

import argparse
import csv
import datetime
import io
from pathlib import Path

from jaxkd.commands import add_download, parse
from jaxkd.errors import UserError

TOGETHER = True  # several processes share the work


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("checkpoint", help="a run folder (its best step), or one step's folder")
  parser.add_argument(
    "--tta",
    type=int,
    default=0,
    metavar="N",
    help="also average the probabilities over the original and N views augmented as in training",
  )
  parser.add_argument(
    "-n", "--name", default="", help="name of the model in the report (default: its folder's)"
  )
  parser.add_argument("--mistakes", type=int, default=16, help="most confident mistakes shown (default: 16)")
  parser.add_argument("-o", "--out", default="", help="folder of everything written (default: <run>/eval)")
  add_download(parser)


def run(parser: argparse.ArgumentParser, argv: list[str]) -> int:
  args, overrides = parse(parser, argv)
  if overrides:
    raise UserError("a checkpoint brings its own config; --config.* has no effect", "leave it out")
  if args.tta < 0:
    raise UserError(f"--tta {args.tta} is not a number of views", "e.g. --tta 8")
  if args.mistakes < 0:
    raise UserError(f"--mistakes {args.mistakes} is not a number of images", "e.g. --mistakes 16")

  from rich.console import Console

  from jaxkd import checkpoint, data, distributed, evaluation, files, forensics, report, sharding, subjects
  from jaxkd.classification import classification_report, confident_mistakes

  found = checkpoint.load(args.checkpoint)
  subject = subjects.classifier(args.name or run_name(args.checkpoint), found)
  config = subjects.run_config(found)
  config.data.download |= args.download
  augmented = subjects.augmentation(args.checkpoint, config) if args.tta else {}
  test = data.load_test(config.data)
  names = tuple(found.meta["class_names"])
  mesh = sharding.make_mesh()
  options = {"mean": subject.mean, "std": subject.std, "batch_size": config.eval.batch_size}
  logits = evaluation.head_logits(subject.model, subject.variables, test, **options, mesh=mesh)
  result = {
    "schema": "jaxkd.evaluation/2",
    **forensics.context(datetime.date.today().isoformat()),
    "name": subject.name,
    "checkpoint": str(found.path),
    "model": subject.about["model"],
    "step": found.step,
    "digest": found.digest,
    "split": "test",
    "data": config.data.name,
    "heads": {head: classification_report(z, test.labels, names) for head, z in logits.items()},
    "mistakes": confident_mistakes(logits["cls"], test.labels, args.mistakes),
  }
  if args.tta:
    averaged = evaluation.augmented_probabilities(
      subject.model, subject.variables, test.images, count=args.tta, **augmented, **options
    )
    logs = {head: evaluation.log_probabilities(p) for head, p in averaged.items()}
    reports = {head: classification_report(z, test.labels, names) for head, z in logs.items()}
    result["tta"] = {"views": args.tta, "heads": reports}
  out = Path(args.out) if args.out else checkpoint.home(found.path) / "eval"
  if not distributed.is_first():
    return 0
  files.write_json(out / f"evaluation_{found.step}.json", result)
  files.write_text(out / f"predictions_{found.step}.csv", predictions(logits["cls"], test.labels, names))
  pictures = [test.images[m["index"]] / 255 for m in result["mistakes"]]
  page = report.evaluation_report(result, out, pictures=pictures)
  Console().print(report.evaluation_table(result))
  if args.tta:
    Console().print(report.evaluation_table(result, averaged=True))
  print(f"written: {out}/evaluation_{found.step}.json\nreport: {page}")
  return 0


def run_name(path: str) -> str:
  """`runs/a`, `runs/a/checkpoints` and `runs/a/checkpoints/30` are all `a`."""
  found = Path(path).absolute()
  parts = found.parts[: found.parts.index("checkpoints")] if "checkpoints" in found.parts else found.parts
  return parts[-1]


def predictions(logits, labels, names: tuple[str, ...]) -> str:
  """Every image of the split, as CSV: what it is, what it was taken for, with which probability."""
  from jaxkd.classification import probabilities

  p = probabilities(logits)
  text = io.StringIO()
  rows = csv.writer(text, lineterminator="\n")
  rows.writerow(("index", "true", "predicted", "confidence", "probability_of_true"))
  for i, (label, guess) in enumerate(zip(labels, p.argmax(1), strict=True)):
    rows.writerow((i, names[label], names[guess], f"{p[i, guess]:.6f}", f"{p[i, label]:.6f}"))
  return text.getvalue()
