"""One device against eight: data-parallel and split parameters give the same first update."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
import jax, numpy as np
from jaxkd import step
from jaxkd.errors import UserError
from jaxkd.experiment import build
from tests import tiny

def update(fsdp):
  experiment = build(tiny.config(sharding={"fsdp": fsdp}, optim={"name": "sgd", "lr": 1.0, "warmup_epochs": 0.0}))
  state = step.place(experiment, step.init_state(experiment))
  frozen, batch = step.frozen_inputs(experiment), {"index": np.arange(16, dtype=np.int32)}
  split = sum(not x.sharding.is_fully_replicated for x in jax.tree.leaves(state.params))
  state, measured = step.make_train_step(experiment)(state, batch, frozen)
  leaves = [float(np.abs(np.array(x)).sum()) for x in jax.tree.leaves(state.params)]
  return {"loss": float(measured["loss"]), "leaves": leaves, "split": split}

out = {"updates": [update(int(f)) for f in sys.argv[1:]], "devices": jax.device_count()}
try:
  build(tiny.config(train={"batch_size": 20}))
except UserError as e:
  out["refused"] = e.message
print(json.dumps(out))
"""


def updates(devices, *fsdp):
  root = Path(__file__).parent.parent
  flags = f"--xla_force_host_platform_device_count={devices}"
  env = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(root)}
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT, *map(str, fsdp)],
    env=env,
    cwd=root,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def test_eight_devices_equal_one():
  one, eight = updates(1, 1), updates(8, 1, 4)
  assert (one["devices"], eight["devices"]) == (1, 8)
  assert next(u["split"] for u in eight["updates"]) == 0
  assert eight["updates"][1]["split"] > 0, "with fsdp=4 some parameters are split"
  expected = one["updates"][0]
  for got in eight["updates"]:
    assert got["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert got["leaves"] == pytest.approx(expected["leaves"], rel=1e-5)
  assert "batch size 20 is not divisible by 8 devices" in eight["refused"]  # fault 7
  assert "refused" not in one
