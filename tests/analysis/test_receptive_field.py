"""Effective receptive fields of convolutions with known kernels, and of a transformer against its Jacobian."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.analysis.receptive_field import effective_receptive_field, mass_radius

KEY = jax.random.key(0)


class Toy(nn.Module):
  """A convolutional network of one layer, `stage0`, given as a function."""

  layer: Any
  num_layers: int = 1
  special_tokens: int = 0

  def __call__(self, images, *, train=False, want=()):
    return images, {"stage0": self.layer(images)}


def convolution(kernel, stride=1):
  """Images [b h w c] with a kernel [i j c d], zero-padded to keep the size."""
  kernel = jnp.asarray(kernel, jnp.float32)

  def apply(images):
    return jax.lax.conv_general_dilated(
      images, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  return apply


def field(layer, size=(9, 9), count=3, channels=1, **options):
  images = np.random.default_rng(0).normal(size=(count, *size, channels)).astype(np.float32)
  return effective_receptive_field(Toy(layer), {}, images, key=KEY, **options)


def test_energy_of_a_convolution_is_its_squared_kernel():
  kernel = np.random.default_rng(1).normal(size=(3, 5, 2, 1))
  found = field(convolution(kernel), channels=2)
  expected = np.zeros((9, 9))
  expected[3:6, 2:7] = (kernel**2).sum(axis=(2, 3))
  np.testing.assert_allclose(found.energy[0], expected / expected.sum(), rtol=1e-5, atol=1e-9)
  y, x = np.mgrid[:9, :9] - 4
  distance = (expected / expected.sum() * np.hypot(y, x)).sum()
  np.testing.assert_allclose(found.mean_distance, np.full((1, 3), distance), rtol=1e-5)
  turned = np.zeros((9, 9))  # negative control: a true convolution would turn the kernel by 180 degrees
  turned[3:6, 2:7] = (kernel[::-1, ::-1] ** 2).sum(axis=(2, 3))
  assert np.abs(found.energy[0] - turned / turned.sum()).max() > 0.01


def test_radius_of_a_flat_window():
  """3x3: 1/9 at distance 0, 4/9 at 1, 4/9 at the square root of 2."""
  found = field(convolution(np.ones((3, 3, 1, 1))), shares=(0.1, 0.5, 0.9, 1.0))
  for share, radius in ((0.1, 0), (0.5, 1), (0.9, 2**0.5), (1.0, 2**0.5)):
    assert found.radius[share][0] == pytest.approx(radius)
  assert found.mean_distance[0, 0] == pytest.approx((4 + 4 * 2**0.5) / 9, rel=1e-6)
  twice = field(lambda x: convolution(np.ones((3, 3, 1, 1)))(convolution(np.ones((3, 3, 1, 1)))(x)))
  triangle = np.outer([1, 2, 3, 2, 1], [1, 2, 3, 2, 1]) ** 2.0  # two windows make a triangle
  np.testing.assert_allclose(twice.energy[0][2:7, 2:7], triangle / triangle.sum(), rtol=1e-5)


def test_channels_add_their_energy_and_do_not_cancel():
  kernel = np.zeros((3, 3, 1, 9))
  kernel[np.arange(9) // 3, np.arange(9) % 3, 0, np.arange(9)] = np.arange(1, 10)  # each channel one pixel
  found = field(convolution(kernel))
  expected = np.arange(1, 10).reshape(3, 3) ** 2.0
  np.testing.assert_allclose(found.energy[0][3:6, 3:6], expected / expected.sum(), rtol=1e-5)


def test_a_token_of_everything_has_the_uniform_field():
  found = field(lambda x: jnp.broadcast_to(x.mean(axis=(1, 2), keepdims=True), x.shape), size=(6, 10))
  np.testing.assert_allclose(found.energy[0], 1 / 60, rtol=1e-5)
  np.testing.assert_allclose(found.mean_distance[:, 0], found.uniform_distance, rtol=1e-5)
  for share, radius in found.uniform_radius.items():
    np.testing.assert_allclose(found.radius[share], radius)
  y, x = np.mgrid[:6, :10]
  assert found.uniform_distance[0] == pytest.approx(np.hypot(y - 3, x - 5).mean())


def test_distance_is_from_the_centre_of_the_cell():
  """Stride 2 on 8x8: the token (2, 2) of 4x4 sees the pixels 4..5, whose centre is 4.5."""
  found = field(convolution(np.ones((2, 2, 1, 1)), stride=2), size=(8, 8))
  assert found.mean_distance[0, 0] == pytest.approx(0.5**0.5)
  np.testing.assert_allclose(found.energy[0][4:6, 4:6], 0.25, rtol=1e-6)


def test_a_transformer_against_its_jacobian():
  """The same image 400 times: the mean over random signs against the exact squared Jacobian."""
  model = models.create(
    "vit", patch_size=2, width=16, depth=2, heads=2, image_size=8, in_channels=1, init_std=0.5
  )
  image = np.random.default_rng(2).normal(size=(1, 8, 8, 1)).astype(np.float32)
  variables = jax.jit(model.init)(jax.random.key(0), image)
  found = effective_receptive_field(model, variables, np.repeat(image, 400, 0), key=KEY, batch_size=150)
  assert found.layers == ("block00/tokens", "block01/tokens")

  def tokens(x):
    taps = model.apply(variables, x[None])[1]
    return jnp.stack([taps[name][0, 1 + 2 * 4 + 2] for name in found.layers])

  jacobian = np.asarray(jax.jit(jax.jacrev(tokens))(image[0]), np.float64)  # [l d h w c]
  expected = (jacobian**2).sum(axis=(1, 4))
  expected /= expected.sum(axis=(1, 2), keepdims=True)
  y, x = np.mgrid[:8, :8]
  distance = (expected * np.hypot(y - 4.5, x - 4.5)).sum((1, 2))
  error = found.mean_distance.std(1) / 400**0.5
  assert (np.abs(found.mean_distance.mean(1) - distance) < 4 * error + 0.02 * distance).all()
  assert np.abs(found.energy - expected).sum((1, 2)).max() < 0.1
  other = np.abs(found.energy[::-1] - expected).sum((1, 2))  # negative control: the other layer's field
  assert other.min() > 0.1


def test_signs_do_not_depend_on_the_batches():
  layer = convolution(np.random.default_rng(3).normal(size=(3, 3, 1, 4)))
  whole, parts = (field(layer, count=5, batch_size=size) for size in (5, 2))
  np.testing.assert_allclose(whole.mean_distance, parts.mean_distance, rtol=1e-6)
  assert whole.mean_distance.std() > 0.01  # they do differ between images


def test_mass_radius_by_hand():
  energy, distances = np.array([[0.2, 0.3], [0.4, 0.1]]), np.array([[0.0, 1.0], [1.0, 3.0]])
  assert [mass_radius(energy, distances, s) for s in (0.2, 0.21, 0.9, 0.91, 1.0)] == [0, 1, 1, 3, 3]


def test_refusals():
  with pytest.raises(ValueError, match=r"must lie in \(0, 1\]"):
    field(convolution(np.ones((3, 3, 1, 1))), shares=(0.0,))
  with pytest.raises(ValueError, match="no tap 'stage7'; known: stage0"):
    field(convolution(np.ones((3, 3, 1, 1))), layers=("stage7",))
