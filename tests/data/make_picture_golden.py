"""Writes pictures.png: every operation and policy on four images, a row each, in the order of `rows`.

  python -m tests.data.make_picture_golden

Look at the picture before committing another one.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from jaxkd.data import operations, policies
from jaxkd.data.augment import make_views

GOLDEN = Path(__file__).with_name("pictures.png")
SIZE = 32
MEAN = (0.5, 0.5, 0.5)
WHOLE = {
  "global_count": 1,
  "global_scale": (1.0, 1.0),
  "local_count": 0,
  "local_size": 8,
  "local_scale": (0.2, 0.5),
}
VIEWS = {  # rows of `make_views`
  "crop and flip": ({"crop": 4, "flip": True}, {}),
  "affine": ({"rotation": 20.0, "translate": 0.1, "scale": (0.8, 1.2), "shear": 10.0}, {}),
  "resized crop": ({}, {"global_scale": (0.3, 0.6)}),
  "colours": ({"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}, {}),
  "erase and cutout": ({"erase": 1.0, "cutout": 8}, {}),
  "mixup": ({"mixup": 1.0}, {}),
  "cutmix": ({"cutmix": 1.0}, {}),
  **{name: ({"policy": name}, {}) for name in policies.FULL},
  "dino 1": (
    {"jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1},
    {"recipe": "dino"},
  ),
}


def images() -> np.ndarray:
  """Two patches of photographs, a dark one, and a digit: uint8 [4 32 32 3]."""
  china, flower = (
    np.asarray(Image.fromarray(p).resize((160, 107), Image.Resampling.BOX))
    for p in load_sample_images().images
  )
  digit = Image.fromarray((load_digits().images[4] * 15).astype(np.uint8)).resize(
    (SIZE, SIZE), Image.Resampling.BICUBIC
  )
  patches = [china[25:57, 50:82], flower[35:67, 70:102], china[60:92, 20:52] // 3 + 10]
  return np.stack([*patches, np.repeat(np.asarray(digit)[..., None], 3, axis=-1)])


def by_operation(x: jax.Array) -> dict[str, jax.Array]:
  same = lambda value: jnp.full((len(x),), value, jnp.float32)  # noqa: E731
  size, zero = (SIZE, SIZE), same(0.0)
  return {
    "shear x": operations.affine(x, operations.shear_matrices(same(0.3), zero)),
    "shear y": operations.affine(x, operations.shear_matrices(zero, same(-0.3))),
    "translate": operations.affine(x, operations.translate_matrices(same(6.0), same(-3.0))),
    "rotate": operations.affine(x, operations.rotate_matrices(same(30.0), size)),
    "rotate, bilinear": operations.affine(x, operations.rotate_matrices(same(30.0), size), method="bilinear"),
    "brightness": operations.brightness(x, same(1.6)),
    "contrast": operations.contrast(x, same(0.4)),
    "color": operations.color(x, same(1.9)),
    "sharpness": operations.sharpness(x, same(1.9)),
    "posterize": operations.posterize(x, same(3.0)),
    "solarize": operations.solarize(x, same(128.0)),
    "autocontrast": operations.autocontrast(x),
    "equalize": operations.equalize(x),
    "invert": operations.invert(x),
    "hue": operations.hue(x, same(0.25)),
    "grayscale": operations.grayscale(x),
    "blur": operations.gaussian_blur(x, same(1.5), kernel_size=5),
    "erase": operations.erase(x, jnp.tile(jnp.array([[8, 4, 12, 20]]), (len(x), 1)), fill=127.0),
  }


def by_views(x: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
  """What the student sees; in batches of 64, so that policies run in slices, of which the first few are shown."""
  seen = {}
  for name, (augment, shape) in VIEWS.items():
    batch = jnp.tile(x, (policies.SHARD // len(x) if "policy" in augment else 1, 1, 1, 1))
    student = make_views(batch, key, mean=MEAN, augment=augment, views=WHOLE | shape)["student"]
    seen[name] = jnp.round(student[: len(x)] * 255).astype(jnp.uint8)
  return seen


def rows() -> dict[str, np.ndarray]:
  """Name -> the four images, uint8 [4 32 32 3]; operations by the alphabet, as a jitted program hands them over."""
  x = jnp.asarray(images())
  views = jax.jit(by_views)(x, jax.random.key(0))
  found = {"original": x, **jax.jit(by_operation)(x), **{name: views[name] for name in VIEWS}}
  return {name: np.asarray(row) for name, row in found.items()}


def grid(found: dict[str, np.ndarray]) -> np.ndarray:
  """All rows as one picture."""
  return np.concatenate([np.concatenate([*row], axis=1) for row in found.values()])


def main() -> None:
  found = rows()
  Image.fromarray(grid(found)).save(GOLDEN, optimize=True)
  print(f"{GOLDEN.name}: {', '.join(found)}")


if __name__ == "__main__":
  main()
