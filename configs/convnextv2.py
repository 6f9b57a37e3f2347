"""ConvNeXtV2-Tiny with a 2x2 stem, a CNN teacher on CIFAR.

python -m jaxkd.main --config=configs/convnextv2.py --workdir=runs/convnextv2
"""

from jaxkd import recipes
from jaxkd.config import parse_arg


def get_config(arg=None):
  arg = parse_arg(arg, data="cifar10", smoke=False, seed=0)
  augment = {"crop": 4, "flip": True, "policy": "autoaugment"}
  model = {"name": "convnextv2_tiny", "patch_size": 2, "drop_path": 0.1}
  if arg.smoke:
    model |= {"widths": (8, 16), "depths": (1, 1)}
  return {
    "seed": arg.seed,
    "data": recipes.data(arg.data, arg.smoke, **augment),
    "model": model,
    "terms": {"ce": {"kind": "cross_entropy", "smoothing": 0.1}},
    "optim": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05, "warmup_epochs": 5.0},
    "train": recipes.train(arg.smoke, epochs=100.0, batch_size=512),
  }
