"""Augmentation inside the step: one geometry for every branch, photometry for the student only (spec 5).

`draw_views` decides what happens to each image, `make_views` does it, `describe` tells it in words.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, UInt8

from jaxkd import schema
from jaxkd.data import mixing, operations, packing, policies
from jaxkd.data.boxes import NO_SCALE, affine_matrices, draw_affine, draw_boxes, sample_boxes
from jaxkd.data.fusion import apart
from jaxkd.data.photometry import Draws, apply_photometry, draw_photometry, floats, photometry
from jaxkd.data.policies import ID, Plan

__all__ = [
  "Drawn",
  "changes_images",
  "describe",
  "draw_boxes",
  "draw_views",
  "make_views",
  "photometry",
  "sample_boxes",
]

AFFINE = ("shear", "scale", "rotation", "translate")  # in order of application
PHOTOMETRY = (
  "brightness",
  "contrast",
  "saturation",
  "hue",
  "grayscale",
  "blur",
  "solarize",
  "erase",
  "cutout",
)
FACTORS = ("scale", "brightness", "contrast", "saturation")
# Probabilities in the first view of full size, in each further one, and in small crops: DINO's (Caron et al., ICCV
# 2021, arXiv:2104.14294), after BYOL's two views.
RECIPES = {"dino": {"blur": (1.0, 0.1, 0.5), "solarize": (0.0, 0.2, 0.0)}}
# Streams folded into the key of a step, besides the four it is split into.
POLICY, TURN, MIX, LOCAL_POLICY = range(16, 20)


@struct.dataclass
class Drawn:
  """What happens to n images of one size. Empty or None: nothing of the kind was asked for.

  Attributes:
    boxes: [n 5], see `draw_boxes`. affine: see `draw_affine`. plan: a policy's operations, geometric ones included.
    photometry: see `draw_photometry`.
  """

  boxes: Float[Array, "n 5"]
  affine: dict[str, Array]
  plan: Plan | None
  photometry: Draws


def completed(augment: dict[str, Any]) -> dict[str, Any]:
  """`augment` with the options it leaves out at the schema's defaults, which change nothing."""
  fields: dict[str, Any] = schema.DATA["augment"]  # type: ignore[assignment]
  return {name: augment.get(name, field.default) for name, field in fields.items()}


def draw_views(
  key: Array,
  shape: tuple[int, ...],
  *,
  augment: dict,
  views: dict,
  boxes: Float[Array, "n 5"] | None = None,
  positions: Int[Array, " b"] | None = None,
) -> tuple[Drawn, Drawn | None]:
  """What `make_views` draws for images of `shape` [b h w c]: for the views of full size, and for the local crops.

  Raises:
    ValueError: `boxes` are not one for each image and view.
  """
  augment = completed(augment)
  b, h, w, c = shape
  k_box, k_photo, k_local, k_local_photo = jax.random.split(key, 4)
  positions = jnp.arange(b, dtype=jnp.int32) if positions is None else positions
  whole = (views["global_count"] * b, h, w, c)
  if boxes is None:
    boxes = draw_boxes(k_box, whole, crop=augment["crop"], flip=augment["flip"], scale=views["global_scale"])
  if boxes.shape != (whole[0], 5):
    raise ValueError(f"boxes {boxes.shape} for {whole[0]} views of full size; expected ({whole[0]}, 5)")
  drawn = Drawn(
    boxes,
    draw_affine(jax.random.fold_in(key, TURN), whole, **{k: augment[k] for k in AFFINE}),
    _plan(jax.random.fold_in(key, POLICY), positions, augment, augment["policy"], whole),
    draw_photometry(k_photo, whole, **_photometry_options(augment, views, (b, whole[0] - b, 0))),
  )
  if not views["local_count"]:
    return drawn, None
  many, side = views["local_count"] * b, views["local_size"]
  small = draw_boxes(
    k_local, (many, h, w, c), crop=0, flip=augment["flip"], scale=views["local_scale"]
  )  # their size is their geometry: no rotation, and a policy's colours only
  colors = "none" if augment["policy"] == "none" else augment["policy"].removesuffix("_color") + "_color"
  plan = _plan(jax.random.fold_in(key, LOCAL_POLICY), positions, augment, colors, (many, side, side, c))
  options = _photometry_options(augment, views, (0, 0, many))
  return drawn, Drawn(small, {}, plan, draw_photometry(k_local_photo, (many, side, side, c), **options))


