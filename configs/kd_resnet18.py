"""DeiT by soft labels of a ResNet-18 (Hinton 2015): alpha 0.5, temperature 4.

python -m jaxkd.main --config=configs/kd_resnet18.py --workdir=runs/kd_resnet18
"""

from jaxkd import recipes
from jaxkd.config import parse_arg

SMALL = {"name": "resnet18_cifar", "widths": (8, 16), "depths": (1, 1)}


def get_config(arg=None):
  arg = parse_arg(arg, data="cifar10", smoke=False, seed=0)
  return recipes.soft_labels(arg, "resnet18", SMALL)
