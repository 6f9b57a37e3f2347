"""DeiT by hard labels of an AdaptiveCNN; the label weight falls from 1 on a cosine, after a silent start.

python -m jaxkd.main --config=configs/deit_adaptive_cnn.py:cifar10 --workdir=runs/deit_adaptive_cnn
"""

from jaxkd import recipes
from jaxkd.config import parse_arg

SMALL = {"name": "adaptive_cnn", "widths": (16, 32), "depths": (1, 1)}


def get_config(arg=None):
  arg = parse_arg(arg, data="cifar10", smoke=False, seed=0)
  digits = arg.data == "mnist"
  last = 0.5 if digits else 0.4
  staged = {"start_epoch": 5.0, "schedule": "cosine"}
  return {
    "seed": arg.seed,
    "data": recipes.data(arg.data, arg.smoke, crop=2 if digits else 4, flip=not digits, cutout=8),
    "model": recipes.deit(arg.smoke, mlp_ratio=2.0, stem="conv", drop_path=0.1),
    "teachers": {"cnn": recipes.teacher("adaptive_cnn", arg.smoke, SMALL)},
    "terms": {
      "ce": {**recipes.LABELS, **staged, "initial_weight": 1.0, "weight": 1.0, "end_weight": last},
      "kd": {"kind": "hard_kd", "teacher": "cnn", **staged, "weight": 0.0, "end_weight": 1.0 - last},
    },
    "optim": {"name": "adamw", "lr": 1e-3 if digits else 2e-3, "weight_decay": 0.05, "warmup_epochs": 5.0},
    "train": recipes.train(arg.smoke, epochs=50.0 if digits else 100.0, batch_size=1024),
  }
