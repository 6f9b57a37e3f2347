"""Strict numerics for every test: no silent dtype or rank promotion. Many compiled programs are dropped."""

import gc
import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile far more than they compute.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module")
def optax_promotion():
  """Standard dtype promotion: optax raises a float to the power of an integer step."""
  with jax.numpy_dtype_promotion("standard"):
    yield


# A compiled program holds several mappings of memory. Linux grants a process 65,530; without one more XLA crashes.
MAPPINGS, MANY = Path("/proc/self/maps"), 30_000


@pytest.fixture(scope="module", autouse=True)
def _few_programs():
  yield
  if MAPPINGS.exists() and MAPPINGS.read_bytes().count(b"\n") > MANY:
    jax.clear_caches()
    gc.collect()
