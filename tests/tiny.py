"""A run that takes seconds, on which tests build."""

from jaxkd import config as configs

MODEL = {"name": "deit", "patch_size": 4, "width": 16, "depth": 2, "heads": 2, "mlp_ratio": 2.0}
CE = {"kind": "cross_entropy", "student_taps": ("logits/cls",)}


def config(**more):
  """A two-block student on 80 synthetic images of 8x8 pixels, 4 classes."""
  base = {
    "data": {
      "name": "synthetic",
      "examples": 120,
      "classes": 4,
      "channels": 1,
      "image_size": 8,
      "validation": 0.2,
    },
    "model": MODEL,
    "terms": {"ce": CE},
    "optim": {"lr": 3e-3, "warmup_epochs": 1.0},
    "train": {"epochs": 4.0, "batch_size": 16},
    "eval": {"every_epochs": 2.0},
    "checkpoint": {"every_epochs": 1.0},
  }
  for key, value in more.items():
    base[key] = (
      {**base.get(key, {}), **value} if isinstance(value, dict) and key not in ("terms", "model") else value
    )
  made = configs.complete(base)
  configs.validate(made)
  return made


def dino_config(**more):
  """The same data without labels: a ViT pretrained by DINO."""
  return config(
    model={**MODEL, "name": "vit", "num_classes": 0},
    teachers={"ema": {"weights": "ema", "view": "same"}},
    terms={"dino": {"kind": "dino", "teacher": "ema", "prototypes": 16, "hidden": 16, "bottleneck": 8}},
    train={"epochs": 2.0, "batch_size": 16, "ema": 0.9},
    eval={"metric": "none"},
    **{
      "data": {"views": {"global_count": 2, "global_scale": (0.5, 1.0), "local_count": 1, "local_size": 4}},
      **more,
    },
  )
