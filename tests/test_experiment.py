"""What `build` refuses: all of it before anything is compiled or written."""

import flax.linen as nn
import jax
import pytest

from jaxkd.errors import UserError
from jaxkd.experiment import build, recomputing
from jaxkd.optim import make_optimizer
from tests import tiny
from tests.parity import optim_cases as cases

pytestmark = pytest.mark.usefixtures("optax_promotion")

CNN = {"name": "resnet18_cifar", "widths": (4, 4), "depths": (1, 1)}


@pytest.fixture
def no_compilation(monkeypatch):
  def compiled(*_, **__):
    raise AssertionError("compiled")

  monkeypatch.setattr("jax._src.compiler.compile_or_get_cached", compiled)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"optim": {"freeze": ("blok00/.*",)}}, "'blok00/.*' matches no parameter"),
    ({"optim": {"freeze": (".*",)}}, "leave nothing of the model to train"),
    ({"optim": {"name": "muon"}, "model": CNN}, "no matrices in its blocks"),
    ({"train": {"epochs": 4.0, "batch_size": 16, "swa_start_epoch": 5.0}}, "after the run of 4 epochs"),
  ],
)
def test_refused_before_compiling(change, message, no_compilation):
  with pytest.raises(UserError, match=message):
    build(tiny.config(**change))


def test_a_run_that_is_fine_compiles_nothing_either(no_compilation):
  build(tiny.config(optim={"freeze": ("block00/.*",), "layer_decay": 0.5}))


def test_unknown_depths_are_refused_by_init():
  tx = make_optimizer(cases.config(layer_decay=0.5), lambda _: 0.1)
  params = {"model": {"adapter": {"kernel": jax.ShapeDtypeStruct((2, 2), "float32")}}}
  with pytest.raises(UserError, match="depth of 'model/adapter/kernel' is not known"):
    jax.eval_shape(tx.init, params)


def test_remat_is_the_models():
  assert not build(tiny.config()).model.remat
  experiment = build(tiny.config(train={"epochs": 4.0, "batch_size": 16, "remat": "blocks"}))
  assert experiment.model.remat
  assert "remat" not in experiment.model_options, "weights do not depend on it"
  with pytest.raises(UserError, match=r"train.remat='blocks': Dense has no blocks to recompute"):
    recomputing(nn.Dense(3), "blocks")
