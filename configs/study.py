"""The matched experiment: students that differ only in their teacher.

python -m jaxkd.main study --config=configs/study.py:digits --workdir=runs/digits     (12 students, minutes on 2 cores)
python -m jaxkd.main study --config=configs/study.py:fashion_mnist,arms=none+cnn_kd+local_50 --workdir=runs/fashion

Arguments: the data set (digits, fashion_mnist, synthetic_shapes, cifar10, cifar100); `arms`, joined by +; `seeds`;
`epochs` (0: the set's own); `smoke`. Arms: none; dist_ce, the second head on labels; local_N, the locality knob at N
percent; TEACHER_SIGNAL, with the teachers cnn, resnet, convnext, vit, ssl, self and the signals kd, tokens, gram,
clean, biased, cls (`jaxkd.study_recipes`).
"""

from jaxkd import recipes, study_recipes
from jaxkd.config import parse_arg
from jaxkd.errors import UserError, did_you_mean
from jaxkd.study_recipes import LABELS

SMALL = {
  "name": "deit",
  "drop_path": 0.0,
  "patch_size": 4,
  "width": 64,
  "heads": 4,
  "mlp_ratio": 2.0,
  "init_std": 0.1,
}
GREY = {"brightness": 0.2, "contrast": 0.2, "cutout": 4}
COLOUR = {"crop": 4, "flip": True, "policy": "autoaugment_color", "cutout": 8}
# On CIFAR the teachers come from their own presets, and DINOv2 from its official weights.
TRAINED = {
  "cnn": {"weights": "runs/adaptive_cnn"},
  "resnet": {"weights": "runs/resnet18"},
  "convnext": {"weights": "runs/convnextv2"},
  "vit": {"weights": "runs/vit"},
  "ssl": recipes.dinov2("dinov2_vits14", False),
}
# Of the self-supervised teacher. Mild geometry and two global views: on 16-pixel digits a small crop no longer shows
# which digit it was.
SSL = dict(
  views={"global_count": 2, "global_scale": (0.8, 1.0)},
  epochs=30.0,
  warmup=3.0,
  batch=32,
  lr=6e-4,
  ema=(0.99, 0.998),
)
# Student, images, epochs, batch, learning rate of each data set, and the teachers that the study does not train.
SETS = {
  "digits": dict(augment={"crop": 1, **GREY}, model={**SMALL, "depth": 4}, epochs=16.0, batch=64, lr=2e-3),
  "fashion_mnist": dict(
    augment={"crop": 2, "flip": True, **GREY},
    model={**SMALL, "depth": 6},
    epochs=10.0,
    batch=128,
    lr=1e-3,
    ssl=dict(
      views={
        "global_count": 2,
        "global_scale": (0.5, 1.0),
        "local_count": 4,
        "local_size": 12,
        "local_scale": (0.2, 0.5),
      },
      epochs=8.0,
      warmup=1.0,
      batch=64,
      lr=1e-3,
      ema=(0.992, 0.999),
    ),
  ),
  "synthetic_shapes": dict(
    augment={"crop": 2, **GREY}, model={**SMALL, "depth": 6}, epochs=10.0, batch=128, lr=1e-3
  ),
  **{
    name: dict(
      augment=COLOUR,
      model={"name": "deit_tiny", "drop_path": 0.1},
      epochs=200.0,
      batch=512,
      lr=5e-4,
      teachers=TRAINED,
    )
    for name in ("cifar10", "cifar100")
  },
}
ARMS = "none+cnn_kd+cnn_tokens+ssl_tokens"
CLAIMS = (
  "accuracy_cls: cnn_kd < none",
  "accuracy_cls: cnn_tokens < none",
  "accuracy_cls: none < cnn_kd < ssl_tokens",
  "mean_distance: cnn_tokens < none < ssl_tokens",
  "cls_dispersion: cnn_tokens < none < ssl_tokens",
  "hessian_trace: ssl_tokens < none < cnn_tokens",
  "collapsed_heads: ssl_tokens < none < cnn_tokens",
)


