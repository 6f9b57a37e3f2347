"""Attention statistics, CKA and neighbours of arrays that lie on eight devices equal those on one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxkd import models
from jaxkd.analysis import (attention_per_image, attention_statistics, cka_accumulate, cka_finish, mutual_knn_matrix,
                            rollout_statistics)

mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
over = lambda x, axis: jax.device_put(x, NamedSharding(mesh, P(*[None] * axis, "data")))
rng = np.random.default_rng(0)
maps = np.exp(rng.normal(size=(2, 8, 2, 17, 17))).astype(np.float32)
maps = over(maps / maps.sum(-1, keepdims=True), 1)
out = {"devices": jax.device_count(), "split": len(maps.sharding.device_set)}
out |= {k: v.astype(jnp.float32) for k, v in attention_statistics(maps, (4, 4), 1).items()}
out |= {f"rollout_{k}": v.astype(jnp.float32) for k, v in rollout_statistics(maps, (4, 4), 1).items()}
a, b = ([over(rng.normal(size=(32, d)).astype(np.float32), 0) for d in widths] for widths in ((6, 40), (8,)))
state = cka_accumulate(cka_accumulate((), a, b), a[::-1], b)
out["cka"] = cka_finish(state).value
out["neighbours"] = mutual_knn_matrix(a, b, k=5)
model = models.create("vit", patch_size=2, width=8, depth=1, heads=2, image_size=8, num_classes=2)
images = rng.normal(size=(8, 8, 8, 3)).astype(np.float32)
variables = jax.jit(model.init)(jax.random.key(0), images)
out["model"] = attention_per_image(model, variables, over(images, 0), batch_size=8)["mean_distance"]
print(json.dumps({k: np.asarray(v).tolist() for k, v in out.items()}))
"""


def numbers(devices):
  root = Path(__file__).parents[2]
  flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
  env = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(root)}
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT], env=env, cwd=root, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def flat(x):
  return [value for part in x for value in flat(part)] if isinstance(x, list) else [x]


def test_eight_devices_equal_one():
  one, eight = numbers(1), numbers(8)
  assert (one.pop("devices"), eight.pop("devices")) == (1, 8)
  assert (one.pop("split"), eight.pop("split")) == (1, 8)
  for name, value in one.items():
    assert flat(eight[name]) == pytest.approx(flat(value), rel=2e-5, abs=1e-6), name
