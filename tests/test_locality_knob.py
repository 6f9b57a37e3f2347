"""The locality knob: a student trained without a teacher reaches the attention distance it was told."""

import jax
import numpy as np
import pytest

from jaxkd import checkpoint, data, subjects
from jaxkd.analysis import attention_statistics
from jaxkd.teachers import normalize
from jaxkd.train import train
from tests import tiny

pytestmark = pytest.mark.usefixtures("optax_promotion")
TAPS = ("block00/attn", "block01/attn")


def measured(tmp_path, targets):
  """Ratio of each layer's mean attention distance to uniform attention's, by the analysis, after training."""
  knob = {"kind": "locality", "student_taps": TAPS, "targets": targets, "weight": 20.0}
  config = tiny.config(
    data={"image_size": 16},
    model={**tiny.MODEL, "init_std": 0.3},
    terms={"ce": tiny.CE, "knob": knob},
    train={"steps": 120, "batch_size": 32},
    optim={"lr": 1e-2, "warmup_epochs": 0.0},
    eval={"metric": "none"},
  )
  found = checkpoint.load(train(config, tmp_path / str(targets[0])).folder)
  subject = subjects.as_subject("student", found)
  images = normalize(
    data.load_test(config.data).images[:16].astype(np.float32) / 255, subject.mean, subject.std
  )
  _, taps = jax.jit(lambda v, x: subject.model.apply(v, x, want=("attn",)))(found.variables, images)
  maps = np.stack([taps[t] for t in TAPS])
  return attention_statistics(maps, subject.model.grid, 2)["distance_to_uniform"].mean(axis=-1)


def test_the_measured_distance_moves_to_the_target(tmp_path):
  for targets in ((0.5, 0.8), (0.9, 0.9)):
    np.testing.assert_allclose(measured(tmp_path, targets), targets, atol=0.06)
