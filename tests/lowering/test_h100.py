"""What XLA makes of the training step for 16 H100 (2 hosts of 8), none of which is here. Compiled, not run.

Needs the compiler for CUDA (extra `aot`), which `make parity` installs; skipped aloud without it.
"""

import pytest

from jaxkd import sharding
from jaxkd.planning import cuda
from jaxkd.planning.plan import plan

from .. import tiny
from .steps import SHALLOW, load

WHY_NOT = cuda.missing()
pytestmark = [
  pytest.mark.usefixtures("optax_promotion"),
  pytest.mark.skipif(bool(WHY_NOT), reason=f"NOTHING WAS COMPILED FOR H100: {WHY_NOT}"),
]
TOPOLOGY = "1x2x8"
# 64 images on each device, the augmentation's own group.
BATCH = {"train.batch_size": "1024"}


def planned(preset, overrides):
  return plan(load(preset, **{k.replace(".", "__"): v for k, v in overrides.items()}), topology=TOPOLOGY)


@pytest.fixture(scope="module")
def parallel():
  return planned("ss_cka.py", {**SHALLOW, **BATCH})


@pytest.fixture(scope="module")
def sharded():
  return planned("ss_cka.py", {**SHALLOW, "train.batch_size": "512", "sharding.fsdp": "8"})


def of(plan, word):
  return [c for c in plan["collectives"] if word in c["purpose"]]


def test_data_parallel_gradients_take_at_most_two_all_reduces_and_all_else_is_named(parallel):
  gradients = of(parallel, "gradients")
  assert 1 <= len(gradients) <= 2
  assert {(c["kind"], c["group"]) for c in gradients} == {("all-reduce", 16)}
  # All of them, in bfloat16 at the least.
  count = sum(r["bytes"] for r in parallel["shardings"] if r["group"].startswith("params")) // 4
  assert 2 * count * 0.95 <= sum(c["bytes"] for c in gradients) <= 4 * count * 1.05
  assert not of(parallel, "unknown")
  # Images are where they are augmented, but for the histograms, which XLA puts together.
  assert all("histograms" in c["purpose"] for c in of(parallel, "augmentation"))


def test_the_state_is_donated_whole_and_attention_is_fused(parallel):
  assert parallel["alias_bytes"] == parallel["state_bytes"]
  assert parallel["compiled_attention"] == {"fmha_forward": 2, "fmha_backward": 2}
  assert parallel["basis"]["memory_per_device"] == "compiled"
  memory = parallel["memory_per_device"]
  assert memory["total"] < 1.5 * 2**30
  assert memory["total"] > parallel["state_bytes"] + memory["activations and temporaries"]
  assert parallel["kernels"]["attention"] == 4
  assert parallel["kernels"]["library: __cublas lt matmul"] > 20


def test_parameters_split_over_eight_devices_take_less_memory_and_are_gathered(parallel, sharded):
  assert sharded["alias_bytes"] == sharded["state_bytes"] < parallel["state_bytes"] / 4
  kinds = {c["kind"] for c in of(sharded, "gradients") + of(sharded, "fsdp")}
  assert {"reduce-scatter", "all-gather"} <= kinds
  assert {c["group"] for c in of(sharded, "fsdp")} == {8}


def dino_gradients():
  """The collectives of gradients of a small DINO step on 8 devices, by kind and group, and the parameters' bytes."""
  found = plan(tiny.dino_config(precision={"compute": "bfloat16"}), topology="1x1x8")
  size = sum(r["bytes"] for r in found["shardings"] if r["group"].startswith("params"))
  of_kind: dict[tuple, int] = {}
  for c in of(found, "gradients"):
    of_kind[c["kind"], c["group"]] = of_kind.get((c["kind"], c["group"]), 0) + c["bytes"]
  return of_kind, size


def test_several_views_of_an_image_are_split_over_the_devices():
  found, size = dino_gradients()
  summed = found.pop(("all-reduce", 8))
  assert 0.5 * 0.95 * size <= summed <= 1.05 * size  # every parameter's, in bfloat16 at the least
  assert sum(found.values()) < 0.25 * summed  # logits of the two views of an image, which lie on two devices


def test_negative_control_views_on_every_device_leave_no_gradient_to_sum(monkeypatch):
  monkeypatch.setattr(sharding, "batch_sharding", sharding.replicated)
  found, size = dino_gradients()
  assert found.get(("all-reduce", 8), 0) < 0.05 * size


def test_negative_control_a_batch_that_splits_the_augmentations_groups_shows(parallel, sharded):
  assert not of(parallel, "augmentation policy")
  assert of(sharded, "augmentation policy")  # 32 images on each device
