"""Today's other ways to distil a CNN into a ViT, one term beside the labels: METHOD is dkd, dist, rkd, at, sp or ofa.

python -m jaxkd.main --config=configs/rivals.py:dkd --workdir=runs/dkd

DKD arXiv:2203.08679, DIST arXiv:2205.10536, RKD arXiv:1904.05068, attention transfer arXiv:1612.03928,
similarity-preserving arXiv:1907.09682, OFA-KD arXiv:2310.19444. On digits the teacher is the study's CNN.
"""

from jaxkd import recipes
from jaxkd.config import parse_arg
from jaxkd.errors import UserError, did_you_mean

SMALL = {"name": "adaptive_cnn", "widths": (16, 32), "depths": (1, 1)}
TINY = {"name": "deit", "width": 64, "depth": 4, "heads": 4, "mlp_ratio": 2.0, "init_std": 0.1}


def terms(depth):
  """The term of each method, for a student of `depth` blocks."""
  last = (f"block{depth - 1:02d}/tokens",)
  stages = tuple(f"block{i:02d}/tokens" for i in (depth // 2 - 1, depth - 1))
  return {
    "dkd": {"kind": "dkd", "weight": 1.0, "beta": 2.0},
    "dist": {"kind": "dist", "weight": 1.0},
    "rkd": {"kind": "rkd", "weight": 0.02, "student_taps": ("features",), "teacher_taps": ("features",)},
    "at": {"kind": "attention_transfer", "weight": 1000.0, "student_taps": last},
    "sp": {"kind": "similarity_preserving", "weight": 300.0, "student_taps": last},
    "ofa": {"kind": "ofa", "weight": 1.0, "student_taps": (*stages, "logits/dist")},
  }


def get_config(arg=None):
  arg = parse_arg(arg, method="dkd", data="digits", smoke=False, seed=0)
  digits = arg.data == "digits"
  depth = 4 if digits or arg.smoke else 12
  known = terms(depth)
  if arg.method not in known:
    raise UserError(f"no rival '{arg.method}'", did_you_mean(arg.method, known))
  run = "demo/teachers/cnn" if digits else "resnet18"
  augment = {"crop": 1, "cutout": 4} if digits else {"crop": 4, "flip": True, "cutout": 8}
  return {
    "seed": arg.seed,
    "data": recipes.data(arg.data, arg.smoke, **augment),
    "model": TINY if digits else recipes.deit(arg.smoke, drop_path=0.1),
    "teachers": {"cnn": recipes.teacher(run, arg.smoke, SMALL)},
    "terms": {
      "ce": {**recipes.LABELS, "smoothing": 0.1},
      arg.method: {"teacher": "cnn", **known[arg.method]},
    },
    "optim": {"name": "adamw", "lr": 2e-3 if digits else 5e-4, "warmup_epochs": 2.0},
    "train": recipes.train(arg.smoke, epochs=16.0 if digits else 200.0, batch_size=64 if digits else 512),
  }
