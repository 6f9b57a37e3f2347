"""DINOv2 to DeiT by CKA of the cls tokens over the samples of a batch.

python -m jaxkd.main --config=configs/ss_cka_cls.py --workdir=runs/ss_cka_cls

`views` fixed geometries of each image are in the feature bank; `views=0` runs the teacher live.
"""

from jaxkd import recipes
from jaxkd.config import parse_arg


def get_config(arg=None):
  arg = parse_arg(arg, data="cifar10", smoke=False, teacher="dinov2_vits14", views=4, seed=0)
  augment = {"geometries": arg.views, "crop": 4, "flip": True, "policy": "autoaugment_color", "cutout": 8}
  bank = f"runs/banks/{arg.data}_{arg.teacher}_ss_cka_cls" if arg.views else ""
  taps = {"teacher": "dino", "student_taps": recipes.layers(arg.smoke, (8, 9, 10, 11), "cls")}
  terms = {
    "ce": {**recipes.LABELS, "smoothing": 0.1},
    "cka": {"kind": "cka", "over": "samples", "weight": 1.0, **taps},
  }
  return {
    "seed": arg.seed,
    "data": recipes.data(arg.data, arg.smoke, **augment),
    "model": recipes.deit(arg.smoke, drop_path=0.1),
    "teachers": {"dino": recipes.dinov2(arg.teacher, arg.smoke, bank=bank)},
    "terms": terms,
    "optim": {"name": "adamw", "lr": 5e-4, "weight_decay": 0.05, "warmup_epochs": 10.0},
    "train": recipes.train(arg.smoke, epochs=200.0, batch_size=512),
  }
