"""Images per second of the augmentation on the device, against torchvision; and its share of a training step.

  python -m bench.data [--rounds 5] [--no-torch] [--no-training] [--out results/bench_data.json]

Crop, flip, AutoAugment, normalise and Cutout on 32 px images in batches of 512: `jaxkd.data.make_views` as in the
training step, images resident, against DataLoaders with 0 and 2 workers: of torchvision's transforms
(bench.torch_loader), and of the same operations by hand, without what torchvision adds to them (bench.pillow_loader).
Each round runs one after the other, the loaders whole epochs, so that their workers rest while others are timed. The
ratio is to the fastest loader of its kind, whichever it is. The time cores are busy per image, without workers, depends
much less on what else the machine does than images/s do. Then the parts of `make_views`, each alone; and a step of
DeiT-Tiny at batch 128, its augmentation alone, and its wait for the batch.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench import data_parts
from jaxkd import config as configs
from jaxkd import data, run_folder, schema, step
from jaxkd.data.policies import CIFAR10
from jaxkd.experiment import build
from jaxkd.feed import make_batch
from jaxkd.teachers import normalize

SIZE, BATCH, EPOCH = 32, 512, 4  # pixels, images, batches
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
AUGMENT = {"crop": 4, "flip": True, "policy": "autoaugment", "cutout": 8}
REPEAT = 20  # epochs of the device in one round: its own are short


def pictures(count: int) -> np.ndarray:
  """Smooth random pictures, uint8 [n 32 32 3]: noise alone would have no histogram to equalise."""
  coarse = np.random.default_rng(0).normal(128, 60, (count, 8, 8, 3))
  fine = jax.image.resize(jnp.asarray(coarse, jnp.float32), (count, SIZE, SIZE, 3), "linear")
  return np.asarray(jnp.clip(fine, 0, 255).astype(jnp.uint8))


def device(images: np.ndarray, batch: int = BATCH) -> Callable[[], float]:
  """`seconds()` of REPEAT epochs."""
  views = {name: field.default for name, field in schema.DATA["views"].items()}  # type: ignore[attr-defined]

  @jax.jit
  def augment(images, index, number):
    key = jax.random.fold_in(jax.random.key(0), number)
    seen = data.make_views(images[index], key, mean=MEAN, augment=AUGMENT, views=views)
    return normalize(seen["student"], MEAN, STD)

  resident, number = jax.device_put(images), 0

  def seconds() -> float:
    nonlocal number
    start = time.perf_counter()
    for _ in range(REPEAT * EPOCH):
      index = data.batch_indices(number, examples=len(images), batch_size=batch, seed=0)
      jax.block_until_ready(augment(resident, index, number))
      number += 1
    return time.perf_counter() - start

  seconds()  # compiles
  return seconds


def loaders(images: np.ndarray) -> dict[str, Callable[[], float]]:
  """Name -> `seconds()` of one epoch, for every kind of transforms and number of workers."""
  import torch

  from bench import pillow_loader, torch_loader

  torch.set_num_threads(1)  # as in workers: on images this small threads only wait for each other
  options = {"mean": MEAN, "std": STD, "crop": AUGMENT["crop"], "cutout": AUGMENT["cutout"]}
  made = {}
  for workers in (0, 2):
    for variant in torch_loader.VARIANTS:
      name = f"torchvision {variant}, {workers} workers"
      made[name] = torch_loader.loader(images, variant, batch_size=BATCH, workers=workers, **options)
    by_hand = pillow_loader.Augmented(images, CIFAR10, MEAN, STD)
    made[f"by hand, {workers} workers"] = pillow_loader.loader(by_hand, batch_size=BATCH, workers=workers)
  return {name: epoch(loader, len(images)) for name, loader in made.items()}


def epoch(loader: Any, images: int) -> Callable[[], float]:
  def seconds() -> float:
    start = time.perf_counter()
    assert sum(len(batch) for batch in loader) == images
    return time.perf_counter() - start

  seconds()  # starts the workers
  return seconds


def quantiles(values: list[float]) -> dict[str, float]:
  return {"median": float(np.median(values)), "low": min(values), "high": max(values), "n": len(values)}


def throughput(rounds: int, *, torch: bool) -> dict[str, Any]:
  images = pictures(EPOCH * BATCH)
  timed = {"device": device(images), **(loaders(images) if torch else {})}
  speed: dict[str, list[float]] = {name: [] for name in timed}
  busy: dict[str, list[float]] = {name: [] for name in timed if "2 workers" not in name}
  for _ in range(rounds):
    for name, seconds in timed.items():
      images_seen, before = len(images) * (REPEAT if name == "device" else 1), time.process_time()
      speed[name].append(images_seen / seconds())
      if name in busy:
        busy[name].append(1e6 * (time.process_time() - before) / images_seen)
  result: dict[str, Any] = {"images/s": {name: quantiles(values) for name, values in speed.items()}}
  result["core microseconds per image"] = {name: quantiles(values) for name, values in busy.items()}
  for kind in ("torchvision", "by hand") if torch else ():
    result[f"ratio to {kind}"] = ratio(speed, kind)
  return result


def ratio(speed: dict[str, list[float]], kind: str) -> dict[str, Any]:
  """To the loader of this kind whose median is highest: of the medians, and round by round."""
  best = max((name for name in speed if name.startswith(kind)), key=lambda name: np.median(speed[name]))
  by_round = [ours / theirs for ours, theirs in zip(speed["device"], speed[best], strict=True)]
  medians = float(np.median(speed["device"]) / np.median(speed[best]))
  return {"fastest": best, "of medians": medians, "round by round": quantiles(by_round)}


def training(rounds: int, *, batch: int = 128) -> dict[str, Any]:
  """A DeiT-Tiny step, the time its batch takes to be made, and what the augmentation takes of it when run alone."""
  config = configs.complete(
    {
      "data": {"name": "synthetic", "image_size": SIZE, "channels": 3, "examples": 1000, "augment": AUGMENT},
      "model": {"name": "deit_tiny", "patch_size": 4},
      "terms": {"ce": {"kind": "cross_entropy"}},
      "train": {"steps": 1000, "batch_size": batch},
      "eval": {"metric": "none"},
    }
  )
  experiment = build(config)
  train_step, frozen = step.make_train_step(experiment), step.frozen_inputs(experiment)
  state = step.place(experiment, step.init_state(experiment))
  alone = device(pictures(EPOCH * batch), batch)
  steps, waits, augmenting = [], [], []
  for number in range(rounds + 1):
    start = time.perf_counter()
    made = make_batch(experiment, number)
    middle = time.perf_counter()
    state, metrics = train_step(state, made, frozen)
    jax.block_until_ready((state, metrics))
    if number:  # the first one compiles
      waits.append(1e3 * (middle - start))
      steps.append(1e3 * (time.perf_counter() - middle))
      augmenting.append(1e3 * alone() / (REPEAT * EPOCH))
  return {
    "batch": batch,
    "step ms": quantiles(steps),
    "augmentation alone ms": quantiles(augmenting),
    "wait for the batch ms": quantiles(waits),
    "augmentation / step": float(np.median(augmenting) / np.median(steps)),
    "wait / step": float(np.median(waits) / np.median(steps)),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--no-torch", action="store_true")
  parser.add_argument("--no-training", action="store_true")
  parser.add_argument("--out", type=Path, help="writes the result there too")
  args = parser.parse_args()
  result = {
    "command": " ".join(["python -m bench.data", *sys.argv[1:]]),
    "date": str(datetime.date.today()),
    "hardware": run_folder.hardware(),
    "batch": BATCH,
    "pixels": SIZE,
    **throughput(args.rounds, torch=not args.no_torch),
    "parts ms": data_parts.parts(pictures(BATCH), AUGMENT, mean=MEAN, std=STD, rounds=args.rounds),
  }
  if not args.no_training:
    result["training"] = training(args.rounds)
  print(text := json.dumps(result, indent=2))
  if args.out:
    args.out.write_text(text + "\n")


if __name__ == "__main__":
  main()
