"""The matched experiment: students that differ only in their teacher.

python -m jaxkd.main study --config=configs/study.py:digits --workdir=runs/digits     (12 students, minutes on 2 cores)
"""

from jaxkd.config import parse_arg

STUDENT = {"patch_size": 4, "width": 64, "depth": 4, "heads": 4, "mlp_ratio": 2.0, "init_std": 0.1}
LABELS = {"ce": {"kind": "cross_entropy", "student_taps": ("logits/cls",), "smoothing": 0.1}}


def get_config(arg=None):
  arg = parse_arg(arg, data="digits", smoke=False, seeds=3)
  epochs = 1.0 if arg.smoke else 16.0
  data = {
    "name": arg.data,
    "image_size": 16,
    "augment": {"crop": 1, "brightness": 0.2, "contrast": 0.2, "cutout": 4},
  }
  return {
    "data": data,
    "model": {"name": "deit", "drop_path": 0.0, **STUDENT},
    "terms": LABELS,
    "optim": {"name": "adamw", "lr": 2e-3, "weight_decay": 0.05, "warmup_epochs": 2.0},
    "train": {"epochs": epochs, "batch_size": 64},
    "study": {
      "name": arg.data,
      "seeds": tuple(range(arg.seeds)),
      "baseline": "none",
      "teachers": {"cnn": cnn_teacher(data, arg.smoke), "ssl": ssl_teacher(data, arg.smoke)},
      "arms": arms(),
      "claims": (
        "accuracy_cls: cnn_kd < none",
        "accuracy_cls: cnn_tokens < none",
        "accuracy_cls: none < cnn_kd < ssl_tokens",
        "mean_distance: cnn_tokens < none < ssl_tokens",
        "cls_dispersion: cnn_tokens < none < ssl_tokens",
        "hessian_trace: ssl_tokens < none < cnn_tokens",
        "collapsed_heads: ssl_tokens < none < cnn_tokens",
      ),
      "hessian_images": 20 if arg.smoke else 100,
      "probes": 4 if arg.smoke else 30,
    },
  }


def cnn_teacher(data, smoke):
  """A small residual SE network trained on labels."""
  return {
    "label": "CNN teacher",
    "run": {
      "seed": 100,
      "data": data,
      "model": {"name": "adaptive_cnn", "widths": (16, 32, 64), "depths": (1, 1, 1), "stem_pool": False},
      "terms": {"ce": {"kind": "cross_entropy", "smoothing": 0.1}},
      "optim": {"name": "adamw", "lr": 2e-3, "weight_decay": 0.05, "warmup_epochs": 1.0},
      "train": {"epochs": 1.0 if smoke else 12.0, "batch_size": 64},
    },
  }


def ssl_teacher(data, smoke):
  """A wide, shallow ViT pretrained by DINO on the training images without labels.

  Mild geometry and two global views: on 16-pixel digits a small crop no longer shows which digit it was.
  """
  return {
    "label": "SSL ViT teacher",
    "run": {
      "seed": 101,
      "data": {
        **data,
        "augment": {"crop": 1, "brightness": 0.4, "contrast": 0.4, "cutout": 4},
        "views": {"global_count": 2, "global_scale": (0.8, 1.0)},
      },
      "model": {"name": "vit", "num_classes": 0, **STUDENT, "width": 128, "depth": 2},
      "teachers": {"ema": {"weights": "ema", "view": "same"}},
      "terms": {
        "dino": {
          "kind": "dino",
          "teacher": "ema",
          "prototypes": 512,
          "teacher_temperature_start": 0.03,
          "teacher_temperature": 0.04,
        }
      },
      "optim": {"name": "adamw", "lr": 6e-4, "weight_decay": 0.0, "warmup_epochs": 3.0},
      "train": {"epochs": 1.0 if smoke else 30.0, "batch_size": 32, "ema": 0.99, "ema_end": 0.998},
      "eval": {"metric": "none"},
    },
  }


def arms():
  layers = ("block01/tokens", "block03/tokens")
  ssl_layers = ("block00/tokens", "block01/tokens")  # the same relative depths
  cnn_layers = ("stage2", "stage2")  # a CNN's tokens are its last-stage grid
  tokens = {"kind": "token_cosine", "head": "linear", "weight": 0.5, "student_taps": layers}
  cka = {"kind": "cka", "weight": 0.5, "start_epoch": 2.0, "student_taps": layers}
  return {
    "none": {"label": "Baseline", "description": "labels only, no teacher", "terms": LABELS},
    "cnn_kd": {
      "label": "CNN by logits",
      "description": "soft knowledge distillation from the CNN on the distillation head",
      "teachers": {"cnn": {"weights": "cnn"}},
      "terms": {**LABELS, "kd": {"kind": "soft_kd", "teacher": "cnn", "weight": 0.5, "temperature": 4.0}},
    },
    "cnn_tokens": {
      "label": "CNN by tokens",
      "description": "token and CKA terms against the CNN's last-stage grid",
      "teachers": {"cnn": {"weights": "cnn"}},
      "terms": {
        **LABELS,
        "tokens": {**tokens, "teacher": "cnn", "teacher_taps": cnn_layers},
        "cka": {**cka, "teacher": "cnn", "teacher_taps": cnn_layers},
      },
    },
    "ssl_tokens": {
      "label": "SSL ViT by tokens",
      "description": "token, correlation and CKA terms against the self-supervised ViT",
      "teachers": {"ssl": {"weights": "ssl"}},
      "terms": {
        **LABELS,
        "tokens": {**tokens, "teacher": "ssl", "teacher_taps": ssl_layers},
        "relation": {
          "kind": "correlation",
          "weight": 0.05,
          "start_epoch": 4.0,
          "teacher": "ssl",
          "student_taps": layers[-1:],
          "teacher_taps": ssl_layers[-1:],
        },
        "cka": {**cka, "teacher": "ssl", "teacher_taps": ssl_layers},
      },
    },
  }
