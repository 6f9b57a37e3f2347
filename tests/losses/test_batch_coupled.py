"""Terms that couple the batch see the global batch when it is split over devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

SCRIPT = """
import json, sys
from functools import partial
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxkd.losses import cka_loss, correlation_kl

rng = np.random.default_rng(0)
arrays = [np.float32(rng.normal(size=(8, d))) for d in (5, 4)]
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
split = [jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))) for x in arrays]
for loss in (cka_loss, correlation_kl):
  step = jax.jit(jax.value_and_grad(partial(loss, over="samples")))
  (one, gradient), (eight, gradient8) = step(*arrays), step(*split)
  halves = np.mean([float(step(*(x[part] for x in arrays))[0]) for part in (slice(4), slice(4, 8))])
  print(json.dumps([float(one), float(eight), float(halves), gradient.tolist(), gradient8.tolist()]))
"""


def test_eight_devices_compute_what_one_does():
  env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
  root = Path(__file__).parents[2]
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT], env=env, cwd=root, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  rows = [json.loads(line) for line in done.stdout.splitlines()]
  assert len(rows) == 2
  for one, eight, halves, *gradients in rows:
    np.testing.assert_allclose(eight, one, rtol=2e-6)
    gradient, gradient8 = map(np.asarray, gradients)
    np.testing.assert_allclose(gradient8, gradient, rtol=1e-4, atol=2e-5 * np.abs(gradient).max())
    assert abs(halves - one) > 0.01, "averaging over parts of the batch is another loss"
