"""Every operation against Pillow on photographs: exact where both count in whole numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_images

from jaxkd.data import operations
from jaxkd.data.augment import draw_boxes, sample_boxes

HEIGHT, WIDTH = 36, 44


def photographs():
  """Ten patches of scikit-learn's two photographs: seven at half size, a dark, a flat and a two-level one."""
  pictures = [Image.fromarray(p).resize((320, 214)) for p in load_sample_images().images]
  places = [(i % 2, 20 + 20 * i, 40 + 33 * i) for i in range(8)]
  patches = [np.asarray(pictures[p])[y : y + HEIGHT, x : x + WIDTH] for p, y, x in places]
  patches[7] = patches[7] // 3 + 20
  flat = np.full_like(patches[0], 77)
  two = np.where(patches[1] > 90, 200, 30).astype(np.uint8)
  return np.stack([*patches, flat, two])


IMAGES = photographs()
COUNT = len(IMAGES)


def each(pillow, images=IMAGES, *, magnitudes=None):
  """`pillow` applied image by image."""
  arguments = [()] * len(images) if magnitudes is None else [(m,) for m in magnitudes]
  mode = [Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x) for x in images]
  return np.stack(
    [np.asarray(pillow(x, *a)).reshape(images[0].shape) for x, a in zip(mode, arguments, strict=True)]
  )


@functools.lru_cache
def compiled(operation, **options):
  return jax.jit(lambda x, *a: operation(x, *a, **options))


def ours(operation, *arguments, images=IMAGES, **options):
  got = compiled(operation, **options)(jnp.asarray(images), *map(jnp.asarray, arguments))
  assert got.dtype == jnp.uint8
  return np.asarray(got)


def difference(a, b):
  return np.abs(a.astype(int) - b.astype(int))


def ramp(low, high):
  return np.linspace(low, high, COUNT).astype(np.float32)


GREY = IMAGES[..., :1]
BITS = np.array([1, 2, 3, 4, 5, 6, 7, 8, 4, 4], np.float32)
THRESHOLDS = ramp(0, 255)


@pytest.mark.parametrize("images", [IMAGES, GREY], ids=["rgb", "grey"])
def test_whole_number_operations_equal_pillow_exactly(images):
  whole = lambda name, *m: ours(getattr(operations, name), *m, images=images)  # noqa: E731
  np.testing.assert_array_equal(whole("invert"), each(ImageOps.invert, images))
  np.testing.assert_array_equal(whole("equalize"), each(ImageOps.equalize, images))
  bits = each(lambda x, m: ImageOps.posterize(x, int(m)), images, magnitudes=BITS)
  np.testing.assert_array_equal(whole("posterize", BITS), bits)
  solar = each(ImageOps.solarize, images, magnitudes=THRESHOLDS)
  np.testing.assert_array_equal(whole("solarize", THRESHOLDS), solar)
  assert difference(whole("solarize", THRESHOLDS + 8), solar).max() > 0, "the comparison can fail"


def test_equalize_where_the_histogram_overflows_or_has_no_step():
  one_pixel = np.array([7, 200], np.uint8).reshape(2, 1, 1, 1)
  np.testing.assert_array_equal(ours(operations.equalize, images=one_pixel), one_pixel)
  skewed = np.sort(np.random.default_rng(0).integers(0, 256, (6, 17, 17, 1), dtype=np.uint8), axis=1)
  got, expected = ours(operations.equalize, images=skewed), each(ImageOps.equalize, skewed)
  np.testing.assert_array_equal(got, expected)  # steps of 1 run beyond 255 and are cut there
  assert (expected == 255).sum() > 6 * 10


