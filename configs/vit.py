"""The baseline student without a teacher: its own best recipe, or `matched`, the distilled students' recipe.

python -m jaxkd.main --config=configs/vit.py:cifar10 --workdir=runs/vit
python -m jaxkd.main --config=configs/vit.py:cifar10,matched --workdir=runs/vit_matched
"""

from jaxkd import recipes
from jaxkd.config import parse_arg


def get_config(arg=None):
  arg = parse_arg(arg, data="cifar10", smoke=False, matched=False, seed=0)
  flip = arg.data.startswith("cifar")
  own = {"crop": 4, "flip": flip, "policy": "randaugment", "mixup": 0.8}
  matched = {"crop": 4, "flip": flip, "policy": "autoaugment_color", "cutout": 8}
  lr, epochs, batch = (5e-4, 200.0, 512) if arg.matched else (2e-3, 100.0, 1024)
  return {
    "seed": arg.seed,
    "data": recipes.data(arg.data, arg.smoke, **(matched if arg.matched else own)),
    "model": recipes.deit(arg.smoke, drop_path=0.1),
    "terms": {"ce": {**recipes.LABELS, "smoothing": 0.0 if own["mixup"] and not arg.matched else 0.1}},
    "optim": {"name": "adamw", "lr": lr, "weight_decay": 0.05, "warmup_epochs": 10.0},
    "train": recipes.train(arg.smoke, epochs=epochs, batch_size=batch),
  }
