"""The locality knob: a student trained to a chosen attention distance, with no teacher at all.

python -m jaxkd.main --config=configs/locality.py:digits,target=0.5 --workdir=runs/local

`target` is the mean attention distance wanted of every layer, as a share of uniform attention's (1 looks everywhere
alike). This is the causal test of the Locality Curse: does locality alone, without a CNN, cost accuracy?
"""

from jaxkd import recipes
from jaxkd.config import parse_arg

TINY = {"name": "deit", "width": 64, "depth": 4, "heads": 4, "mlp_ratio": 2.0, "init_std": 0.1}


def get_config(arg=None):
  arg = parse_arg(arg, data="digits", smoke=False, target=0.5, weight=1.0, seed=0)
  digits = arg.data == "digits"
  depth = 4 if digits or arg.smoke else 12
  taps = tuple(f"block{i:02d}/attn" for i in range(depth))
  knob = {"kind": "locality", "weight": arg.weight, "student_taps": taps, "targets": (arg.target,) * depth}
  augment = {"crop": 1, "cutout": 4} if digits else {"crop": 4, "flip": True, "cutout": 8}
  return {
    "seed": arg.seed,
    "data": recipes.data(arg.data, arg.smoke, **augment),
    "model": TINY if digits else recipes.deit(arg.smoke, drop_path=0.1),
    "terms": {"ce": {**recipes.LABELS, "smoothing": 0.1}, "knob": knob},
    "optim": {"name": "adamw", "lr": 2e-3 if digits else 5e-4, "warmup_epochs": 2.0},
    "train": recipes.train(arg.smoke, epochs=12.0 if digits else 200.0, batch_size=64 if digits else 512),
  }
