"""Two teachers at once on digits, after `make demo` has trained them: METHOD is both or ensemble.

python -m jaxkd.main --config=configs/teachers_together.py:both --workdir=runs/both
python -m jaxkd.main --config=configs/teachers_together.py:ensemble --workdir=runs/ensemble

`both` takes logits from the CNN and tokens from the self-supervised ViT; `ensemble` averages the probabilities of two
classifiers: the CNN and the study's first baseline student.
"""

from jaxkd import recipes
from jaxkd.config import parse_arg
from jaxkd.errors import UserError

TINY = {"name": "deit", "width": 64, "depth": 4, "heads": 4, "mlp_ratio": 2.0, "init_std": 0.1}
CNN = {"name": "adaptive_cnn", "widths": (16, 32), "depths": (1, 1)}
VIT = {"name": "vit", "width": 32, "depth": 2, "heads": 2}


def get_config(arg=None):
  arg = parse_arg(arg, method="both", smoke=False, seed=0)
  if arg.method not in ("both", "ensemble"):
    raise UserError(f"no method '{arg.method}'", "use both or ensemble")
  cnn = recipes.teacher("demo/teachers/cnn", arg.smoke, CNN)
  kd = {"kind": "soft_kd", "teacher": "cnn", "weight": 0.5}
  if arg.method == "both":
    teachers = {"cnn": cnn, "ssl": recipes.teacher("demo/teachers/ssl", arg.smoke, {**VIT, "num_classes": 0})}
    tokens = {"kind": "token_cosine", "teacher": "ssl", "head": "linear", "weight": 0.5}
    more = {"kd": kd, "tokens": {**tokens, "student_taps": ("block01/tokens", "block03/tokens")}}
  else:
    teachers = {"cnn": cnn, "vit": recipes.teacher("demo/students/none_seed0", arg.smoke, VIT)}
    more = {"kd": {**kd, "ensemble": ("vit",)}}
  return {
    "seed": arg.seed,
    "data": {**recipes.data("digits", arg.smoke, crop=1, cutout=4), "image_size": 16},
    "model": TINY,
    "teachers": teachers,
    "terms": {"ce": {**recipes.LABELS, "smoothing": 0.1}, **more},
    "optim": {"name": "adamw", "lr": 2e-3, "warmup_epochs": 2.0},
    "train": recipes.train(arg.smoke, epochs=12.0, batch_size=64),
  }
