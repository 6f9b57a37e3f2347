"""Curvature of a sample that is sharded over eight devices equals that on one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = """
import json
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxkd.analysis import ggn_trace, hessian_trace, sharpness, top_eigenvalues

jax.config.update("jax_numpy_dtype_promotion", "strict")
mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))

def logits(p, batch):
  return jnp.tanh(batch[0] @ p["a"]["kernel"]) @ p["b"]["kernel"]

def loss(p, batch):
  z = jax.nn.log_softmax(logits(p, batch))
  return -jnp.take_along_axis(z, batch[1][:, None], axis=1).mean()

rng = np.random.default_rng(0)
params = {n: {"kernel": rng.normal(size=s).astype(np.float32)} for n, s in (("a", (5, 8)), ("b", (8, 3)))}
x, y = rng.normal(size=(32, 5)).astype(np.float32), np.arange(32) % 3
batches = [jax.device_put((x[i : i + 16], y[i : i + 16]), NamedSharding(mesh, P("data"))) for i in (0, 16)]
placed = jax.device_put(params, NamedSharding(mesh, P()))
key = jax.random.key(0)
print(json.dumps({
  "devices": len(batches[0][0].sharding.device_set),
  "trace": hessian_trace(loss, placed, batches, key=key, probes=4).values.tolist(),
  "xtrace": hessian_trace(loss, placed, batches, key=key, probes=8, method="xtrace").values.tolist(),
  "ggn": [ggn_trace(logits, placed, batches, key=key, probes=4).mean],
  "eigenvalues": top_eigenvalues(loss, placed, batches, key=key, k=2, iterations=12).values.tolist(),
  "sharpness": [sharpness(loss, placed, batches, rho=0.1, steps=2).value],
}))
"""


def measured(devices):
  root = Path(__file__).parent.parent.parent
  flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
  env = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(root)}
  run = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=False)
  assert run.returncode == 0, run.stderr[-2000:]
  return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def runs():
  return measured(1), measured(8)


@pytest.mark.parametrize("name", ["trace", "xtrace", "ggn", "eigenvalues", "sharpness"])
def test_eight_devices_equal_one(runs, name):
  one, eight = runs
  assert (one["devices"], eight["devices"]) == (1, 8)
  tolerance = 1e-6 * np.abs(one[name]).max() * (10 if name in ("xtrace", "sharpness") else 1)
  np.testing.assert_allclose(eight[name], one[name], rtol=0, atol=tolerance)
