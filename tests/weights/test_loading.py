"""Loading official-sized weights: seconds and memory, in a process of its own."""

import json
import subprocess
import sys

import numpy as np

from jaxkd import models
from jaxkd.models.parameters import variable_shapes
from jaxkd.weights import to_torch
from jaxkd.weights.read import write_safetensors

SCRIPT = """
import json, resource, sys, time
import jax
from jaxkd import models
from jaxkd.models.parameters import variable_shapes
from jaxkd.weights.opened import open_weights

variable_shapes(models.create("dinov2_vits14", depth=1))  # imports and first trace are not loading
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, start = peak(), time.process_time()
found = open_weights(sys.argv[1], model="dinov2_vits14")
print(json.dumps({"seconds": time.process_time() - start, "bytes": peak() - before,
                  "arrays": len(found.conversion.rows)}))
"""


def test_vit_s14_loads_in_seconds_with_at_most_two_copies(tmp_path):
  import jax

  shapes = variable_shapes(models.create("dinov2_vits14"))
  variables = jax.tree.map(lambda s: np.full(s.shape, 0.5, np.float32), shapes)
  path = tmp_path / "vits14.safetensors"
  write_safetensors(path, to_torch("dinov2_vits14", variables, "official"), {})
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True, timeout=120, check=False
  )
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads(done.stdout.splitlines()[-1])
  size = path.stat().st_size
  assert found["arrays"] == 174
  assert found["seconds"] < 5
  assert found["bytes"] < 2 * size, (found["bytes"] / size, found)
