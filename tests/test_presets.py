"""Every preset traces a whole training step in its smoke form, and says what it lacks in its full form."""

from pathlib import Path

import jax
import pytest

from jaxkd import config as configs
from jaxkd import step
from jaxkd.errors import UserError
from jaxkd.experiment import build
from jaxkd.feed import make_batch

pytestmark = pytest.mark.usefixtures("optax_promotion")
CONFIGS = Path(__file__).parents[1] / "configs"
PRESETS = sorted(p.stem for p in CONFIGS.glob("*.py") if p.stem not in ("study", "from_file"))
ARGUMENTS = {
  "as_published": ("kd", "ss_cka", "ss_cka_cls", "ss_gram", "ss_tokens", "baseline"),
  "rivals": ("dkd", "dist", "rkd", "at", "sp", "ofa"),
  "teachers_together": ("both", "ensemble"),
  "adaptive_cnn": ("mnist", "cifar10,improved"),
  "deit_adaptive_cnn": ("mnist", "cifar10"),
  "vit": ("cifar10", "cifar10,matched"),
}
CASES = [(name, arg) for name in PRESETS for arg in ARGUMENTS.get(name, ("",))]


@pytest.mark.parametrize(("name", "arg"), CASES)
def test_smoke_forms_trace_a_training_step(name, arg, monkeypatch):
  monkeypatch.setattr(step, "_once", jax.jit)  # compiler options are refused under a trace
  step.model_init.cache_clear()
  config = configs.load(f"{CONFIGS / name}.py:{arg},smoke" if arg else f"{CONFIGS / name}.py:smoke")
  assert config.train.steps <= 4
  experiment = build(config)
  state = jax.eval_shape(lambda: step.init_state(experiment))
  frozen = step.frozen_inputs(experiment)
  batch = make_batch(experiment, 0)
  _, metrics = jax.eval_shape(step.make_train_step(experiment), state, batch, frozen)
  step.model_init.cache_clear()
  assert {f"loss/{term}" for term in config.terms} <= set(metrics)


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("kd_resnet18", ("data/cifar10", "data.root")),
    ("ss_cka", ("data/cifar10",)),
    ("deit_adaptive_cnn", ("data/cifar10",)),
    ("rivals", ("runs/demo/teachers/cnn",)),
  ],
)
def test_full_forms_name_what_is_missing(name, words, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError) as caught:
    build(configs.load(f"{CONFIGS / name}.py"))
  text = f"{caught.value.message} {caught.value.hint}"
  assert all(word in text for word in words), text
