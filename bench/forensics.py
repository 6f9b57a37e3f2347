"""Times `forensics` of three DeiT-Tiny checkpoints at 32 px from the command line: seconds, peak memory, prediction.

  python -m bench.forensics [--images 512 --hessian-images 64 --probes 10 --metrics hessian,attention,cka] [--out FILE]

Three students of `configs/vit.py` (12 blocks of width 192; 64 patches, cls and distillation token) are trained for a
few steps on `synthetic_shapes` (520 test images) with seeds 0, 1, 2; then the command runs in a process of its own,
first with an empty compilation cache, then with the filled one. Peak memory is the process's largest resident set, as
the kernel counts it. The line with the predicted time must come first, and both runs must write the same numbers.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jaxkd import run_folder

NAMES = ("Baseline", "CNN-Distilled", "DINO-Distilled")
LIMIT_S, LIMIT_MB = 300.0, 4096.0
PREDICTED = re.compile(r"predicted time: about (?:(\d+) min ?)?(?:(\d+) s)?")


def environment(cache: Path) -> dict[str, str]:
  return {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache)}


def trained(root: Path, steps: int) -> list[str]:
  """Three runs, seeds 0 to 2."""
  paths = []
  for seed in range(3):
    path = root / f"seed{seed}"
    paths.append(str(path))
    if (path / "DONE").exists():
      continue
    options = {
      "train.steps": steps,
      "train.batch_size": 32,
      "optim.warmup_epochs": 0.0,
      "data.examples": 2600,
    }
    flags = [f"--config.{k}={v}" for k, v in options.items()]
    config = f"--config=configs/vit.py:synthetic_shapes,matched,seed={seed}"
    command = [sys.executable, "-m", "jaxkd.main", "train", config, *flags, f"--workdir={path}"]
    subprocess.run(command, env=environment(root / "training_cache"), check=True, stdout=sys.stderr)
  return paths


def timed(command: list[str], cache: Path) -> dict[str, Any]:
  """One process: wall seconds, seconds to the first line, peak resident memory, and what it printed first."""
  start = time.perf_counter()
  with subprocess.Popen(command, env=environment(cache), stdout=subprocess.PIPE, text=True) as process:
    assert process.stdout is not None
    first = process.stdout.readline()
    until_first = time.perf_counter() - start
    rest = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
  seconds = time.perf_counter() - start
  sys.stderr.write(first + rest)
  if process.returncode:
    raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
  found = PREDICTED.match(first)
  if not found:
    raise SystemExit(f"the first line is {first!r}, not the predicted time")
  predicted = 60 * int(found[1] or 0) + int(found[2] or 0)
  return {
    "seconds": seconds,
    "seconds_to_prediction": until_first,
    "predicted_s": predicted,
    "cpu_s": usage.ru_utime + usage.ru_stime,
    "peak_memory_mb": usage.ru_maxrss / 1024,
  }


def numbers(out: Path) -> Any:
  """What the analyses found: the result without dates, durations and paths."""
  result = json.loads((out / "forensics.json").read_text())
  kept = ("accuracy", "hessian", "attention")
  assert result["settings"]["images"] == result["cka"][0]["images"]
  return [{k: m[k] for k in kept} for m in result["models"]], [c["matrix"] for c in result["cka"]]


def measure(args: argparse.Namespace, root: Path) -> dict[str, Any]:
  paths = trained(root, args.steps)
  if (root / "cache").exists():
    raise SystemExit(f"{root / 'cache'} is a filled compilation cache; remove it")
  runs, seen = {}, []
  for name in ("empty cache",) if args.once else ("empty cache", "filled cache"):
    out = root / name.replace(" ", "_")
    command = [sys.executable, "-m", "jaxkd.main", "forensics", *paths, "--names", *NAMES, "-o", str(out)]
    command += [
      f"--images={args.images}",
      f"--hessian-images={args.hessian_images}",
      f"--probes={args.probes}",
    ]
    command += [f"--metrics={args.metrics}"] if args.metrics else []
    runs[name] = timed(command, root / "cache")
    seen.append(numbers(out))
  if seen[0] != seen[-1]:
    raise SystemExit("two runs of the same command found different numbers")
  return {
    "models": "3 x deit_tiny, 32 px, patch 4",
    "images": json.loads((out / "forensics.json").read_text())["settings"]["images"],
    "hessian_images": args.hessian_images,
    "probes": args.probes,
    "metrics": args.metrics or "standard",
    "runs": runs,
    "within_5_min_and_4_gb": all(
      r["seconds"] < LIMIT_S and r["peak_memory_mb"] < LIMIT_MB for r in runs.values()
    ),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--images", type=int, default=512)
  parser.add_argument("--hessian-images", type=int, default=64)
  parser.add_argument("--probes", type=int, default=10)
  parser.add_argument(
    "--metrics", default="hessian,attention,cka", help="as of the command; '' for its standard set"
  )
  parser.add_argument("--steps", type=int, default=5, help="training steps of each student, not timed")
  parser.add_argument("--once", action="store_true", help="with the empty cache only")
  parser.add_argument("--keep", type=Path, help="work in this folder, and leave everything there")
  parser.add_argument("--out", type=Path, help="adds this run to a JSON file")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as scratch:
    result = {
      "command": " ".join(["python -m bench.forensics", *sys.argv[1:]]),
      "date": datetime.date.today().isoformat(),
      "hardware": run_folder.hardware(),
      **measure(args, (args.keep or Path(scratch)).absolute()),
    }
  print(json.dumps(result, indent=2))
  if args.out:
    runs = json.loads(args.out.read_text())["runs"] if args.out.exists() else []
    args.out.write_text(json.dumps({"runs": [*runs, result]}, indent=2) + "\n")


if __name__ == "__main__":
  main()
