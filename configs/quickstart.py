"""A small DeiT on scikit-learn's digits, no teacher: minutes on a laptop, offline.

python -m jaxkd.main --config=configs/quickstart.py --workdir=runs/quickstart
"""

from jaxkd.config import parse_arg


def get_config(arg=None):
  arg = parse_arg(arg, smoke=False, seed=0)
  return {
    "seed": arg.seed,
    "data": {
      "name": "digits",
      "image_size": 16,
      "augment": {"crop": 1, "brightness": 0.2, "contrast": 0.2, "cutout": 4},
    },
    "model": {
      "name": "deit",
      "patch_size": 4,
      "width": 64,
      "depth": 4,
      "heads": 4,
      "mlp_ratio": 2.0,
      "init_std": 0.1,
    },
    "terms": {"ce": {"kind": "cross_entropy", "smoothing": 0.1}},
    "optim": {"name": "adamw", "lr": 2e-3, "weight_decay": 0.05, "warmup_epochs": 2.0},
    "train": {"steps": 4 if arg.smoke else 0, "epochs": 20.0, "batch_size": 64},
  }
