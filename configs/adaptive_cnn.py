"""The small residual SE network, a CNN teacher: MNIST or CIFAR-10, and the improved recipes.

python -m jaxkd.main --config=configs/adaptive_cnn.py:cifar10 --workdir=runs/adaptive_cnn
"""

from jaxkd import recipes
from jaxkd.config import parse_arg

MNIST = {"crop": 2}
MNIST_IMPROVED = {"rotation": 10.0, "translate": 0.1, "scale": (0.9, 1.1), "cutout": 8}
CIFAR = {"crop": 4, "flip": True, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "cutout": 16}
CIFAR_IMPROVED = {"crop": 4, "flip": True, "policy": "autoaugment", "cutmix": 1.0}


def get_config(arg=None):
  arg = parse_arg(arg, data="cifar10", smoke=False, improved=False, seed=0)
  digits = arg.data == "mnist"
  if digits:
    augment = MNIST_IMPROVED if arg.improved else MNIST
    lr, epochs, batch = (8e-2, 20.0, 4096) if arg.improved else (1e-3, 10.0, 64)
    optim = {"name": "adamw", "lr": lr, "weight_decay": 5e-4}
  else:
    augment = CIFAR_IMPROVED if arg.improved else CIFAR
    lr, epochs, batch = (0.8, 40.0, 2048) if arg.improved else (0.1, 200.0, 128)
    optim = {"name": "sgd", "lr": lr, "weight_decay": 5e-4, "warmup_epochs": 5.0 if arg.improved else 0.0}
  model = {"name": "adaptive_cnn", "variant": "mnist" if digits else "cifar"}
  if arg.smoke:
    model |= {"widths": (16, 32), "depths": (1, 1)}
  return {
    "seed": arg.seed,
    "data": recipes.data(arg.data, arg.smoke, **augment),
    "model": model,
    "terms": {"ce": {"kind": "cross_entropy", "smoothing": 0.0 if "cutmix" in augment else 0.1}},
    "optim": optim,
    "train": recipes.train(arg.smoke, epochs=epochs, batch_size=batch),
  }
