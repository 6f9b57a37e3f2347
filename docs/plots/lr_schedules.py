"""Draws docs/images/lr_schedules.png: every learning-rate schedule over 30 epochs with the options shown.

python docs/plots/lr_schedules.py
"""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from jaxkd import config as configs
from jaxkd.optim import make_schedule

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FILE = Path(__file__).parents[1] / "images" / "lr_schedules.png"
EPOCHS, PER_EPOCH = 30, 100
CURVES = (
  ("cosine", "cosine", {}),
  ("cosine, final_lr=0.1", "cosine", {"final_lr": 0.1}),
  ("linear", "linear", {}),
  ("constant", "constant", {}),
  ("step, milestones=(15, 25)", "step", {"milestones": (15, 25)}),
  ("exponential, epoch_gamma=0.9", "exponential", {"epoch_gamma": 0.9}),
  ("one_cycle, rise=0.3", "one_cycle", {"warmup_epochs": 0.0}),
  ("cyclic, cycle_epochs=10", "cyclic", {"warmup_epochs": 0.0}),
)


def curve(schedule: str, **options) -> np.ndarray:
  """Learning rate of each step as a share of the peak; three epochs of warm-up unless `options` say otherwise."""
  raw = {"terms": {"ce": {}}, "optim": {"lr": 1.0, "warmup_epochs": 3.0, "schedule": schedule, **options}}
  made = make_schedule(configs.complete(raw).optim, steps=EPOCHS * PER_EPOCH, steps_per_epoch=PER_EPOCH)
  return np.asarray(jax.vmap(made)(jnp.arange(EPOCHS * PER_EPOCH)))


def main() -> None:
  figure, axes = plt.subplots(2, 4, figsize=(11, 4.4), sharex=True, sharey=True, layout="constrained")
  epochs = np.arange(EPOCHS * PER_EPOCH) / PER_EPOCH
  for axis, (title, schedule, options) in zip(axes.flat, CURVES, strict=True):
    axis.plot(epochs, curve(schedule, **options), color="#1f5fa8", linewidth=1.6)
    axis.set_title(title, fontsize=9)
    axis.grid(alpha=0.25)
    axis.set_ylim(-0.03, 1.08)
  figure.supxlabel("epoch", fontsize=9)
  figure.supylabel("learning rate / lr", fontsize=9)
  FILE.parent.mkdir(exist_ok=True)
  figure.savefig(FILE, dpi=110, metadata={"Software": ""})
  print(f"{FILE.name}: {FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
  main()
