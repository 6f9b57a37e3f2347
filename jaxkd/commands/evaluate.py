"""Evaluates a checkpoint on the sealed test split: accuracy, top-k, macro F1, confusion matrix, ROC; with and without
test-time augmentation."""

from __future__ import annotations

import argparse
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
  parser.add_argument("-o", "--out", default="", help="folder of the JSON and figures (default: <run>/eval)")
  add_download(parser)


def run(parser: argparse.ArgumentParser, argv: list[str]) -> int:
  args, overrides = parse(parser, argv)
  if overrides:
    raise UserError("a checkpoint brings its own config; --config.* has no effect", "leave it out")
  if args.tta < 0:
    raise UserError(f"--tta {args.tta} is not a number of views", "e.g. --tta 8")

  import numpy as np
  from rich.console import Console

  from jaxkd import checkpoint, data, distributed, evaluation, files, report, sharding, subjects
  from jaxkd.data.augment import changes_images

  found = checkpoint.load(args.checkpoint)
  if not found.meta["num_classes"]:
    raise UserError(
      f"{args.checkpoint} has no classifier to evaluate", "use forensics, or study for its features"
    )
  config = subjects.run_config(found)
  config.data.download |= args.download
  subject = subjects.as_subject(Path(args.checkpoint).name, found)
  augment, views = config.data.augment.to_dict(), config.data.views.to_dict()
  if args.tta and not changes_images(augment, views):
    raise UserError(
      f"{args.checkpoint} was trained without augmentation: all its views are the same", "leave out --tta"
    )
  test = data.load_test(config.data)
  names = tuple(found.meta["class_names"])
  mesh = sharding.make_mesh()
  options = {"mean": subject.mean, "std": subject.std, "batch_size": config.eval.batch_size}
  logits = evaluation.head_logits(subject.model, subject.variables, test, **options, mesh=mesh)
  heads = {head: evaluation.classification_report(z, test.labels, names) for head, z in logits.items()}
  about = {"checkpoint": str(found.path), "step": found.step, "digest": found.digest, "split": "test"}
  result = {"schema": "jaxkd.evaluation/1", **about, "data": config.data.name, "heads": heads}
  if args.tta:
    averaged = evaluation.augmented_probabilities(
      subject.model, subject.variables, test.images, count=args.tta, augment=augment, views=views, **options
    )
    logs = {head: np.log(np.maximum(p, 1e-38)) for head, p in averaged.items()}
    reports = {head: evaluation.classification_report(z, test.labels, names) for head, z in logs.items()}
    result["tta"] = {"views": args.tta, "heads": reports}
  out = Path(args.out) if args.out else found.path.parent.parent / "eval"
  if not distributed.is_first():
    return 0
  files.write_json(out / f"evaluation_{found.step}.json", result)
  report.evaluation_figures(result, out)
  Console().print(report.evaluation_table(result))
  if args.tta:
    Console().print(report.evaluation_table(result, averaged=True))
  print(f"written: {out}/evaluation_{found.step}.json")
  return 0
