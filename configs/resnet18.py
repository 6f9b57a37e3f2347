"""ResNet-18 for small images, a CNN teacher on CIFAR.

python -m jaxkd.main --config=configs/resnet18.py --workdir=runs/resnet18
"""

from jaxkd import recipes
from jaxkd.config import parse_arg


def get_config(arg=None):
  arg = parse_arg(arg, data="cifar10", smoke=False, seed=0)
  augment = {"crop": 4, "flip": True, "policy": "autoaugment", "cutmix": 1.0, "cutout": 16}
  return {
    "seed": arg.seed,
    "data": recipes.data(arg.data, arg.smoke, **augment),
    "model": {"name": "resnet18_cifar", **({"widths": (8, 16), "depths": (1, 1)} if arg.smoke else {})},
    "terms": {"ce": {"kind": "cross_entropy"}},  # CutMix labels are soft already
    "optim": {"name": "sgd", "lr": 0.1, "weight_decay": 5e-4, "warmup_epochs": 5.0},
    "train": recipes.train(arg.smoke, epochs=200.0, batch_size=512),
  }
