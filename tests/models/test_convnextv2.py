"""ConvNeXt V2: the block and GRN against float64 numpy, strides, stochastic depth, degenerate maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from jaxkd.models import create
from jaxkd.models.convnextv2 import ConvNeXtBlock, GlobalResponseNorm

from .jitted import evaluate, init, train

SMALL = {"widths": (4, 8), "depths": (1, 2), "num_classes": 3, "image_size": 16}
MAPS = np.random.default_rng(0).normal(size=(2, 5, 6, 4)).astype(np.float32)


def grn(x, gamma, beta):
  norm = np.sqrt((x**2).sum((1, 2), keepdims=True))
  return gamma * x * norm / (norm.mean(-1, keepdims=True) + 1e-6) + beta + x


def test_block_against_float64():
  block = ConvNeXtBlock()
  variables = init(block, MAPS, train=False)
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
  x, padded = MAPS.astype(np.float64), np.pad(MAPS.astype(np.float64), ((0, 0), (3, 3), (3, 3), (0, 0)))
  kernel = p["dwconv"]["kernel"][:, :, 0]
  y = (
    sum(kernel[i, j] * padded[:, i : i + 5, j : j + 6] for i in range(7) for j in range(7))
    + p["dwconv"]["bias"]
  )
  y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
  y = y * p["norm"]["scale"] + p["norm"]["bias"]
  y = y @ p["pwconv1"]["kernel"] + p["pwconv1"]["bias"]
  y = grn(y * (1 + erf(y / np.sqrt(2))) / 2, p["grn"]["gamma"], p["grn"]["beta"])
  expected = x + y @ p["pwconv2"]["kernel"] + p["pwconv2"]["bias"]
  np.testing.assert_allclose(block.apply(variables, MAPS, train=False), expected, atol=2e-6)
  assert np.abs(x - expected).max() > 0.1  # negative control: the branch matters


def test_grn_of_silent_channels_is_finite():
  silent = jnp.asarray(MAPS).at[..., 1].set(0)
  variables = init(GlobalResponseNorm(), silent)

  def total(x):
    return GlobalResponseNorm().apply(variables, x).sum()

  for maps in (silent, jnp.zeros_like(silent)):
    assert np.isfinite(jax.grad(total)(maps)).all()
    assert np.isfinite(total(maps))


def test_stem_and_strides():
  for patch, sides in ((4, (4, 2)), (2, (8, 4))):
    model = create("convnextv2_tiny", **SMALL, patch_size=patch)
    variables = init(model, jnp.zeros((1, 16, 16, 3)))
    _, taps = evaluate(model, variables, jnp.ones((2, 16, 16, 3)))
    assert [taps[f"stage{i}"].shape[1] for i in range(2)] == list(sides)
    assert taps["stem"].shape == (2, sides[0], sides[0], 4)


def test_drop_path_acts_in_training_only():
  model, images = create("convnextv2_tiny", **SMALL, drop_path=0.5), jnp.ones((8, 16, 16, 3))
  variables = init(model, images)
  plain = create("convnextv2_tiny", **SMALL)
  np.testing.assert_array_equal(evaluate(model, variables, images)[0], evaluate(plain, variables, images)[0])
  noisy = train(model, variables, images, key=jax.random.key(0))[0][0]
  assert np.abs(noisy - evaluate(plain, variables, images)[0]).max() > 1e-3


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"widths": (4,)}, "one entry per stage"),
    ({"image_size": 4}, "smaller than the strides' product 8"),
    ({"drop_path": 1.0}, "drop_path=1.0 is not a rate"),
  ],
)
def test_user_errors(options, message):
  with pytest.raises(ValueError, match=message):
    create("convnextv2_tiny", **SMALL | options)
