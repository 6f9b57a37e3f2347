"""Self-supervised pretraining of the small ViT by DINO (arXiv:2104.14294); labels are not used.

python -m jaxkd.main --config=configs/dino_vit.py:digits --workdir=runs/dino_digits
"""

from jaxkd import schema
from jaxkd.config import parse_arg

GREY = {"brightness": 0.4, "contrast": 0.4}
# With `views.recipe`: DINO's own. Grey images have no hue to turn and no colour to lose.
COLOUR = {**GREY, "saturation": 0.2, "hue": 0.1, "jitter": 0.8, "grayscale": 0.2}


def get_config(arg=None):
  arg = parse_arg(arg, data="digits", smoke=False, seed=0)
  grey = arg.data in schema.GREY_SETS
  return {
    "seed": arg.seed,
    "data": {
      "name": arg.data,
      "image_size": 16,
      "augment": GREY if grey else COLOUR,
      "views": {
        "recipe": "none" if grey else "dino",
        "global_count": 2,
        "global_scale": (0.6, 1.0),
        "local_count": 4,
        "local_size": 8,
        "local_scale": (0.2, 0.5),
      },
    },
    "model": {
      "name": "vit",
      "patch_size": 4,
      "width": 64,
      "depth": 6,
      "heads": 4,
      "mlp_ratio": 2.0,
      "init_std": 0.1,
      "num_classes": 0,
    },
    "teachers": {"ema": {"weights": "ema", "view": "same"}},
    "terms": {
      "dino": {"kind": "dino", "teacher": "ema", "prototypes": 256, "temperature_warmup_epochs": 10.0}
    },
    "optim": {"name": "adamw", "lr": 2e-3, "weight_decay": 0.05, "warmup_epochs": 3.0},
    "train": {"steps": 4 if arg.smoke else 0, "epochs": 40.0, "batch_size": 64, "ema": 0.99, "ema_end": 1.0},
    "eval": {"metric": "none"},
  }
