"""Starting from other weights: what is taken, what is refused, what is recorded."""

import json

import jax
import numpy as np
import pytest
from flax import serialization, traverse_util

from jaxkd import step, train, warm_start
from jaxkd.checkpoint import Checkpoints
from jaxkd.errors import IntegrityFailure, UserError
from jaxkd.experiment import build
from tests import tiny

pytestmark = pytest.mark.usefixtures("optax_promotion")
SEED = {"seed": 5}


@pytest.fixture(scope="module")
def experiment():
  return build(tiny.config(train={"ema": 0.9}))


@pytest.fixture(scope="module")
def state(experiment):
  return jax.device_get(step.init_state(experiment))


def save(folder, experiment, state, **about):
  """A checkpoint of `state` as a run would leave it."""
  checkpoints = Checkpoints(folder / "checkpoints", keep=1, metrics=())
  meta = {**train.describe(experiment, "params"), **about}
  checkpoints.save(3, state, config=experiment.config, meta=meta, metrics={})
  checkpoints.close()
  return folder


def edited(state, edit):
  """`state` with its flat model parameters changed by `edit(dict)`."""
  tree = serialization.to_state_dict(state)
  flat = traverse_util.flatten_dict(tree["params"]["model"], sep="/")
  flat = edit({k: np.array(v) for k, v in flat.items()})
  return {**tree, "params": {**tree["params"], "model": traverse_util.unflatten_dict(flat, sep="/")}}


def doubled(flat):
  return {k: 2 * v + 1 for k, v in flat.items()}


def loaded(experiment, weights, **options):
  config = experiment.config.copy_and_resolve_references()
  with config.unlocked():
    config.init.update({"weights": str(weights), **options})
  object.__setattr__(changed := build(config), "config", config)
  return warm_start.load(changed)


def test_all_of_a_matching_model_is_taken_and_nothing_else(experiment, state, tmp_path):
  source = save(tmp_path / "a", experiment, edited(state, doubled))
  start = loaded(experiment, source)
  new = start.apply(state)
  expected = jax.tree.map(lambda x: 2 * x + 1, state.params["model"])
  jax.tree.map(np.testing.assert_array_equal, new.params["model"], expected)
  jax.tree.map(np.testing.assert_array_equal, new.ema["model"], expected)
  jax.tree.map(np.testing.assert_array_equal, new.opt, state.opt)
  assert int(new.step) == 0
  lists = start.summary()
  assert len(lists["taken"]) == len(jax.tree.leaves(expected))
  assert not any(lists[k] for k in ("missing", "unexpected", "other_shape", "other_classes", "cast"))


@pytest.mark.parametrize(
  ("edit", "message"),
  [
    (lambda f: {k: v for k, v in f.items() if k != "norm/scale"}, "missing: norm/scale"),
    (lambda f: {**f, "extra/bias": np.zeros(3, np.float32)}, "unexpected: extra/bias"),
    (lambda f: {**f, "norm/scale": np.zeros(3, np.float32)}, "other shape: norm/scale"),
    (lambda f: {**f, "norm/scale": np.full(16, np.nan, np.float32)}, "'params/norm/scale' is not finite"),
    (lambda f: {**f, "norm/scale": np.zeros(16, np.int32)}, "has dtype int32, not a floating one"),
    (lambda f: {f"other/{k}": v for k, v in f.items()}, "missing: .* and .* more; unexpected"),
  ],
)
def test_differences_are_refused_by_name(experiment, state, tmp_path, edit, message):
  source = save(tmp_path / "a", experiment, edited(state, edit))
  with pytest.raises(UserError, match=message) as e:
    loaded(experiment, source)
  assert e.value.code == 2


def test_what_is_allowed_starts_fresh_and_is_recorded(experiment, state, tmp_path):
  def edit(flat):
    return {**doubled(flat), "norm/scale": np.zeros(3, np.float32), "extra/bias": np.zeros(3, np.float32)}

  start = loaded(
    experiment, save(tmp_path / "a", experiment, edited(state, edit)), allow=("norm/.*", "extra/.*")
  )
  new = start.apply(state)
  np.testing.assert_array_equal(new.params["model"]["norm"]["scale"], state.params["model"]["norm"]["scale"])
  np.testing.assert_array_equal(
    new.params["model"]["norm"]["bias"], 2 * state.params["model"]["norm"]["bias"] + 1
  )
  start.record(tmp_path)
  record = json.loads((tmp_path / "init.json").read_text())
  assert record["other_shape"] == ["params/norm/scale"]
  assert record["unexpected"] == ["params/extra/bias"]
  assert record["digest"] == start.digest


@pytest.mark.parametrize(
  ("allow", "message"),
  [(("haed/.*",), "'haed/.*' matches no array"), (("head/(",), "is no regular expression")],
)
def test_expressions_that_cannot_be_meant_are_refused(experiment, state, tmp_path, allow, message):
  source = save(tmp_path / "a", experiment, state)
  with pytest.raises(UserError, match=message.replace("(", "[(]").replace("*", "[*]")):
    loaded(experiment, source, allow=allow)


def test_a_head_for_other_classes_is_refused_although_its_shape_fits(experiment, state, tmp_path):
  source = save(tmp_path / "a", experiment, edited(state, doubled), class_names=["cat", "dog", "owl", "ant"])
  with pytest.raises(UserError, match="other classes: head"):
    loaded(experiment, source)
  start = loaded(experiment, source, allow=("head.*",))
  assert start.other_classes
  new = start.apply(state)
  for path in start.other_classes:
    flat = traverse_util.flatten_dict({"params": new.params["model"]}, sep="/")
    fresh = traverse_util.flatten_dict({"params": state.params["model"]}, sep="/")
    np.testing.assert_array_equal(flat[path], fresh[path])


def test_other_floating_dtypes_are_cast_and_said(experiment, state, tmp_path):
  source = save(
    tmp_path / "a", experiment, edited(state, lambda f: {k: v.astype(np.float16) for k, v in f.items()})
  )
  start = loaded(experiment, source)
  assert set(start.cast) == set(start.taken)
  assert {v.dtype for v in start.taken.values()} == {np.dtype(np.float32)}


def test_another_digest_than_the_pinned_one_is_refused(experiment, state, tmp_path):
  source = save(tmp_path / "a", experiment, state)
  digest = loaded(experiment, source).digest
  assert loaded(experiment, source, sha256=digest[:12]).digest == digest
  with pytest.raises(IntegrityFailure):
    loaded(experiment, source, sha256="0" * 64)


def test_a_run_starts_from_it_once_and_resumes_without_it(state, tmp_path, monkeypatch):
  plain = build(tiny.config())
  source = save(tmp_path / "a", plain, edited(state, doubled))
  config = tiny.config(init={"weights": str(source)}, **SEED)
  seen = []

  def stop(loop, count):
    seen.append(jax.device_get(loop.state.params["model"]))
    raise KeyboardInterrupt

  monkeypatch.setattr(train._Loop, "_advance", stop)
  with pytest.raises(KeyboardInterrupt):
    train.train(config, tmp_path / "run")
  jax.tree.map(
    np.testing.assert_array_equal, seen[0], jax.tree.map(lambda x: 2 * x + 1, state.params["model"])
  )
  assert json.loads((tmp_path / "run/init.json").read_text())["source"] == str(source)
  (tmp_path / "run/checkpoints/4").mkdir()  # a saved step: the source is not needed any more
  monkeypatch.setattr(warm_start, "load", lambda _: pytest.fail("read again"))
  with pytest.raises(IntegrityFailure):
    train.train(config, tmp_path / "run")
