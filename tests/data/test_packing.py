"""Packed pixels: the bytes they are made of, and operations that do not care which they get."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.data import operations, packing

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 18, 19, 3), dtype=np.uint8)
MAGNITUDES = jnp.array([0.3, 1.0, 1.7, 5.0])
MATRICES = operations.rotate_matrices(jnp.array([0.0, 20.0, 90.0, -45.0]), (18, 19))
BOXES = jnp.array([[0, 0, 2, 3], [3, 3, 9, 9], [-1, -1, 3, 3], [0, 0, 0, 0]])
OPERATIONS = {
  **{
    name: (MAGNITUDES,)
    for name in ("brightness", "contrast", "color", "sharpness", "posterize", "solarize", "hue")
  },
  **{name: () for name in ("autocontrast", "equalize", "invert", "grayscale")},
  "affine": (MATRICES,),
  "erase": (BOXES,),
}


def test_a_word_holds_the_channels_lowest_byte_first():
  padded = np.concatenate([IMAGES, np.zeros_like(IMAGES[..., :1])], axis=-1)
  packed = packing.pack(jnp.asarray(IMAGES))
  np.testing.assert_array_equal(packed[..., 0], padded.view("<u4")[..., 0])
  np.testing.assert_array_equal(packing.unpack(packed), IMAGES)
  np.testing.assert_array_equal(packing.pack(packed), packed)
  grey = jnp.asarray(IMAGES[..., :1])
  np.testing.assert_array_equal(packing.unpack(packing.pack(grey)), grey)
  assert packing.pack(grey).dtype == jnp.uint8


def test_levels_come_back_from_planes():
  packed = packing.pack(jnp.asarray(IMAGES))
  planes = packing.planes(packed)
  np.testing.assert_array_equal(np.stack(planes, axis=-1), IMAGES)
  np.testing.assert_array_equal(packing.joined(planes), packed)
  assert (packing.joined(planes[::-1]) != packed).any()


def test_operations_take_either_and_return_what_they_get():
  def both(x):
    packed = packing.pack(x)
    return {n: [getattr(operations, n)(a, *m) for a in (x, packed)] for n, m in OPERATIONS.items()}

  for name, (plain, packed) in jax.jit(both)(jnp.asarray(IMAGES)).items():
    assert (plain.dtype, packed.dtype) == (jnp.uint8, jnp.uint32), name
    np.testing.assert_array_equal(packing.unpack(packed), plain, err_msg=name)
    assert (np.asarray(plain) != IMAGES).any(), name


@pytest.mark.parametrize(
  "images", [IMAGES.astype(np.uint32), IMAGES[..., 0], IMAGES.astype(np.int32)], ids=["colour", "3d", "int"]
)
def test_other_arrays_are_refused(images):
  with pytest.raises(ValueError, match="expected uint8"):
    packing.pack(jnp.asarray(images))
