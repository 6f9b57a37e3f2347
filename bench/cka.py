"""Times the matrix of debiased linear CKA, layers x layers, against PyTorch's straightforward one; parity first.

python -m bench.cka [--layers=12 --images=512 --width=12288 --rounds=3 --out=results/bench_cka.json]

The straightforward one makes and centres both Gram matrices for every pair of layers, as a loop over pairs does. A
second PyTorch version makes each layer's Gram matrix once, so that the ratio splits into what the arrangement gives
and what the library gives. All get the same float32 features and the same number of threads, in turns.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from pathlib import Path

import jax
import numpy as np
import torch

from jaxkd import run_folder
from jaxkd.analysis.similarity import cka_matrix


def features(layers: int, images: int, width: int) -> list[np.ndarray]:
  """Layers that drift apart: each adds noise to the one before."""
  rng = np.random.default_rng(0)
  x, out = rng.normal(size=(images, width)).astype(np.float32), []
  for _ in range(layers):
    out.append(x)
    x = np.float32(0.9) * x + np.float32(0.4) * rng.normal(size=x.shape).astype(np.float32)
  return out


def u_centred(x: torch.Tensor) -> torch.Tensor:
  """U-centred Gram matrix (Song et al., JMLR 2012)."""
  x = x - x.mean(0, keepdim=True)
  gram, n = x @ x.T, len(x)
  gram.fill_diagonal_(0)
  rows = gram.sum(1, keepdim=True) / (n - 2)
  gram = gram - rows - rows.T + rows.sum() / (n - 1)
  return gram.fill_diagonal_(0)


def by_pairs(a: list[torch.Tensor], b: list[torch.Tensor]) -> np.ndarray:
  out = np.empty((len(a), len(b)))
  for i, x in enumerate(a):
    for j, y in enumerate(b):
      k, m = u_centred(x), u_centred(y)
      out[i, j] = (k * m).sum() / (k.norm() * m.norm())
  return out


def by_layers(a: list[torch.Tensor], b: list[torch.Tensor]) -> np.ndarray:
  grams = [[u_centred(x).flatten() for x in side] for side in (a, b)]
  units = [torch.stack([g / g.norm() for g in side]) for side in grams]
  return (units[0] @ units[1].T).numpy()


def measure(layers: int, images: int, width: int, rounds: int) -> dict:
  both = features(2 * layers, images, width)
  a, b = both[::2], both[1::2]
  device = [[jax.device_put(x) for x in side] for side in (a, b)]
  tensors = [[torch.from_numpy(x) for x in side] for side in (a, b)]
  jobs = {
    "jaxkd": lambda: np.asarray(cka_matrix(*device)),
    "torch, by pairs": lambda: by_pairs(*tensors),
    "torch, by layers": lambda: by_layers(*tensors),
  }
  first = {name: job() for name, job in jobs.items()}  # compiles, and warms up
  errors = {name: float(np.abs(first[name] - first["jaxkd"]).max()) for name in jobs}
  if max(errors.values()) > 1e-4:
    raise SystemExit(f"the implementations disagree: {errors}")
  seconds: dict[str, list[float]] = {name: [] for name in jobs}
  for _ in range(rounds):
    for name, job in jobs.items():
      start = time.perf_counter()
      job()
      seconds[name].append(time.perf_counter() - start)
  return {
    "layers": [layers, layers],
    "images": images,
    "width": width,
    "rounds": rounds,
    "seconds": {name: {"median": float(np.median(s)), "all": s} for name, s in seconds.items()},
    "largest_difference": errors,
    "faster_than_torch_by_pairs": ratio(seconds, "torch, by pairs"),
    "faster_than_torch_by_layers": ratio(seconds, "torch, by layers"),
  }


def ratio(seconds: dict[str, list[float]], name: str) -> float:
  """Median over rounds of the ratio within a round."""
  return float(np.median(np.divide(seconds[name], seconds["jaxkd"])))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--layers", type=int, default=12)
  parser.add_argument("--images", type=int, default=512)
  parser.add_argument("--width", type=int, default=64 * 192, help="64 patch tokens of DeiT-Tiny, flattened")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--out", default="results/bench_cka.json")
  args = parser.parse_args()
  result = {
    "command": "python -m bench.cka " + " ".join(f"--{k}={v}" for k, v in vars(args).items() if k != "out"),
    "date": datetime.date.today().isoformat(),
    "hardware": run_folder.hardware(),
    "threads": torch.get_num_threads(),
    "versions": {"jax": jax.__version__, "torch": torch.__version__},
    **measure(args.layers, args.images, args.width, args.rounds),
  }
  Path(args.out).parent.mkdir(parents=True, exist_ok=True)
  Path(args.out).write_text(json.dumps(result, indent=2) + "\n")
  print(json.dumps(result, indent=2))


if __name__ == "__main__":
  main()
