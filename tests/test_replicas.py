"""Students trained together against each trained alone: states, metrics, folders, resume, refusals."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import checkpoint, feed, metrics, replicas, run_record, step, train
from jaxkd import config as configs
from jaxkd.errors import NumericFailure, UserError
from jaxkd.experiment import build
from jaxkd.main import main
from tests import tiny

pytestmark = pytest.mark.usefixtures("optax_promotion")

SEEDS = (3, 8)
CNN = {"name": "adaptive_cnn", "widths": (4, 8), "depths": (1, 1), "stem_pool": False}
DROPPING = {**tiny.MODEL, "drop_path": 0.2}
AUGMENT = {"crop": 1, "brightness": 0.3}
TEACHER = {"weights": "random", "model": {**CNN}, "size": 8}
KD = {"ce": tiny.CE, "kd": {"kind": "soft_kd", "teacher": "cnn"}}
SGD = {"name": "sgd", "lr": 0.05}
CASES = {
  # Adam divides by roots of squares: where a gradient is zero but for rounding, eps decides what is left of that.
  "vit": {"model": DROPPING, "optim": {"eps": 1e-3}, "train": {"ema": 0.9}, "data": {"augment": AUGMENT}},
  "batch_norm": {"model": CNN, "terms": {"ce": {"kind": "cross_entropy"}}, "optim": SGD},
  "live_teacher": {
    "teachers": {"cnn": {**TEACHER, "view": "clean"}},
    "terms": KD,
    "optim": SGD,
    "data": {"augment": AUGMENT},
  },
  "bank": {
    "optim": SGD,
    "teachers": {"cnn": {**TEACHER, "bank": "bank"}},
    "terms": KD,
    "data": {"augment": {**AUGMENT, "geometries": 2}},
  },
}


def together(**more):
  more = {**more, "train": {"epochs": 2.0, **more.get("train", {}), "replicas": SEEDS}}
  return tiny.config(**more)


def difference(a, b):
  """The largest difference of two trees, relative to the largest number of each array."""
  found = jax.tree.map(
    lambda x, y: float(np.abs(np.float64(x) - np.float64(y)).max() / max(np.abs(np.float64(y)).max(), 1e-3)),
    a,
    b,
  )
  return max(jax.tree.leaves(found))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, optax_promotion):
  """`runs(case)`: folder of the run with all seeds, made once; the other one is of the last seed alone."""
  made = {}

  def run(case):
    if case not in made:
      root, config = tmp_path_factory.mktemp(case), together(**CASES[case])
      if case == "bank":
        with config.unlocked():
          config.teachers.cnn.bank = str(root / "bank")
      train.train(config, root / "all")
      train.train(replicas.single(config, SEEDS[1]), root / "alone")
      made[case] = root
    return made[case]

  return run


@pytest.mark.parametrize("case", CASES)
def test_each_replica_is_the_run_of_its_seed(runs, case):
  root = runs(case)
  own, alone = (checkpoint.load(root / name) for name in (f"all/seed{SEEDS[1]}", "alone"))
  other = checkpoint.load(root / "all" / f"seed{SEEDS[0]}")
  assert (own.step, own.config, own.meta.keys()) == (alone.step, alone.config, alone.meta.keys())
  parts = ("params", "stats", "ema")
  found, wrong = ({k: c.state[k] for k in parts} for c in (own, other))
  expected = {k: alone.state[k] for k in parts}
  assert difference(found, expected) < 1e-5
  assert difference(wrong, expected) > 0.1
  rows = [metrics.read(root / name / "metrics.jsonl") for name in (f"all/seed{SEEDS[1]}", "alone")]
  assert [r["step"] for r in rows[0]] == [r["step"] for r in rows[1]]
  for a, b in zip(*rows, strict=True):
    assert a.keys() == b.keys()
    for name in a.keys() - {"time/images_per_s", "time/data_wait"}:
      assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-6), name


def test_a_replica_is_an_ordinary_run_folder(runs, capsys):
  root = runs("vit")
  own = root / "all" / f"seed{SEEDS[0]}"
  assert {"config.json", "env.json", "best.json", "DONE", "metrics.jsonl"} <= {p.name for p in own.iterdir()}
  config = configs.from_json((own / "config.json").read_text())
  configs.validate(config)
  assert (config.seed, tuple(config.train.replicas), config.data.order_seed) == (SEEDS[0], (), 0)
  assert train.train(config, own).step == 8
  assert main(["evaluate", str(own)]) == 0
  assert "accuracy" in capsys.readouterr().out


def test_the_run_itself_is_no_model(runs):
  with pytest.raises(UserError, match="trained 2 students at once") as e:
    checkpoint.load(runs("vit") / "all")
  assert f"seed{SEEDS[0]}" in e.value.hint
  with pytest.raises(UserError, match=r"no row in its metrics.jsonl") as e:
    run_record.read(runs("vit") / "all")
  assert f"seed{SEEDS[0]}" in e.value.hint


def test_the_best_step_is_each_ones_own(runs):
  root = runs("batch_norm")
  for seed in SEEDS:
    own = root / "all" / f"seed{seed}"
    scores = {
      r["step"]: r["validation/accuracy_cls"]
      for r in metrics.read(own / "metrics.jsonl")
      if "validation/accuracy_cls" in r
    }
    best = json.loads((own / "best.json").read_text())
    assert best["metrics"]["validation/accuracy_cls"] == max(scores.values())
    assert checkpoint.load(own).step == best["step"]


class Killed(BaseException):
  pass


def test_a_killed_run_resumes_bitwise(runs, tmp_path, monkeypatch):
  original = feed.make_batch

  def dying(experiment, number, banks):
    if number == 7:
      raise Killed
    return original(experiment, number, banks)

  monkeypatch.setattr(feed, "make_batch", dying)
  config = together(**CASES["vit"])
  with pytest.raises(Killed):
    train.train(config, tmp_path / "all")
  monkeypatch.undo()
  train.train(config, tmp_path / "all")
  for seed in SEEDS:
    a, b = (checkpoint.load(f / "all" / f"seed{seed}") for f in (runs("vit"), tmp_path))
    jax.tree.map(np.testing.assert_array_equal, a.state, b.state)


def convolutions(jaxpr):
  """Shapes of images and kernel of every convolution in a traced function."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "conv_general_dilated":
      yield tuple(v.aval.shape for v in eqn.invars[:2])
    for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        yield from convolutions(inner)


