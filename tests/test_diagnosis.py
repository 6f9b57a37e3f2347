"""Inert and collapsed terms are told, in the log, on the console and in the report."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import diagnosis, terms
from jaxkd.train import train
from tests import tiny

pytestmark = pytest.mark.usefixtures("optax_promotion")
ROW = {"step": 7, "weight/a": 1.0, "weight/b": 0.5, "gradient/a": 1.0, "gradient/b": 0.005}


def test_a_term_with_almost_no_gradient_is_inert():
  assert diagnosis.warnings(ROW) == {
    ("b", "inert"): "term 'b' is inert: its gradient is 0.5 % of all terms' at step 7 (weight 0.5)"
  }
  assert not diagnosis.warnings(ROW | {"gradient/b": 0.02})
  assert not diagnosis.warnings(ROW | {"weight/b": 0.0, "gradient/b": 0.0})  # not started yet
  assert not diagnosis.warnings({"step": 1, "weight/a": 1.0, "gradient/a": 0.0})  # alone


def test_collapsed_features_are_told():
  found = diagnosis.warnings(ROW | {"gradient/b": 1.0, "b/prediction_spread": 1e-3, "b/target_spread": 0.4})
  assert list(found) == [("b", "prediction_spread")]
  assert "the student's features have collapsed, spread 1.0e-03" in found["b", "prediction_spread"]


def test_only_what_still_holds_is_in_the_report():
  better = {"step": 9, "weight/a": 1.0, "weight/b": 0.5, "gradient/a": 1.0, "gradient/b": 1.0}
  assert diagnosis.last_warnings([ROW, better]) == []
  assert len(diagnosis.last_warnings([ROW, {"step": 8, "weight/a": 1.0, "weight/b": 0.5}])) == 1


def gram(tmp_path, published):
  term = {"kind": "gram", "teacher": "ema", "weight": 0.5, "published": published}
  config = tiny.config(
    teachers={"ema": {"weights": "ema", "view": "clean"}},
    data={"image_size": 32, "augment": {"crop": 2, "flip": True}},  # 64 tokens
    terms={"ce": tiny.CE, "gram": term | {"student_taps": ("block01/tokens",)}},
    train={"steps": 2, "ema": 0.5, "batch_size": 16},
    log={"every_steps": 1, "shares_every": 1},
    eval={"metric": "none"},
  )
  folder = tmp_path / str(published)
  train(config, folder)
  rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  return rows, (folder / "train.log").read_text()


def test_the_published_gram_scale_is_inert_and_ours_is_not(tmp_path):
  rows, log = gram(tmp_path, published=True)
  assert "term 'gram' is inert" in log
  assert diagnosis.last_warnings(rows)
  rows, log = gram(tmp_path, published=False)
  assert "inert" not in log
  assert np.isfinite(rows[-1]["gram/prediction_spread"])


@pytest.mark.parametrize(("noise", "shared"), [(1.0, 0.0), (1.0, 3.0), (0.1, 5.0)])
def test_spread_is_the_standard_deviation_of_unit_tokens(noise, shared):
  x = np.random.default_rng(0).normal(size=(8, 9, 16)) * noise + shared * np.arange(1, 17)
  unit = (x / np.linalg.norm(x, axis=-1, keepdims=True)).reshape(-1, 16)
  found = float(terms._spread(jnp.asarray(x, jnp.float32)))
  assert found == pytest.approx(np.sqrt(unit.var(0).sum()), abs=2e-4)
  assert abs(found - np.sqrt(x.reshape(-1, 16).var(0).sum())) > 0.1  # negative control: lengths count


def test_equal_or_empty_features_have_no_spread():
  assert float(terms._spread(jnp.ones((4, 9, 16)))) < 1e-3
  assert float(terms._spread(jnp.zeros((4, 9, 16)))) == 0.0
