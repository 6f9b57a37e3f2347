"""Writes tests/parity/goldens/*.npz: random weights of small torch models, images, and their outputs by part.

  pip install torch==2.13.0 transformers
  python -m tests.parity.make_goldens

Images are whole numbers in [0, 255], shown to the models as x / 127.5 - 1. The largest one is stored, smaller ones
are its top left corners.
"""

from pathlib import Path

import numpy as np
import torch
import transformers

from tests.parity.cases import CASES
from tests.parity.torch_cases import build, randomize, run

FOLDER = Path(__file__).parent / "goldens"
KEPT = (
  "embed/tokens",
  "stem",
  "block00/tokens",
  "block01/tokens",
  "stage0",
  "stage3",
  "logits/cls",
  "logits/dist",
)


def main() -> None:
  FOLDER.mkdir(exist_ok=True)
  for seed, (file, case) in enumerate(CASES.items()):
    module = randomize(build(file), seed)
    side = max(case.sizes)
    images = np.random.default_rng(seed).integers(0, 256, (2, side, side, 3)).astype(np.uint8)
    arrays = {f"state/{k}": v.numpy() for k, v in module.state_dict().items()} | {"images": images}
    for size in case.sizes:
      parts = run(file, module, images[:, :size, :size].astype(np.float32) / np.float32(127.5) - 1)
      arrays |= {f"{size}/{name}": parts[name] for name in KEPT if name in parts}
    np.savez_compressed(FOLDER / f"{file}.npz", **arrays)
    print(
      f"{file}: {(FOLDER / f'{file}.npz').stat().st_size:,} bytes, torch {torch.__version__}, "
      f"transformers {transformers.__version__}"
    )


if __name__ == "__main__":
  main()
