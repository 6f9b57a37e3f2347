"""Faults 37 and 38: losses that are not finite, memory that does not suffice."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import feed, losses, memory, replay, step, train
from jaxkd.analysis import flatness, forensics, hessian
from jaxkd.data import Split
from jaxkd.errors import NumericFailure, OutOfDeviceMemory, UserError
from jaxkd.experiment import build
from jaxkd.main import main
from tests import tiny
from tests.faults import runs

pytestmark = pytest.mark.usefixtures("optax_promotion")
BAD = 9  # the step (0-based) whose loss is not a number


@pytest.fixture(scope="module")
def broken(finished):
  """Programs traced here have a loss that is not a number when the labels of the batch are those of step BAD."""
  experiment = build(tiny.config())
  index = feed.make_batch(experiment, BAD)["index"]
  labels = jnp.asarray(experiment.dataset.train.labels[index])
  true = losses.cross_entropy

  def poisoned(logits, given, **options):
    bad = jnp.all(given == labels)
    return jnp.where(bad, jnp.float32(jnp.nan), true(logits, given, **options))

  with pytest.MonkeyPatch.context() as patch:
    step.make_train_step.cache_clear()
    patch.setattr("jaxkd.losses.cross_entropy", poisoned)
    yield
  step.make_train_step.cache_clear()


@pytest.fixture(scope="module")
def failed(broken, tmp_path_factory, optax_promotion):
  """A run that failed at step BAD, counted from 0."""
  folder = tmp_path_factory.mktemp("failed") / "run"
  return folder, failure_of(folder)


def failure_of(folder):
  with pytest.raises(NumericFailure) as e:
    train.train(tiny.config(), folder)
  return e.value


def test_fault_37_a_nan_stops_the_run_names_the_term_and_keeps_the_batch(failed):
  folder, error = failed
  assert error.code == 3
  assert "terms ce" in error.message
  assert "replay" in error.hint
  report = json.loads((folder / "FAILED.json").read_text())
  assert report["step"] == BAD + 1
  with np.load(folder / replay.NAME) as kept:
    assert int(kept["step"]) == BAD
    np.testing.assert_array_equal(kept["batch/index"], feed.make_batch(build(tiny.config()), BAD)["index"])
    assert kept["row/skipped"] == 1
    assert kept["key"].tolist() == [0, 0]


def test_fault_37_the_last_good_checkpoint_is_untouched(failed, finished):
  folder, _ = failed
  assert runs.steps(folder) == ["4", "8"]
  assert runs.rows(folder) == runs.rows(finished)[:2]


def test_fault_37_replay_reproduces_it_and_changes_nothing(failed, capsys):
  folder, _ = failed
  before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
  assert main(["replay", str(folder)]) == 0
  text = capsys.readouterr().out
  assert "reproduces: step 10 fails again" in text
  assert "to the last bit" in text
  assert "loss/ce" in text
  assert "nan" in text
  assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_fault_37_replay_says_when_the_failure_does_not_come_back(failed, capsys):
  """Negative control: the same run with a sound loss."""
  folder, _ = failed
  step.make_train_step.cache_clear()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("jaxkd.losses.cross_entropy", losses.classification.cross_entropy)
    found = replay.replay(folder)
  step.make_train_step.cache_clear()
  assert (found.step, found.start, found.reproduces) == (BAD, 8, False)
  assert {"skipped", "loss"} <= found.differing.keys()


def test_fault_37_replay_of_what_did_not_fail_or_is_damaged(failed, finished, tmp_path, capsys):
  folder, _ = failed
  assert main(["replay", str(finished)]) == 2
  assert "nothing failed there" in capsys.readouterr().err
  (tmp_path / "failed").mkdir()
  content = (folder / replay.NAME).read_bytes()
  (tmp_path / replay.NAME).write_bytes(content[: len(content) // 2])
  assert main(["replay", str(tmp_path)]) == 4
  assert "unreadable" in capsys.readouterr().err


def test_fault_37_skips_up_to_the_limit_go_on_with_sound_parameters(broken, tmp_path):
  result = train.train(tiny.config(train={"max_skips": 1}), tmp_path / "run")
  assert result.step == runs.LAST
  rows = runs.rows(tmp_path / "run")
  assert [r["skipped"] for r in rows] == [0, 0, 1, 1]
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(runs.state(tmp_path / "run")["params"]))


def test_without_the_finite_guard_fault_37_goes_unnoticed(broken, tmp_path, monkeypatch):
  """Negative control: with the guard removed the check of fault 37 fails."""
  monkeypatch.setattr(train._Loop, "_guard", lambda *_: None)
  with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
    failure_of(tmp_path / "run")


TOKENS = {
  "constant batch": np.ones((4, 5, 6), np.float32),
  "zero token": np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32) * np.arange(5)[:, None],
  "zeros": np.zeros((4, 5, 6), np.float32),
}


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize("loss", [losses.token_cosine, losses.correlation_kl, losses.cka_loss])
def test_fault_37_exact_zeros_have_a_finite_loss_and_gradient(loss, name):
  x, y = jnp.asarray(TOKENS[name], jnp.float32), jnp.asarray(TOKENS["zero token"], jnp.float32)
  for pair in ((x, y), (y, x), (x, x)):
    value, grad = jax.value_and_grad(lambda s, t: jnp.sum(loss(s, t)))(*pair)
    assert np.isfinite(value)
    assert np.isfinite(grad).all()


def exhausted(*_, **__):
  raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.\nmore")


def test_fault_38_out_of_memory_says_batch_size_need_and_what_to_do(finished, tmp_path, monkeypatch):
  folder = runs.unfinished(finished, tmp_path / "run")
  (folder / "checkpoints/16").rename(tmp_path / "gone")
  runs.before_step(monkeypatch, 12, exhausted)
  with pytest.raises(OutOfDeviceMemory) as e:
    train.train(tiny.config(), folder)
  assert e.value.code == 5
  assert "train.batch_size=16 on 1 devices; compiled need per device: 0." in e.value.message
  assert "Out of memory allocating 123 bytes" in e.value.message
  for word in ("optim.accumulate", "train.remat", "probe chunk"):
    assert word in e.value.hint


def test_fault_38_the_estimate_is_that_of_the_compiler():
  x = jax.ShapeDtypeStruct((256, 256), jnp.float32)
  program = jax.jit(lambda a, b: a @ b)
  need = memory.step_bytes(program, x, x)
  assert need >= 3 * 256 * 256 * 4  # two arguments and a result
  assert need < 5 * 256 * 256 * 4
  assert memory.step_bytes(program, x, jax.ShapeDtypeStruct((256, 256), jnp.float32)) == need


def test_fault_38_other_errors_of_the_runtime_stay_what_they_are(finished, tmp_path, monkeypatch):
  def bug():
    raise RuntimeError("a bug")

  folder = runs.unfinished(finished, tmp_path / "run")
  (folder / "checkpoints/16").rename(tmp_path / "gone")
  runs.before_step(monkeypatch, 12, bug)
  with pytest.raises(RuntimeError, match="a bug"):
    train.train(tiny.config(), folder)


def subject_of(dataset):
  experiment = build(tiny.config())
  variables = jax.device_get(step.init_state(experiment).params["model"])
  about = {"num_classes": 4}
  return forensics.Subject("tiny", experiment.model, {"params": variables}, dataset.mean, dataset.std, about)


def test_fault_38_the_hessian_is_tried_again_with_half_the_images(monkeypatch):
  dataset = build(tiny.config()).dataset
  sample = Split(dataset.train.images[:4], dataset.train.labels[:4])
  subject, sizes, true = subject_of(dataset), [], hessian.hessian_trace

  def small_device(loss, params, batches, **more):
    sizes.append(len(batches[0]["labels"]))
    return exhausted() if sizes[-1] > 1 else true(loss, params, batches, **more)

  monkeypatch.setattr(hessian, "hessian_trace", small_device)
  found = flatness.examined(subject, sample, ("hessian",), probes=2, key=jax.random.key(0))
  assert sizes == [4, 2, 1]
  assert np.isfinite(found["hessian"]["trace"])
  monkeypatch.setattr(hessian, "hessian_trace", exhausted)
  with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
    flatness.examined(subject, sample, ("hessian",), probes=2, key=jax.random.key(0))


@pytest.mark.parametrize(("images", "sizes"), [(100, [10, 5, 2, 1]), (64, [16, 8, 4, 2, 1]), (1, [1])])
def test_fault_38_chunks_divide_the_sample(images, sizes):
  assert flatness.chunks(images) == sizes


def test_a_replay_of_other_data_is_refused(failed, tmp_path):
  source, _ = failed
  (tmp_path / "failed").mkdir()
  (tmp_path / "config.json").write_text((source / "config.json").read_text())
  with np.load(source / replay.NAME) as kept:
    changed = {**kept, "batch/index": kept["batch/index"][::-1]}
  np.savez(tmp_path / replay.NAME, **changed)
  with pytest.raises(UserError, match="batch/index of step 9 is not what failed"):
    replay.replay(tmp_path)
