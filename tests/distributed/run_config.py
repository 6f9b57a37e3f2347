"""The configs of the runs with several processes, as the command line reads them."""

from tests import tiny

SGD = {"name": "sgd", "lr": 0.02, "warmup_epochs": 0.0}
PLAIN = {
  "optim": SGD,
  "train": {"epochs": 8.0, "batch_size": 16},  # 32 steps
  "checkpoint": {"every_epochs": 1.0, "keep": 20},
  "sharding": {"fsdp": 1},
}


def get_config(arg="plain"):
  if arg == "plain":
    return tiny.config(**PLAIN)
  if arg == "fsdp":
    return tiny.config(**{**PLAIN, "sharding": {"fsdp": 2}})
  # Everything that follows a validation or averages: plateau, early stopping, EMA, SWA with BatchNorm.
  return tiny.config(
    model={**tiny.MODEL, "stem": "conv", "drop_path": 0.1},
    data={"augment": {"crop": 1, "flip": True}},
    optim={**SGD, "schedule": "plateau", "plateau_patience": 0, "plateau_factor": 0.5},
    train={"epochs": 40.0, "batch_size": 16, "patience": 3, "ema": 0.9, "swa_start_epoch": 2.0},
    eval={"every_epochs": 1.0, "batch_size": 10},
    log={"every_steps": 1, "shares_every": 0},
    checkpoint={"every_epochs": 4.0},
  )