def _photometry_options(augment: dict, views: dict, counts: tuple[int, int, int]) -> dict[str, Any]:
  """`counts` of images in the first view, in further ones and in small crops, of which a recipe may speak apart."""
  options = {k: augment[k] for k in (*PHOTOMETRY, "jitter")}
  recipe = RECIPES.get(views.get("recipe", "none"), {})
  return options | {k: np.repeat(np.array(shares, np.float32), counts) for k, shares in recipe.items()}


def _plan(key: Array, positions, augment: dict, policy: str, shape: tuple[int, ...]) -> Plan | None:
  """One plan for all views, each drawn with a key of its own so that `positions` may repeat."""
  if policy == "none":
    return None
  options = {"count": augment["policy_count"], "magnitude": augment["policy_magnitude"]}
  plans = [
    policies.draw(policy, jax.random.fold_in(key, view), positions, size=(shape[1], shape[2]), **options)
    for view in range(shape[0] // positions.shape[0])
  ]
  ops, magnitudes = (jnp.concatenate([getattr(p, n) for p in plans]) for n in ("ops", "magnitudes"))
  return dataclasses.replace(plans[0], ops=ops, magnitudes=magnitudes)


def make_views(
  images: UInt8[Array, "b h w c"],
  key: Array,
  *,
  mean: tuple[float, ...],
  augment: dict,
  views: dict,
  boxes: Float[Array, "n 5"] | None = None,
  positions: Int[Array, " b"] | None = None,
) -> dict[str, Any]:
  """What each branch sees, as float32 in [0, 1], not yet normalised.

  Args:
    images: the raw batch.
    key: PRNG key of this step.
    mean: value per channel that Cutout and erasing paint.
    augment: `config.data.augment`. views: `config.data.views`.
    boxes: [v*b 5], the crops of the views of full size; drawn when None. All else is drawn as without them.
    positions: [b], each example's place in the global batch, for policies drawn by shards; 0 to b - 1 when None.

  Returns:
    `student` [v*b h w c] (view-major, v = `global_count`), `aligned` the same geometries without photometry,
    `same` = `student`, `clean` the source images repeated, and `local` [m*b s s c] when m = `local_count` > 0.
    With MixUp or CutMix `student` and `same` are mixed, each view within itself, and `mix` = (partner [v*b] int32,
    weight [v*b] float32): image i shows `weight` of itself and the rest of image `partner`. Local crops are not mixed.

  Raises:
    ValueError: `boxes` are not one for each image and view.
  """
  augment = completed(augment)
  whole, small = draw_views(key, images.shape, augment=augment, views=views, boxes=boxes, positions=positions)
  source = images.astype(jnp.float32) / 255
  clean = jnp.tile(source, (views["global_count"], 1, 1, 1))
  aligned = _geometry(images, clean, whole, augment, views)
  student = apply_photometry(aligned, whole.photometry, mean=mean, plan=whole.plan)
  aligned = floats(aligned)
  out: dict[str, Any] = {"student": student, "same": student, "aligned": aligned, "clean": clean}
  if augment["mixup"] or augment["cutmix"]:
    out["student"], out["mix"] = _mixed(student, jax.random.fold_in(key, MIX), augment, images.shape[0])
    out["same"] = out["student"]
  if small is not None:
    crops = sample_boxes(jnp.tile(source, (views["local_count"], 1, 1, 1)), small.boxes, views["local_size"])
    out["local"] = apply_photometry(crops, small.photometry, mean=mean, plan=small.plan)
  return out


def changes_images(augment: dict, views: dict) -> bool:
  """Whether a view of full size can differ from its image, mixing aside."""
  plain, augment = completed({}), completed(augment)
  options = ("crop", "flip", "policy", *AFFINE, *PHOTOMETRY)
  by_view = views.get("recipe", "none") != "none" or tuple(views["global_scale"]) != NO_SCALE
  return by_view or any(augment[k] != plain[k] for k in options)


def moves(policy: str) -> bool:
  """Whether the policy has geometric operations."""
  return policy != "none" and not policy.endswith("_color")


def _geometry(images, source, drawn: Drawn, augment: dict, views: dict) -> Array:
  """The geometry all branches share: boxes alone in floats, everything else in one gather of packed pixels."""
  if not drawn.affine and not moves(augment["policy"]):
    return sample_boxes(source, drawn.boxes, source.shape[1])
  size = images.shape[1:3]
  matrices = operations.box_matrices(drawn.boxes, size)
  if drawn.affine:
    matrices = operations.compose(matrices, affine_matrices(drawn.affine, len(drawn.boxes), size))
  if drawn.plan is not None and moves(augment["policy"]):
    matrices = operations.compose(matrices, policies.geometry_matrices(drawn.plan, size))
  # Policies sample the nearest pixel, as their reference implementations do.
  whole_pixels = set(drawn.affine) <= {"translate"} and tuple(views["global_scale"]) == NO_SCALE
  method = "nearest" if whole_pixels else "bilinear"
  tiled = jnp.tile(packing.pack(images), (views["global_count"], 1, 1, 1))
  return apart(functools.partial(operations.affine, method=method), tiled, matrices)


def _mixed(images, key: Array, augment: dict, b: int):
  """MixUp or CutMix within each view of b images."""
  options = {"mixup_alpha": augment["mixup"], "cutmix_alpha": augment["cutmix"]}
  parts = [
    mixing.mix(
      images[i : i + b], jax.random.fold_in(key, i // b), **options, per_sample=augment["mix_per_sample"]
    )
    for i in range(0, len(images), b)
  ]
  partner = jnp.concatenate([part.partner + i * b for i, part in enumerate(parts)])
  weight = jnp.concatenate([part.weight for part in parts])
  return jnp.concatenate([part.images for part in parts]), (partner, weight)


def describe(drawn: Drawn, size: tuple[int, int]) -> tuple[list[str], list[str]]:
  """For people: the geometry and the photometry of each image, such as `crop +2 -1, mirrored, rotate -12.5`.

  Args:
    size: (height, width) of the source image. Empty strings where nothing happened.
  """
  n = len(drawn.boxes)
  drawn = jax.device_get(drawn)
  moved, recolored = _plan_words(drawn.plan, n)
  affine = _ordered(drawn.affine, AFFINE)
  geometry = [_box_words(box, size) + _words(affine, i) + moved[i] for i, box in enumerate(drawn.boxes)]
  first, last = (_ordered(drawn.photometry, names) for names in (PHOTOMETRY[:2], PHOTOMETRY[2:]))
  colors = [_words(first, i) + recolored[i] + _words(last, i) for i in range(n)]
  return [", ".join(x) for x in geometry], [", ".join(x) for x in colors]


def _ordered(drawn: dict[str, Array], names: tuple[str, ...]) -> dict[str, Array]:
  """In order of application: a jitted program hands dictionaries over in alphabetical order."""
  return {name: drawn[name] for name in names if name in drawn}


def _plan_words(plan: Plan | None, n: int) -> tuple[list[list[str]], list[list[str]]]:
  """A plan's geometric and photometric operations, apart."""
  if plan is None:
    return [[]] * n, [[]] * n
  geometric = np.isin(plan.ops, [ID[name] for name in policies.GEOMETRIC])

  def words(keep):
    lines = policies.describe(dataclasses.replace(plan, ops=jnp.where(keep, plan.ops, 0)))
    return [[] if line == "identity" else [line] for line in lines]

  return words(geometric), words(~geometric)


def _box_words(box, size: tuple[int, int]) -> list[str]:
  top, left, height, width, mirrored = (float(x) for x in box)
  words = ["mirrored"] if mirrored else []
  if (height, width) != tuple(map(float, size)):
    return [f"crop {height:.1f}x{width:.1f} at {top:.1f} {left:.1f}", *words]
  return [f"crop {top:+g} {left:+g}", *words] if top or left else words


def _words(drawn: dict[str, Array], i: int) -> list[str]:
  words = []
  for name, values in drawn.items():
    value = values[i]
    if name in ("grayscale", "solarize"):
      words += [name] if value else []
    elif name in ("erase", "cutout"):
      words += [f"{name} {value[2]}x{value[3]} at {value[0]} {value[1]}"] if value[2] else []
    elif name == "translate":
      words += [f"translate {value[0] + 0:+g} {value[1] + 0:+g}"] if value.any() else []  # -0 becomes 0
    elif name in FACTORS:
      words += [f"{name} ×{value:.3g}"] if value != 1 else []
    elif value:
      words.append(f"{name} {value:.3g}")
  return words