@pytest.mark.parametrize(("view", "images"), [("clean", 16), ("aligned", 32)])
def test_a_frozen_teacher_is_shared_where_its_view_is(view, images):
  """What all replicas' teacher sees is computed once; geometry of each one's own is seen by each."""
  teachers = {"cnn": {**TEACHER, "view": view}}
  experiment = build(together(teachers=teachers, terms=KD, data={"augment": AUGMENT}))
  arguments = (step.state_shapes(experiment), feed.make_batch(experiment, 0), step.frozen_inputs(experiment))
  traced = jax.make_jaxpr(lambda *a: step._step(experiment, *a))(*arguments)
  first = [image for image, kernel in convolutions(traced.jaxpr) if kernel[-2:] == (1, CNN["widths"][0])]
  assert [image[0] for image in first] == [images]


@pytest.mark.parametrize(
  ("more", "match"),
  [
    ({"train": {"patience": 2}}, "another step"),
    ({"train": {"swa_start_epoch": 1.0}}, "one model at a time"),
    ({"optim": {"schedule": "plateau"}}, "learning rate of its own"),
    ({"log": {"wandb": "x"}}, "reports one run"),
    ({"train": {"replicas": (1, 1)}}, "distinct"),
  ],
)
def test_what_replicas_cannot_do_is_refused_with_a_hint(more, match):
  train_keys = {"replicas": SEEDS, **more.get("train", {})}
  with pytest.raises(UserError, match=match) as e:
    tiny.config(**{**more, "train": train_keys})
  assert e.value.hint


def test_a_replica_that_fails_is_named_and_can_be_replayed(tmp_path, monkeypatch, capsys):
  """Only the second seed's loss is not a number from the eighth step on."""
  step.make_train_step.cache_clear()
  original = step.loss_function

  def poisoned(experiment, state, batch, frozen):
    loss_fn = original(experiment, state, batch, frozen)
    bad = (jax.random.key_data(frozen["key"])[-1] == SEEDS[1]) & (state.step >= 7)

    def loss(params):
      weighted, aux = loss_fn(params)
      return {k: jnp.where(bad, jnp.nan, v) for k, v in weighted.items()}, aux

    return loss

  monkeypatch.setattr(step, "loss_function", poisoned)
  with pytest.raises(NumericFailure, match=f"seed {SEEDS[1]}"):
    train.train(together(), tmp_path / "run")
  own = tmp_path / "run" / f"seed{SEEDS[1]}"
  assert json.loads((own / "FAILED.json").read_text())["step"] == 8
  assert json.loads((tmp_path / "run" / "FAILED.json").read_text())["row"]["skipped"] > 0
  assert main(["replay", str(own)]) == 0
  step.make_train_step.cache_clear()
  assert "step 8" in capsys.readouterr().out