def test_equalize_tables_are_whole_quotients_up_to_four_megapixels():
  random = np.random.default_rng(0)
  sizes = np.geomspace(100, 2**22, 300).astype(int)
  counts = np.stack([random.multinomial(n, random.dirichlet(np.full(256, 0.1))) for n in sizes])
  top = 255 - (counts[:, ::-1] > 0).argmax(axis=1)
  step = ((sizes - counts[np.arange(300), top]) // 255)[:, None]
  reached = np.cumsum(counts, axis=1) - counts + step // 2
  expected = np.where(step > 0, np.minimum(reached // np.maximum(step, 1), 255), np.arange(256))
  got = jax.jit(operations._equalizing)(jnp.asarray(counts, jnp.int32))
  np.testing.assert_array_equal(got, expected)
  assert (np.asarray(got) != np.roll(expected, 1, axis=0)).any()


def test_autocontrast_is_the_exact_quotient_and_pillow_but_for_whole_ones():
  low, high = (f(IMAGES.astype(int), axis=(1, 2), keepdims=True) for f in (np.min, np.max))
  products, span = 255 * (IMAGES.astype(int) - low), np.maximum(high - low, 1)
  exact = np.where(high > low, products // span, IMAGES)
  got = ours(operations.autocontrast)
  np.testing.assert_array_equal(got, exact)
  pillow = each(ImageOps.autocontrast)
  differs = got != pillow
  assert (products % span == 0)[differs].all()
  np.testing.assert_array_equal((got.astype(int) - pillow)[differs], 1)
  assert differs.mean() < 3e-3


ENHANCE = {"brightness": "Brightness", "color": "Color", "contrast": "Contrast", "sharpness": "Sharpness"}


@pytest.mark.parametrize("images", [IMAGES, GREY], ids=["rgb", "grey"])
@pytest.mark.parametrize("name", ENHANCE)
def test_enhancements_equal_pillow(name, images):
  factors = np.array([0, 0.1, 0.37, 0.5, 0.9, 1, 1.25, 1.63, 1.9, 1.99], np.float32)
  enhance = getattr(ImageEnhance, ENHANCE[name])
  if name == "color" and images is GREY:
    np.testing.assert_array_equal(ours(operations.color, factors, images=GREY), GREY)
    return
  expected = each(lambda x, m: enhance(x).enhance(float(m)), images, magnitudes=factors)
  gap = difference(ours(getattr(operations, name), factors, images=images), expected)
  assert gap.max() == 0
  wrong = ours(getattr(operations, name), factors + np.float32(0.02), images=images)
  assert difference(wrong, expected).mean() > 0.05


def test_sharpness_keeps_tiny_images_and_grayscale_equals_pillow():
  thin = IMAGES[:, :2, :9]
  np.testing.assert_array_equal(ours(operations.sharpness, ramp(0, 2), images=thin), thin)
  expected = each(lambda x: x.convert("L").convert("RGB"))
  np.testing.assert_array_equal(ours(operations.grayscale), expected)
  np.testing.assert_array_equal(ours(operations.grayscale, images=GREY), GREY)


def pillow_hue(image, turn):
  h, s, v = image.convert("HSV").split()
  moved = (np.asarray(h).astype(int) + int(turn * 255)) % 256
  return Image.merge("HSV", (Image.fromarray(moved.astype(np.uint8)), s, v)).convert("RGB")


def test_hue_equals_pillow_hsv():
  turns = ramp(-0.5, 0.5)
  expected = each(pillow_hue, magnitudes=turns)
  got = ours(operations.hue, turns)
  assert difference(got, expected).mean() < 0.01
  assert difference(got, expected).max() <= 6  # one step of the 8-bit hue
  assert difference(got, IMAGES).mean() > 5
  np.testing.assert_array_equal(ours(operations.hue, turns, images=GREY), GREY)


def pillow_affine(matrices, resample, fill):
  return np.stack(
    [
      np.asarray(
        Image.fromarray(x).transform((WIDTH, HEIGHT), Image.Transform.AFFINE, m, resample, fillcolor=fill)
      )
      for x, m in zip(IMAGES, np.asarray(matrices, np.float64).reshape(COUNT, 6).tolist(), strict=True)
    ]
  )


SLOPES = ramp(-0.97, 0.99)
MATRICES = {
  "shear_x": operations.shear_matrices(SLOPES, 0 * SLOPES),
  "shear_y": operations.shear_matrices(0 * SLOPES, SLOPES),
  "translate": operations.translate_matrices(ramp(-30, 33).round(), ramp(20, -17).round()),
  "fraction": operations.translate_matrices(ramp(-3.3, 4.1), ramp(2.7, -1.2)),
  "rotate": operations.rotate_matrices(ramp(-135, 131), (HEIGHT, WIDTH)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_affine_equals_pillow(name):
  fill = (10, 200, 30)
  nearest = ours(operations.affine, MATRICES[name], fill=fill)
  expected = pillow_affine(MATRICES[name], Image.Resampling.NEAREST, fill)
  np.testing.assert_array_equal(nearest, expected)
  smooth = ours(operations.affine, MATRICES[name], fill=fill, method="bilinear")
  expected = pillow_affine(MATRICES[name], Image.Resampling.BILINEAR, fill)
  gap = difference(smooth, expected)
  assert (gap > 1).mean() < 1e-4  # a point on the very border may fall on either side of it
  assert gap.mean() < 0.01
  shifted = MATRICES[name] + jnp.array([[[0, 0, 0.5], [0, 0, 0.5]]])
  assert difference(ours(operations.affine, shifted, fill=fill, method="bilinear"), expected).mean() > 0.5


def test_rotation_equals_pillow_rotate_including_its_centre():
  degrees = np.array([-135, -30, -17.3, -1, 0, 2.5, 11, 30, 77, 134], np.float32)
  matrices = operations.rotate_matrices(jnp.asarray(degrees), (HEIGHT, WIDTH))
  expected = each(lambda x, m: x.rotate(float(m)), magnitudes=degrees)
  got = ours(operations.affine, matrices)
  assert (
    difference(got, expected).max(axis=-1) > 0
  ).mean() < 1e-3  # float32 cosines: a point on a pixel's border
  assert difference(ours(operations.affine, -matrices), expected).mean() > 10


def test_composition_is_first_then_second():
  first = operations.translate_matrices(ramp(5, 5), ramp(0, 0))
  second = operations.rotate_matrices(ramp(90, 90), (36, 36))
  square = IMAGES[:, :, :36]
  both = ours(operations.affine, operations.compose(first, second), images=square, fill=9)
  one = ours(operations.affine, first, images=square, fill=9)
  np.testing.assert_array_equal(both, np.rot90(one, axes=(1, 2)))
  assert (both != ours(operations.affine, operations.compose(second, first), images=square, fill=9)).any()


def test_box_matrices_are_the_crop_and_flip_of_the_views():
  boxes = draw_boxes(jax.random.key(1), (COUNT, 36, 36, 3), crop=5, flip=True, scale=(1.0, 1.0))
  square = IMAGES[:, :, :36]
  expected = np.asarray(jax.jit(sample_boxes, static_argnums=2)(jnp.asarray(square, jnp.float32), boxes, 36))
  got = ours(operations.affine, operations.box_matrices(boxes, (36, 36)), images=square)
  np.testing.assert_array_equal(got, expected)
  assert set(np.asarray(boxes[:, 4])) == {0.0, 1.0}


@pytest.mark.parametrize(("kernel_size", "images"), [(3, IMAGES), (9, IMAGES), (5, IMAGES[:, :3, :8, :1])])
def test_gaussian_blur_equals_scipy(kernel_size, images):
  sigmas = ramp(0.1, 2.0)
  expected = np.stack(
    [
      gaussian_filter(
        x.astype(np.float64), (s, s, 0), mode="mirror", radius=(kernel_size // 2, kernel_size // 2, 0)
      )
      for x, s in zip(images, sigmas.astype(np.float64), strict=True)
    ]
  )
  got = ours(operations.gaussian_blur, sigmas, images=images, kernel_size=kernel_size)
  assert np.abs(got - expected).max() < 0.5 + 1e-3  # rounded to the nearest level
  assert (
    np.abs(
      ours(operations.gaussian_blur, sigmas * 1.2, images=images, kernel_size=kernel_size) - expected
    ).max()
    > 0.6
  )
  nothing = ours(operations.gaussian_blur, 0 * sigmas, images=images, kernel_size=kernel_size)
  np.testing.assert_array_equal(nothing, images)


def test_erase_paints_exactly_the_box_inside_the_image():
  boxes = np.array(
    [[-3, 40, 10, 20], [5, 6, 7, 8], [0, 0, 0, 5], [30, -2, 90, 3]] + [[0, 0, 1, 1]] * 6, np.int32
  )
  got = ours(operations.erase, boxes, fill=(1, 2, 3))
  expected = IMAGES.copy()
  for image, (top, left, height, width) in zip(expected, boxes, strict=True):
    image[max(top, 0) : top + height, max(left, 0) : left + width] = (1, 2, 3)
  np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
  "images", [IMAGES.astype(np.float32), IMAGES[0], IMAGES[..., :2]], ids=["float", "3d", "c2"]
)
def test_other_images_are_refused(images):
  with pytest.raises(ValueError, match="expected uint8"):
    operations.equalize(jnp.asarray(images))


def test_wrong_options_are_refused():
  x = jnp.asarray(IMAGES)
  with pytest.raises(ValueError, match="'cubic'; known: nearest, bilinear"):
    operations.affine(x, MATRICES["rotate"], method="cubic")
  with pytest.raises(ValueError, match="kernel size 4 must be odd"):
    operations.gaussian_blur(x, jnp.ones(COUNT), kernel_size=4)
  with pytest.raises(ValueError, match="at most 71"):
    operations.gaussian_blur(x, jnp.ones(COUNT), kernel_size=73)
