"""Training steps of presets, handed to XLA for CUDA on a machine without one."""

from pathlib import Path

import jax

from jaxkd import config as configs
from jaxkd import sharding, step
from jaxkd.planning import cuda, shapes

CONFIGS = Path(__file__).parents[2] / "configs"
# Two blocks, for what would take minutes to compile with twelve.
SHALLOW = {"model.depth": "2"} | {
  f"terms.{name}.student_taps": '("block00/tokens", "block01/tokens")' for name in ("tokens", "cka")
}
SHALLOW["terms.relation.student_taps"] = '("block01/tokens",)'


def load(preset, **overrides):
  """A preset of configs/ in bfloat16 with overrides, whose dots are written as double underscores."""
  named = {"precision.compute": "bfloat16"} | {k.replace("__", "."): str(v) for k, v in overrides.items()}
  return configs.load(f"{CONFIGS}/{preset}", named)


def cuda_step(config, wanted="auto"):
  """The text, with debug information, of a whole training step lowered for one CUDA device; its experiment."""
  experiment = shapes.build(config, sharding.make_mesh(devices=jax.devices()[:1]))
  arguments = shapes.arguments(experiment)
  there = shapes.for_platform(experiment, "cuda", wanted)
  return cuda.lower(step.fresh_train_step(there), *arguments).as_text(debug_info=True), there
