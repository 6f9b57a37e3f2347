"""Class probabilities of image files by a checkpoint: one image, several, a list or a folder; a table and JSON."""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxkd.commands import parse
from jaxkd.errors import UserError, did_you_mean

EXPLAINED = 32  # files whose heat maps are in memory at once


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("checkpoint", help="a run folder (its best step), or one step's folder")
  parser.add_argument(
    "images", nargs="+", help="image files, folders of them, or lists (.txt, .csv with a column path)"
  )
  parser.add_argument("--top", type=int, default=3, help="classes shown for each image (default: 3)")
  parser.add_argument("--head", default="cls", help="whose probabilities: cls (default), dist or mean")
  parser.add_argument(
    "--tta",
    type=int,
    default=0,
    metavar="N",
    help="average over the image and N views augmented as in training",
  )
  parser.add_argument(
    "--explain",
    action="store_true",
    help="also save, for each image, what the prediction rests on: Grad-CAM, and for a ViT attention maps",
  )
  parser.add_argument("-o", "--out", default="predictions", help="folder of predictions.json and pictures")


def run(parser: argparse.ArgumentParser, argv: list[str]) -> int:
  args, overrides = parse(parser, argv)
  if overrides:
    raise UserError("a checkpoint brings its own config; --config.* has no effect", "leave it out")
  if args.tta < 0 or args.top < 1:
    raise UserError(f"--tta {args.tta} or --top {args.top} is out of range", "--tta from 0, --top from 1")

  from rich.console import Console

  from jaxkd import checkpoint, files, report, subjects
  from jaxkd.prediction import SCHEMA, image_files, predict, ranked, stored

  found = checkpoint.load(args.checkpoint)
  subject = subjects.classifier(Path(args.checkpoint).name, found)
  config = subjects.run_config(found)
  paths = image_files(args.images)
  images = stored(subject, paths)
  more = subjects.augmentation(args.checkpoint, config) if args.tta else None
  by_head = predict(subject, images, batch_size=config.eval.batch_size, views=args.tta, augmentation=more)
  if args.head not in by_head:
    raise UserError(f"the model has no head '{args.head}'", did_you_mean(args.head, by_head))
  predictions = ranked(paths, by_head[args.head], tuple(found.meta["class_names"]))
  result = {
    "schema": SCHEMA,
    "checkpoint": str(found.path),
    "digest": found.digest,
    "head": args.head,
    "views": args.tta,
    "images": [{"path": p.path, "probabilities": dict(p.classes)} for p in predictions],
  }
  out = Path(args.out)
  files.write_json(out / "predictions.json", result)
  Console().print(report.predictions_table(predictions, top=args.top))
  if args.explain:
    _explain(subject, images, paths, predictions, out / "explained")
  print(f"written: {out}/predictions.json" + (f", {out}/explained/" if args.explain else ""))
  return 0


def _explain(subject, images, paths, predictions, out: Path) -> None:
  """One picture for each file: the image, and the heat map of every method over it."""
  from jaxkd import report
  from jaxkd.analysis.examination import explained

  for start in range(0, len(paths), EXPLAINED):
    index = range(start, min(start + EXPLAINED, len(paths)))
    part = images.images[start : start + len(index)]
    maps = explained(subject, part)
    for k, i in enumerate(index):
      name, p = predictions[i].classes[0]
      heat = {method: values[k] for method, values in maps.items()}
      path = out / f"{i:04d}_{report.slugs([paths[i].stem])[0]}.png"
      report.explanation_picture(part[k] / 255, heat, f"{paths[i].name}: {name}, {100 * p:.1f} %", path)
