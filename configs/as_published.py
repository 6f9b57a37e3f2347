"""The choices of the study that jaxkd replaces, for comparison: clean views, biased CKA, inert Gram, its own recipes.

python -m jaxkd.main --config=configs/as_published.py:ss_cka --workdir=runs/as_published_ss_cka

METHOD is kd, ss_cka, ss_cka_cls, ss_gram, ss_tokens or baseline. The teacher sees the image without augmentation while
the student's is cropped and flipped, so their tokens do not show the same places; linear CKA is the biased estimate;
Gram matrices are compared by ||.||_F / n^2, a term of about 1e-3. The baseline has another width of its MLP, another
stem, augmentation, learning rate and length than the students it is compared with.
"""

from jaxkd import recipes
from jaxkd.config import parse_arg
from jaxkd.errors import UserError, did_you_mean

METHODS = ("kd", "ss_cka", "ss_cka_cls", "ss_gram", "ss_tokens", "baseline")
CNN = {"name": "resnet18_cifar", "widths": (8, 16), "depths": (1, 1)}


def get_config(arg=None):
  arg = parse_arg(arg, method="ss_cka", data="cifar10", smoke=False, teacher="dinov2_vits14", seed=0)
  if arg.method not in METHODS:
    raise UserError(f"no published method '{arg.method}'", did_you_mean(arg.method, METHODS))
  augment = {"crop": 4, "flip": True, "policy": "autoaugment", "cutout": 8}
  config = {
    "seed": arg.seed,
    "data": recipes.data(arg.data, arg.smoke, **augment),
    "model": recipes.deit(arg.smoke, drop_path=0.1),
    "teachers": {"dino": recipes.dinov2(arg.teacher, arg.smoke, view="clean")},
    "terms": {"ce": {**recipes.LABELS, "smoothing": 0.1}, **terms(arg)},
    "optim": {"name": "adamw", "lr": 5e-4, "weight_decay": 0.05, "warmup_epochs": 10.0},
    "train": recipes.train(arg.smoke, epochs=200.0, batch_size=512),
  }
  if arg.method == "kd":
    config["teachers"] = {"cnn": recipes.teacher("resnet18", arg.smoke, CNN, view="clean")}
  if arg.method == "baseline":
    config |= {
      "data": recipes.data(arg.data, arg.smoke, crop=4, flip=True, policy="randaugment"),
      "model": recipes.deit(arg.smoke, mlp_ratio=2.0, stem="conv"),
      "teachers": {},
      "optim": {"name": "adamw", "lr": 2e-3, "weight_decay": 0.05, "warmup_epochs": 5.0},
      "train": recipes.train(arg.smoke, epochs=100.0, batch_size=1024),
    }
  return config


def terms(arg):
  """The terms beside the labels."""
  listed = recipes.layers(arg.smoke, (3, 6, 9, 11))
  taps = {"teacher": "dino", "student_taps": listed}
  tokens = {"kind": "token_cosine", "head": "linear", "weight": 0.5, **taps}
  relation = {"kind": "correlation", "weight": 0.05, "teacher": "dino", "student_taps": listed[-1:]}
  cka = {"kind": "cka", "debiased": False, "weight": 0.5}
  cls = recipes.layers(arg.smoke, (8, 9, 10, 11), "cls")
  return {
    "baseline": {},
    "kd": {"kd": {"kind": "soft_kd", "teacher": "cnn", "temperature": 4.0, "weight": 0.5}},
    "ss_cka": {"tokens": tokens, "relation": relation, "cka": {**cka, **taps}},
    "ss_cka_cls": {"cka": {**cka, "over": "samples", "weight": 1.0, "teacher": "dino", "student_taps": cls}},
    "ss_gram": {"tokens": tokens, "gram": {"kind": "gram", "published": True, "weight": 0.5, **taps}},
    "ss_tokens": {"tokens": {**tokens, "weight": 1.0}, "relation": {**relation, "weight": 0.1}},
  }[arg.method]
