"""Fourier spectra of sinusoids, noise and blurred noise, whose values are known."""

import jax
import numpy as np
import pytest

from jaxkd import models
from jaxkd.analysis.spectrum import feature_spectra, fourier_spectrum, spectrum_frequencies

FLOOR = np.log(1e-6)


def ring_members(grid, ring):
  """How many frequencies fall into a ring, counted one by one."""
  h, w = grid
  rings, count = min(grid) // 2, 0
  for i in range(h):
    for j in range(w):
      y, x = min(i, h - i) / h, min(j, w - j) / w
      radius = 2 * (y * y + x * x) ** 0.5
      count += radius <= 1 + 1e-9 and round(radius * rings) == ring
  return count


@pytest.mark.parametrize(
  ("grid", "cycles"), [((8, 8), (0, 2)), ((8, 8), (3, 0)), ((16, 16), (4, 4)), ((12, 8), (0, 3))]
)
def test_a_pure_wave_is_one_ring(grid, cycles):
  """Mean 1 and a wave of amplitude a: two frequencies of amplitude a/2, of all those that the ring averages."""
  y, x = np.mgrid[: grid[0], : grid[1]]
  amplitude = 0.3
  wave = 1 + amplitude * np.cos(2 * np.pi * (cycles[0] * y / grid[0] + cycles[1] * x / grid[1]) + 0.4)
  found = np.asarray(fourier_spectrum(np.float32(wave)[None, :, :, None]))[0]
  rings = min(grid) // 2
  ring = round(2 * np.hypot(cycles[0] / grid[0], cycles[1] / grid[1]) * rings)
  assert found[0] == 0
  assert found[ring] == pytest.approx(np.log(amplitude / ring_members(grid, ring)), abs=1e-5)
  others = np.delete(found, [0, ring])
  assert (others < -12).all()  # rounding, held at the floor of -13.8
  assert (others >= FLOOR - 1e-4).all()
  np.testing.assert_allclose(spectrum_frequencies(grid), np.linspace(0, 1, rings + 1))


def test_white_noise_is_flat_and_blurred_noise_is_not():
  """|F| is Rayleigh in a ring and half-normal at frequency 0, whose transform is real: log(pi / 2^1.5) apart."""
  noise = np.random.default_rng(0).normal(size=(1, 8, 8, 20_000)).astype(np.float32)
  flat = np.asarray(fourier_spectrum(noise))[0]
  np.testing.assert_allclose(flat[1:4], np.log(np.pi / 2**1.5), atol=0.02)
  blurred = sum(np.roll(noise, shift, axis=(1, 2)) for shift in ((0, 0), (0, 1), (1, 0), (1, 1))) / 4
  falling = np.asarray(fourier_spectrum(blurred))[0]
  assert (np.diff(falling) < 0).all()
  assert falling[-1] < -1
  edges = np.asarray(fourier_spectrum(noise - blurred + 0.05))[0]  # negative control: what a high-pass leaves
  assert edges[-1] > falling[-1] + 1


def test_scale_and_batch_do_not_matter():
  maps = np.random.default_rng(1).normal(size=(3, 6, 8, 4)).astype(np.float32)
  whole = fourier_spectrum(maps)
  np.testing.assert_allclose(fourier_spectrum(100 * maps), whole, atol=1e-4)
  np.testing.assert_allclose(fourier_spectrum(maps[1:2])[0], whole[1], atol=1e-5)


def test_spectra_of_a_model_drop_special_tokens_and_maps_without_frequencies():
  images = np.random.default_rng(2).normal(size=(5, 8, 12, 3)).astype(np.float32)
  vit = models.create("deit", patch_size=2, width=16, depth=2, heads=2, image_size=(8, 12))
  variables = jax.jit(vit.init)(jax.random.key(0), images)
  found = feature_spectra(vit, variables, images, batch_size=2)
  taps = jax.jit(vit.apply)(variables, images)[1]
  assert list(found) == ["block00/tokens", "block01/tokens"]
  for name, spectrum in found.items():
    maps = np.asarray(taps[name])[:, 2:].reshape(5, 4, 6, 16)
    np.testing.assert_allclose(spectrum, fourier_spectrum(maps), atol=1e-4)
  cnn = models.create("resnet18_cifar", widths=(4, 4, 4, 4), depths=(1, 1, 1, 1), image_size=8)
  images = images[:, :, :8]
  found = feature_spectra(cnn, jax.jit(cnn.init)(jax.random.key(0), images), images)
  assert {name: s.shape for name, s in found.items()} == {
    "stage0": (5, 5),
    "stage1": (5, 3),
    "stage2": (5, 2),
  }


def test_refusals():
  with pytest.raises(ValueError, match="1x4 have no spatial frequency"):
    fourier_spectrum(np.ones((1, 1, 4, 2), np.float32))
  with pytest.raises(ValueError, match=r"expected \[b h w d\]"):
    fourier_spectrum(np.ones((4, 4, 2), np.float32))
