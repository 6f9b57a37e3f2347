"""Test-time augmentation: the average by hand, the same views in any batch, `evaluate --tta` from the command line."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from jaxkd import evaluation, files
from jaxkd.data import Split
from jaxkd.data.augment import make_views
from jaxkd.main import main
from jaxkd.train import train
from tests import tiny

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
STATS = {"mean": (0.5,) * 3, "std": (0.2,) * 3}
CONFIG = tiny.config(
  data={"augment": {"crop": 2, "brightness": 0.4, "policy": "trivialaugment", "mixup": 0.8}}
)
AUGMENT, VIEWS = CONFIG.data.augment.to_dict(), CONFIG.data.views.to_dict()


class Linear(nn.Module):
  """Two heads on raw pixels."""

  @nn.compact
  def __call__(self, x, *, train):
    cls, dist = jnp.split(nn.Dense(6)(x.reshape(len(x), -1)), 2, axis=1)
    return cls, {"logits": (cls + dist) / 2, "logits/cls": cls, "logits/dist": dist}


MODEL = Linear()
VARIABLES = MODEL.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)


def averaged(images=IMAGES, *, count, batch_size, seed=0):
  options = {"augment": AUGMENT, "views": VIEWS, **STATS}
  return evaluation.augmented_probabilities(
    MODEL, VARIABLES, images, count=count, batch_size=batch_size, seed=seed, **options
  )


def test_probabilities_are_the_mean_over_the_original_and_each_images_own_views():
  key = jax.random.key(0)
  unmixed = {**AUGMENT, "mixup": 0.0}
  view = jax.jit(lambda x, k: make_views(x[None], k, mean=STATS["mean"], augment=unmixed, views=VIEWS))
  expected = {"cls": 0, "dist": 0, "mean": 0}
  for v in range(3):
    seen = [IMAGES / np.float32(255)]
    if v:
      keys = [jax.random.fold_in(jax.random.fold_in(key, i), v - 1) for i in range(10)]
      seen = [[np.asarray(view(x, k)["student"][0]) for x, k in zip(IMAGES, keys, strict=True)]]
    x = (np.asarray(seen[0], np.float32) - 0.5) / 0.2
    dense = VARIABLES["params"]["Dense_0"]
    logits = x.reshape(10, -1).astype(np.float64) @ np.asarray(dense["kernel"], np.float64)
    cls, dist = logits[:, :3], logits[:, 3:]
    for head, z in (("cls", cls), ("dist", dist), ("mean", (cls + dist) / 2)):
      expected[head] = expected[head] + softmax(z, axis=1) / 3
  got = averaged(count=2, batch_size=10)
  assert set(got) == set(expected)
  for head, p in expected.items():
    np.testing.assert_allclose(got[head], p, atol=3e-6)
    np.testing.assert_allclose(got[head].sum(axis=1), 1, atol=1e-6)
  split = Split(IMAGES, np.zeros(10, np.int64))
  plain = evaluation.head_logits(MODEL, VARIABLES, split, batch_size=10, **STATS)["cls"]
  assert np.abs(got["cls"] - softmax(plain, axis=1)).max() > 0.01


def test_views_depend_on_the_images_place_only():
  whole, parts = averaged(count=2, batch_size=10), averaged(count=2, batch_size=4)  # 4, 4 and 2 moved back
  for head in whole:
    np.testing.assert_allclose(whole[head], parts[head], atol=2e-6)
  assert np.abs(whole["cls"] - averaged(count=2, batch_size=10, seed=1)["cls"]).max() > 1e-3
  assert np.abs(whole["cls"] - averaged(IMAGES[::-1], count=2, batch_size=10)["cls"][::-1]).max() > 1e-3


def test_views_that_change_nothing_are_refused():
  plain = tiny.config().data
  with pytest.raises(ValueError, match="needs a view, and an option that changes images"):
    evaluation.augmented_probabilities(
      MODEL,
      VARIABLES,
      IMAGES,
      count=1,
      augment=plain.augment.to_dict(),
      views=VIEWS,
      batch_size=4,
      **STATS,
    )


@pytest.mark.usefixtures("optax_promotion")
def test_evaluate_reports_both(tmp_path, capsys):
  train(tiny.config(train={"steps": 1}, data={"augment": {"crop": 1}}), tmp_path / "run")
  assert main(["evaluate", str(tmp_path / "run"), "--tta", "2", "-o", str(tmp_path / "eval")]) == 0
  shown = capsys.readouterr().out
  assert "24 test images of synthetic, each with 2 augmented views" in shown
  result = files.read_json(next((tmp_path / "eval").glob("*.json")))
  assert result["tta"]["views"] == 2
  assert result["tta"]["heads"]["cls"]["examples"] == result["heads"]["cls"]["examples"]
  assert result["tta"]["heads"]["cls"]["loss"] != result["heads"]["cls"]["loss"]
  assert main(["evaluate", str(tmp_path / "run"), "--tta", "-1"]) == 2
  assert "--tta -1 is not a number of views" in capsys.readouterr().err
