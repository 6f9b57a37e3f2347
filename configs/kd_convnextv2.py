"""DeiT by soft labels of a ConvNeXtV2-Tiny (Hinton 2015): alpha 0.5, temperature 4.

python -m jaxkd.main --config=configs/kd_convnextv2.py --workdir=runs/kd_convnextv2
"""

from jaxkd import recipes
from jaxkd.config import parse_arg

SMALL = {"name": "convnextv2_tiny", "patch_size": 2, "widths": (8, 16), "depths": (1, 1)}


def get_config(arg=None):
  arg = parse_arg(arg, data="cifar10", smoke=False, seed=0)
  return recipes.soft_labels(arg, "convnextv2", SMALL)
