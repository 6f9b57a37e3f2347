"""Plans are made of the shapes that a real run has: the two are compared leaf by leaf."""

import jax
import numpy as np
import pytest

from jaxkd import bank, step
from jaxkd.errors import UserError
from jaxkd.experiment import build
from jaxkd.feed import make_batch
from jaxkd.planning import shapes

from .. import tiny

pytestmark = pytest.mark.usefixtures("optax_promotion")
TOKENS = {"kind": "token_cosine", "teacher": "t", "head": "linear", "student_taps": ("block01/tokens",)}
TEACHER = {"weights": "random", "model": {**tiny.MODEL, "width": 8}}


def described(tree):
  return jax.tree.map(lambda x: (tuple(x.shape), str(x.dtype)), tree)


def leaves(tree):
  paths = jax.tree_util.tree_leaves_with_path(described(tree), is_leaf=lambda x: isinstance(x, tuple))
  return {jax.tree_util.keystr(path): leaf for path, leaf in paths}


@pytest.mark.parametrize("placement", ["live", "device", "disk", "streamed", "replicas"])
def test_state_batch_and_frozen_inputs_are_those_of_the_run(placement, tmp_path):
  teacher = (
    TEACHER if placement in ("live", "streamed", "replicas") else {**TEACHER, "bank": str(tmp_path / "bank")}
  )
  config = tiny.config(
    data={
      "augment": {"geometries": 2 if "bank" in teacher else 0, "crop": 1},
      "placement": "streamed" if placement == "streamed" else "auto",
    },
    teachers={"t": teacher},
    terms={"ce": tiny.CE, "tokens": {**TOKENS, "whiten": True}},
    train={"ema": 0.9, "replicas": (4, 2) if placement == "replicas" else ()},
    bank={"place": placement if "bank" in teacher else "auto"},
  )
  real = build(config)
  banks = {"t": bank.open_bank(real, "t")} if "bank" in teacher else {}
  planned = shapes.build(config)
  state, batch, frozen = shapes.arguments(planned)
  assert leaves(state) == leaves(step.init_state(real))
  assert leaves(frozen) == leaves(step.frozen_inputs(real, banks))
  assert leaves(batch) == leaves(make_batch(real, 0, banks))
  assert (planned.steps, planned.steps_per_epoch) == (real.steps, real.steps_per_epoch)
  assert ("features" in batch) == (placement == "disk")  # each case is another one


def test_arrays_without_memory_have_the_size_they_stand_for():
  images = shapes.empty((1_281_167, 224, 224, 3))
  assert images.nbytes == 1_281_167 * 224 * 224 * 3
  assert images.strides == (0, 0, 0, 0)
  assert images[np.array([5, 7])].shape == (2, 224, 224, 3)


def test_known_sets_and_hub_teachers_need_no_files(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  config = tiny.config(
    data={"name": "cifar10", "root": "absent", "image_size": 0, "channels": 0, "validation": 0.1},
    teachers={"t": {"weights": "hub:dinov2_vits14"}},
    terms={"ce": tiny.CE, "tokens": TOKENS},
  )
  planned = shapes.build(config)
  assert (len(planned.dataset.train), planned.dataset.image_shape) == (45_000, (32, 32, 3))
  teacher = planned.teachers["t"]
  assert (teacher.size, teacher.model.width, teacher.model.image_size) == (224, 384, (518, 518))
  assert sum(x.size for x in jax.tree.leaves(teacher.variables)) == 22_056_192


def test_what_nothing_tells_is_refused(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  kd = {"kind": "soft_kd", "teacher": "t"}
  config = tiny.config(teachers={"t": {"weights": "runs/none"}}, terms={"ce": tiny.CE, "kd": kd})
  with pytest.raises(UserError, match="architecture is unknown here") as caught:
    shapes.build(config)
  assert "--config.teachers.t.model.name=" in caught.value.hint
  named = tiny.config(
    teachers={"t": {"weights": "runs/none", "model": {"name": "resnet18_cifar"}}},
    terms={"ce": tiny.CE, "kd": kd},
  )
  assert shapes.build(named).teachers["t"].model.num_classes == 4
  with pytest.raises(UserError, match="size of data set 'folder' is unknown here"):
    shapes.build(tiny.config(data={"name": "folder", "root": "absent"}))
  with pytest.raises(UserError, match=r"sharding\.fsdp=3 does not divide 16 devices"):
    shapes.mesh(16, 3)
