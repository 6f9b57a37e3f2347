"""DeiT by soft labels of a ResNet-18 (Hinton 2015): alpha 0.5, temperature 4.

python -m jaxkd.main --config=configs/kd_resnet18.py --workdir=runs/kd_resnet18
"""

from jaxkd import recipes
from jaxkd.config import parse_arg

SMALL = {"name": "resnet18_cifar", "widths": (8, 16), "depths": (1, 1)}
AUGMENT = {"crop": 4, "flip": True, "policy": "autoaugment", "cutmix": 1.0, "cutout": 8}


def get_config(arg=None):
  arg = parse_arg(arg, data="cifar10", smoke=False, seed=0)
  return {
    "seed": arg.seed,
    "data": recipes.data(arg.data, arg.smoke, **AUGMENT),
    "model": recipes.deit(arg.smoke, drop_path=0.1),
    "teachers": {"cnn": recipes.teacher("resnet18", arg.smoke, SMALL, view="same")},
    "terms": {
      "ce": {**recipes.LABELS, "initial_weight": 1.0, "start_epoch": 5.0, "weight": 0.5},
      "kd": {"kind": "soft_kd", "teacher": "cnn", "temperature": 4.0, "start_epoch": 5.0, "weight": 0.5},
    },
    "optim": {"name": "adamw", "lr": 5e-4, "weight_decay": 0.05, "warmup_epochs": 10.0},
    "train": recipes.train(arg.smoke, epochs=200.0, batch_size=1024),
  }