def get_config(arg=None):
  arg = parse_arg(arg, data="digits", smoke=False, seeds=3, arms=ARMS, epochs=0.0)
  if arg.data not in SETS:
    raise UserError(f"the study has no recipe for data set '{arg.data}'", did_you_mean(arg.data, SETS))
  known, names = SETS[arg.data], tuple(arg.arms.split("+"))
  if arg.smoke and arg.data != "digits":  # noise in the set's shapes, and teachers of the study's own
    known = {**known, "model": {**SMALL, "depth": 4}, "teachers": {}, "batch": 64}
  external = known.get("teachers", {})
  if external and "ssl_kd" in names:
    raise UserError(
      "arm 'ssl_kd': this study trains no linear probe of DINOv2", "use ssl_tokens or another data set"
    )
  epochs = 1.0 if arg.smoke else arg.epochs or known["epochs"]
  data = images(arg.data, known, arg.smoke)
  stages = dict.fromkeys(("cnn", "resnet", "convnext"), 4 if external else 3)
  depth = known["model"].get("depth", 12)
  arms = {name: study_recipes.arm(name, depth=depth, stages=stages, external=external) for name in names}
  if external:
    data["augment"] = {**data["augment"], "geometries": 4}
    for name in (n for n in names if n.startswith("ssl_")):
      arms[name]["teachers"]["ssl"]["bank"] = f"runs/banks/study_{arg.data}_{name}"
  return {
    "data": data,
    "model": known["model"],
    "terms": LABELS,
    "optim": {
      "name": "adamw",
      "lr": known["lr"],
      "weight_decay": 0.05,
      "warmup_epochs": min(2.0, epochs / 4),
    },
    "train": {"epochs": epochs, "batch_size": known["batch"]},
    "study": {
      "name": arg.data,
      "seeds": tuple(range(arg.seeds)),
      "baseline": "none" if "none" in names else names[0],
      "teachers": {
        n: teacher(n, data, known, arg.smoke) for n in study_recipes.needed(names) if n not in external
      },
      "arms": arms,
      "claims": tuple(c for c in CLAIMS if set(c.partition(": ")[2].split(" < ")) <= set(names)),
      "hessian_images": 20 if arg.smoke else 100,
      "probes": 4 if arg.smoke else 30,
    },
  }


def images(name, known, smoke):
  """`config.data`."""
  if name != "digits":
    made = {"examples": 12_000} if name == "synthetic_shapes" and not smoke else {}
    return recipes.data(name, smoke, **known["augment"]) | made
  return {"name": name, "image_size": 16, "augment": known["augment"]}


def teacher(name, data, known, smoke):
  """`study.teachers.NAME`: small networks of each family, each trained once for all seeds."""
  wide = {**SMALL, "width": 128, "depth": 2}
  models = {
    "cnn": {"name": "adaptive_cnn", "widths": (16, 32, 64), "depths": (1, 1, 1), "stem_pool": False},
    "resnet": {"name": "resnet18_cifar", "widths": (16, 32, 64), "depths": (1, 1, 1)},
    "convnext": {"name": "convnextv2_tiny", "patch_size": 2, "widths": (16, 32, 64), "depths": (1, 1, 1)},
    "vit": {**wide, "name": "vit"},
    "self": known["model"],
  }
  if name == "ssl":
    return {
      "label": "SSL ViT teacher",
      "run": self_supervised(data, wide, {**SSL, **known.get("ssl", {})}, smoke),
    }
  if name == "ssl_probe":
    return {"label": "SSL ViT teacher, linear probe", "run": probe(data, wide, smoke)}
  if name not in models:
    raise UserError(f"the study trains no teacher '{name}' on this data set", did_you_mean(name, models))
  run = {
    "seed": 100 + 2 * list(models).index(name),
    "data": data,
    "model": models[name],
    "terms": {"ce": {"kind": "cross_entropy", "smoothing": 0.1}},
    "optim": {"name": "adamw", "lr": 2e-3, "weight_decay": 0.05, "warmup_epochs": 1.0},
    "train": {"epochs": 1.0 if smoke else 0.75 * known["epochs"], "batch_size": known["batch"]},
  }
  return {"label": f"{study_recipes.TEACHERS[name][0]} teacher", "run": run}


def self_supervised(data, wide, chosen, smoke):
  """A wide, shallow ViT pretrained by DINO on the training images without labels."""
  augment = {**data["augment"], "brightness": 0.4, "contrast": 0.4}
  term = {"prototypes": 512, "teacher_temperature_start": 0.03, "teacher_temperature": 0.04}
  optim = {"name": "adamw", "lr": chosen["lr"], "weight_decay": 0.0, "warmup_epochs": chosen["warmup"]}
  epochs, (ema, ema_end) = 1.0 if smoke else chosen["epochs"], chosen["ema"]
  return {
    "seed": 101,
    "data": {**data, "augment": augment, "views": chosen["views"]},
    "model": {**wide, "name": "vit", "num_classes": 0},
    "teachers": {"ema": {"weights": "ema", "view": "same"}},
    "terms": {"dino": {"kind": "dino", "teacher": "ema", **term}},
    "optim": optim,
    "train": {"epochs": epochs, "batch_size": chosen["batch"], "ema": ema, "ema_end": ema_end},
    "eval": {"metric": "none"},
  }


def probe(data, wide, smoke):
  """The self-supervised ViT with a linear classifier on its frozen features."""
  return {
    "seed": 103,
    "data": data,
    "model": {**wide, "name": "vit"},
    "init": {"weights": "ssl", "allow": ("head/.*",)},
    "terms": {"ce": {"kind": "cross_entropy"}},
    "optim": {"name": "adamw", "lr": 1e-2, "weight_decay": 0.0, "freeze": ("(?!head/).*",)},
    "train": {"epochs": 1.0 if smoke else 8.0, "batch_size": 64},
  }
