"""DINOv2 to DeiT by tokens, correlation and Gram matrices instead of CKA.

python -m jaxkd.main --config=configs/ss_gram.py --workdir=runs/ss_gram

`views` fixed geometries of each image are in the feature bank; `views=0` runs the teacher live.
"""

from jaxkd import recipes
from jaxkd.config import parse_arg


def get_config(arg=None):
  arg = parse_arg(arg, data="cifar10", smoke=False, teacher="dinov2_vits14", views=4, seed=0)
  augment = {"geometries": arg.views, "crop": 4, "flip": True, "policy": "autoaugment_color", "cutout": 8}
  bank = f"runs/banks/{arg.data}_{arg.teacher}_ss_gram" if arg.views else ""
  taps = {"teacher": "dino", "student_taps": recipes.layers(arg.smoke, (3, 6, 9, 11))}
  terms = {
    "ce": {**recipes.LABELS, "smoothing": 0.1},
    "tokens": {"kind": "token_cosine", "head": "linear", "weight": 0.5, **taps},
    "relation": {
      "kind": "correlation",
      "weight": 0.05,
      "start_epoch": 10.0,
      "teacher": "dino",
      "student_taps": taps["student_taps"][-1:],
    },
    "gram": {"kind": "gram", "weight": 0.5, "start_epoch": 5.0, **taps},
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
