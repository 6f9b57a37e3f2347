"""AutoAugment, RandAugment and TrivialAugment on batches, at the cost of about one operation per image and stage.

`draw` makes a plan, `geometry_matrices` and `apply_photometry` carry it out:

    plan = draw("autoaugment", key, positions, size=(32, 32))
    aligned = operations.affine(images, geometry_matrices(plan, (32, 32)))   # both branches
    student = apply_photometry(aligned, plan)                                # the student only

Two deliberate differences from the papers, both because student and teacher share one geometry: an image's geometric
operations come before its photometric ones, and they are one resampling instead of one each.

Slices. A shard is 64 consecutive examples of the global batch. Which operation its images get is drawn by systematic
sampling (one random offset, 64 equidistant points through the cumulated probabilities) and dealt out by a random
permutation: every image has exactly the policy's probabilities and all images of a shard are exchangeable, but the
number of images per operation hardly varies. So each operation runs on a slice of fixed length, and
not on the whole batch under a mask. A plan depends on (key, position in the global batch) alone.
On devices that hold broken shards slices still give the same images, but exchange them: draw with `stratified=False`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, UInt8

from jaxkd.data import operations
from jaxkd.errors import did_you_mean

SHARD = 64
BINS = 31  # magnitudes of RandAugment and TrivialAugment: 0 (weakest) to 30
GRID = (
  1024  # (a power of two) steps of the random offset between two points: probabilities are exact to 2^-17
)

GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
OPERATIONS: dict[str, Callable] = {  # all take (images, magnitude); enhancement magnitudes are factor - 1
  "brightness": lambda x, m: operations.brightness(x, 1 + m),
  "color": lambda x, m: operations.color(x, 1 + m),
  "contrast": lambda x, m: operations.contrast(x, 1 + m),
  "sharpness": lambda x, m: operations.sharpness(x, 1 + m),
  "posterize": operations.posterize,
  "solarize": operations.solarize,
  "autocontrast": lambda x, m: operations.autocontrast(x),
  "equalize": lambda x, m: operations.equalize(x),
  "invert": lambda x, m: operations.invert(x),
}
PHOTOMETRIC = tuple(OPERATIONS)
NAMES = ("identity", *GEOMETRIC, *PHOTOMETRIC)  # the index is an operation's id in a plan
ID = {name: i for i, name in enumerate(NAMES)}
SIGNED = np.array([name in (*GEOMETRIC, "brightness", "color", "contrast", "sharpness") for name in NAMES])

# Sub-policies of Cubuk et al. (CVPR 2019, arXiv:1805.09501): (operation, probability, magnitude bin 0-9), twice.
CIFAR10 = (
  ("invert", 0.1, 0, "contrast", 0.2, 6),
  ("rotate", 0.7, 2, "translate_x", 0.3, 9),
  ("sharpness", 0.8, 1, "sharpness", 0.9, 3),
  ("shear_y", 0.5, 8, "translate_y", 0.7, 9),
  ("autocontrast", 0.5, 0, "equalize", 0.9, 0),
  ("shear_y", 0.2, 7, "posterize", 0.3, 7),
  ("color", 0.4, 3, "brightness", 0.6, 7),
  ("sharpness", 0.3, 9, "brightness", 0.7, 9),
  ("equalize", 0.6, 0, "equalize", 0.5, 0),
  ("contrast", 0.6, 7, "sharpness", 0.6, 5),
  ("color", 0.7, 7, "translate_x", 0.5, 8),
  ("equalize", 0.3, 0, "autocontrast", 0.4, 0),
  ("translate_y", 0.4, 3, "sharpness", 0.2, 6),
  ("brightness", 0.9, 6, "color", 0.2, 8),
  ("solarize", 0.5, 2, "invert", 0.0, 0),
  ("equalize", 0.2, 0, "autocontrast", 0.6, 0),
  ("equalize", 0.2, 0, "equalize", 0.6, 0),
  ("color", 0.9, 9, "equalize", 0.6, 0),
  ("autocontrast", 0.8, 0, "solarize", 0.2, 8),
  ("brightness", 0.1, 3, "color", 0.7, 0),
  ("solarize", 0.4, 5, "autocontrast", 0.9, 0),
  ("translate_y", 0.9, 9, "translate_y", 0.7, 9),
  ("autocontrast", 0.9, 0, "solarize", 0.8, 3),
  ("equalize", 0.8, 0, "invert", 0.1, 0),
  ("translate_y", 0.7, 9, "autocontrast", 0.9, 0),
)
SVHN = (
  ("shear_x", 0.9, 4, "invert", 0.2, 0),
  ("shear_y", 0.9, 8, "invert", 0.7, 0),
  ("equalize", 0.6, 0, "solarize", 0.6, 6),
  ("invert", 0.9, 0, "equalize", 0.6, 0),
  ("equalize", 0.6, 0, "rotate", 0.9, 3),
  ("shear_x", 0.9, 4, "autocontrast", 0.8, 0),
  ("shear_y", 0.9, 8, "invert", 0.4, 0),
  ("shear_y", 0.9, 5, "solarize", 0.2, 6),
  ("invert", 0.9, 0, "autocontrast", 0.8, 0),
  ("equalize", 0.6, 0, "rotate", 0.9, 3),
  ("shear_x", 0.9, 4, "solarize", 0.3, 3),
  ("shear_y", 0.8, 8, "invert", 0.7, 0),
  ("equalize", 0.9, 0, "translate_y", 0.6, 6),
  ("invert", 0.9, 0, "equalize", 0.6, 0),
  ("contrast", 0.3, 3, "rotate", 0.8, 4),
  ("invert", 0.8, 0, "translate_y", 0.0, 2),
  ("shear_y", 0.7, 6, "solarize", 0.4, 8),
  ("invert", 0.6, 0, "rotate", 0.8, 4),
  ("shear_y", 0.3, 7, "translate_x", 0.9, 3),
  ("shear_x", 0.1, 6, "invert", 0.6, 0),
  ("solarize", 0.7, 2, "translate_y", 0.6, 7),
  ("shear_y", 0.8, 4, "invert", 0.8, 0),
  ("shear_x", 0.7, 9, "translate_y", 0.8, 3),
  ("shear_y", 0.8, 5, "autocontrast", 0.7, 0),
  ("shear_x", 0.7, 2, "invert", 0.1, 0),
)
IMAGENET = (
  ("posterize", 0.4, 8, "rotate", 0.6, 9),
  ("solarize", 0.6, 5, "autocontrast", 0.6, 0),
  ("equalize", 0.8, 0, "equalize", 0.6, 0),
  ("posterize", 0.6, 7, "posterize", 0.6, 6),
  ("equalize", 0.4, 0, "solarize", 0.2, 4),
  ("equalize", 0.4, 0, "rotate", 0.8, 8),
  ("solarize", 0.6, 3, "equalize", 0.6, 0),
  ("posterize", 0.8, 5, "equalize", 1.0, 0),
  ("rotate", 0.2, 3, "solarize", 0.6, 8),
  ("equalize", 0.6, 0, "posterize", 0.4, 6),
  ("rotate", 0.8, 8, "color", 0.4, 0),
  ("rotate", 0.4, 9, "equalize", 0.6, 0),
  ("equalize", 0.0, 0, "equalize", 0.8, 0),
  ("invert", 0.6, 0, "equalize", 1.0, 0),
  ("color", 0.6, 4, "contrast", 1.0, 8),
  ("rotate", 0.8, 8, "color", 1.0, 2),
  ("color", 0.8, 8, "solarize", 0.8, 7),
  ("sharpness", 0.4, 7, "invert", 0.6, 0),
  ("shear_x", 0.6, 5, "equalize", 1.0, 0),
  ("color", 0.4, 0, "equalize", 0.6, 0),
  ("equalize", 0.4, 0, "solarize", 0.2, 4),
  ("solarize", 0.6, 5, "autocontrast", 0.6, 0),
  ("invert", 0.6, 0, "equalize", 1.0, 0),
  ("color", 0.6, 4, "contrast", 1.0, 8),
  ("equalize", 0.8, 0, "equalize", 0.6, 0),
)
AUTOAUGMENT = {"autoaugment": CIFAR10, "autoaugment_svhn": SVHN, "autoaugment_imagenet": IMAGENET}
FULL = (*AUTOAUGMENT, "randaugment", "trivialaugment")
# Photometric only: AutoAugment's geometric operations become the identity, the others draw from what remains.
POLICIES = (*FULL, *(f"{name}_color" for name in FULL))


@struct.dataclass
class Plan:
  """What happens to each image: `stages` operations, the geometric ones of them before the photometric ones.

  Attributes:
    ops: ids into `NAMES`, int32 [b stages].
    magnitudes: float32 [b stages], signed: shear as a slope, translation in whole pixels, rotation in degrees,
      enhancement as factor - 1, posterize as bits kept, solarize as threshold; meaningless elsewhere.
    capacity: for each stage and id, the most images of a shard that can get it (0: never drawn).
    sliced: whether the batch consists of whole shards drawn within these capacities.
  """

  ops: Int[Array, "b stages"]
  magnitudes: Float[Array, "b stages"]
  capacity: tuple[tuple[int, ...], ...] = struct.field(pytree_node=False)
  sliced: bool = struct.field(pytree_node=False)


class _Group(NamedTuple):
  """Stages drawn together: category j, whose points end at bounds[j], means operation ops[j, s] in stage s."""

  bounds: np.ndarray  # [j], cumulated, in units of 1 / (SHARD * GRID)
  ops: np.ndarray  # [j, stages]
  bins: np.ndarray  # [j, stages]; -1 is a random bin


def draw(
  policy: str,
  key: Array,
  positions: Int[Array, " b"],
  *,
  size: tuple[int, int],
  count: int = 2,
  magnitude: int = 9,
  stratified: bool | None = None,
) -> Plan:
  """Which operations each image gets, as a pure function of (key, position).

  Magnitude ranges are torchvision's. AutoAugment: 10 bins. RandAugment (Cubuk et al., 2020, arXiv:1909.13719): `count`
  operations of 14, all at bin `magnitude` of 0-30. TrivialAugment Wide (Müller and Hutter, ICCV 2021,
  arXiv:2103.10158): one operation of 14 at a random bin.

  Args:
    policy: a name of `POLICIES`.
    key: PRNG key of this step (the same on every process).
    positions: each example's index in the global batch; with `stratified` whole shards of 64 in ascending order.
    size: (height, width), to which translations are relative. count, magnitude: RandAugment only.
    stratified: draw by shards and apply by slices; by default when b is a multiple of 64. Otherwise each image is drawn
      independently, with the same probabilities, and every operation runs on the whole batch under a mask.

  Raises:
    ValueError: unknown policy; count or magnitude out of range; `stratified` with a batch of broken shards.
  """
  _check(policy, count, magnitude)
  if stratified is None:
    stratified = positions.shape[0] % SHARD == 0
  if stratified and positions.shape[0] % SHARD:
    raise ValueError(
      f"a stratified plan needs whole shards of {SHARD} examples, got {positions.shape[0]}; use stratified=False"
    )
  k_points, k_values = jax.random.split(key)
  drawn = []
  for i, group in enumerate(_groups(policy, count, magnitude)):
    points = (_shard_points if stratified else _free_points)(jax.random.fold_in(k_points, i), positions)
    category = (points[:, None] >= jnp.asarray(group.bounds)[None]).sum(axis=1)
    drawn.append((jnp.asarray(group.ops)[category], jnp.asarray(group.bins)[category]))
  ops, bins = (jnp.concatenate(x, axis=1) for x in zip(*drawn, strict=True))
  magnitudes = _look_up(policy, size, ops, bins, uniforms(k_values, positions, 2 * ops.shape[1]))
  return Plan(ops, magnitudes, capacity=_capacity(policy, count, magnitude), sliced=stratified)


def _check(policy: str, count: int, magnitude: int) -> None:
  if policy not in POLICIES:
    raise ValueError(f"unknown policy {policy!r}; {did_you_mean(policy, POLICIES)}")
  if count < 1 or not 0 <= magnitude < BINS:
    raise ValueError(
      f"RandAugment of {count} operations at magnitude {magnitude}: needs 1 or more, and 0 to {BINS - 1}"
    )


@functools.lru_cache
def _groups(policy: str, count: int, magnitude: int) -> tuple[_Group, ...]:
  family = policy.removesuffix("_color")
  if family in AUTOAUGMENT:
    return (_autoaugment(AUTOAUGMENT[family], policy != family),)
  names = ("identity", *(GEOMETRIC if policy == family else ()), *PHOTOMETRIC[:-1])  # neither of them inverts
  ops = np.array([[ID[name]] for name in names], np.int32)
  bins = np.full_like(ops, magnitude if family == "randaugment" else -1)
  group = _Group(_bounds(np.full(len(names), 1 / len(names))), ops, bins)
  return (group,) * (count if family == "randaugment" else 1)


def _autoaugment(table, color_only: bool) -> _Group:
  """Four categories for each sub-policy: both of its operations, one of them, or none."""
  shares, ops, bins = [], [], []
  for first, p, first_bin, second, q, second_bin in table:
    pair = [ID["identity" if color_only and name in GEOMETRIC else name] for name in (first, second)]
    for a, b in ((1, 1), (1, 0), (0, 1), (0, 0)):
      shares.append((p if a else 1 - p) * (q if b else 1 - q) / len(table))
      ops.append([pair[0] * a, pair[1] * b])
      bins.append([first_bin, second_bin])
  return _Group(_bounds(np.array(shares)), np.array(ops, np.int32), np.array(bins, np.int32))


def _bounds(shares: np.ndarray) -> np.ndarray:
  bounds = np.rint(np.cumsum(shares) * SHARD * GRID).astype(np.int32)
  return np.append(bounds[:-1], SHARD * GRID).astype(np.int32)


@functools.lru_cache
def _capacity(policy: str, count: int, magnitude: int) -> tuple[tuple[int, ...], ...]:
  """The largest number of images per shard for each stage and operation, over all offsets there are."""
  points = np.arange(SHARD)[None] * GRID + np.arange(GRID)[:, None]
  capacity = []
  for group in _groups(policy, count, magnitude):
    drawn = group.ops[np.searchsorted(group.bounds, points, side="right")]  # [offset slot stage]
    for stage in np.moveaxis(drawn, 2, 0):
      capacity.append(tuple(int((stage == op).sum(axis=1).max()) for op in range(len(NAMES))))
  return tuple(capacity)


def _shard_points(key: Array, positions) -> Int[Array, " b"]:
  """Systematic sampling: 64 equidistant points with one offset, dealt out to the shard's images."""

  def points(shard):
    random = jax.random.bits(jax.random.fold_in(key, shard), (SHARD + 1,))
    return jnp.argsort(random[1:]).astype(jnp.int32) * GRID + (random[0] % GRID).astype(jnp.int32)

  return jax.vmap(points)(positions[::SHARD] // SHARD).reshape(-1)


def _free_points(key: Array, positions) -> Int[Array, " b"]:
  random = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i)))(positions)
  return (random % (SHARD * GRID)).astype(jnp.int32)  # a power of two, so all points are equally likely


def uniforms(key: Array, positions: Int[Array, " b"], count: int) -> Float[Array, "b {count}"]:
  """`count` numbers in [0, 1) for each example, whatever the batch it is computed in."""
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, positions)
  return jax.vmap(lambda k: jax.random.uniform(k, (count,)))(keys)


def _look_up(policy: str, size, ops, bins, random) -> Float[Array, "b stages"]:
  sign, which = jnp.split(random, 2, axis=1)
  bins = jnp.where(bins < 0, (which * BINS).astype(jnp.int32), bins)
  value = jnp.asarray(_magnitudes(policy, size))[ops, bins]
  return jnp.where(jnp.asarray(SIGNED)[ops] & (sign < 0.5), -value, value)


def _magnitudes(policy: str, size: tuple[int, int]) -> Float[np.ndarray, "ops bins"]:
  """torchvision's ranges; translations are cut to whole pixels there too."""
  wide = policy.startswith("trivial")
  steps = np.linspace(0, 1, 10 if policy.startswith("auto") else BINS)
  across, down = (32, 32) if wide else (150 / 331 * size[1], 150 / 331 * size[0])
  top = dict(shear_x=0.99, shear_y=0.99, rotate=135) if wide else dict(shear_x=0.3, shear_y=0.3, rotate=30)
  top |= dict.fromkeys(("brightness", "color", "contrast", "sharpness"), 0.99 if wide else 0.9)
  table = np.zeros((len(NAMES), len(steps)), np.float32)
  for name, value in top.items():
    table[ID[name]] = value * steps
  for name, pixels in (("translate_x", across), ("translate_y", down)):
    table[ID[name]] = np.trunc(pixels * steps + 1e-6)
  table[ID["posterize"]] = 8 - np.round(steps * (6 if wide else 4))
  table[ID["solarize"]] = 255 * (1 - steps)
  return table


def geometry_matrices(plan: Plan, size: tuple[int, int]) -> Float[Array, "b 2 3"]:
  """All geometric operations of each image as one matrix for `operations.affine`; the identity where there are none."""
  stages = []
  for stage in range(plan.ops.shape[1]):
    amount = {n: jnp.where(plan.ops[:, stage] == ID[n], plan.magnitudes[:, stage], 0.0) for n in GEOMETRIC}
    moved = operations.compose(
      operations.shear_matrices(amount["shear_x"], amount["shear_y"]),
      operations.translate_matrices(amount["translate_x"], amount["translate_y"]),
    )
    stages.append(operations.compose(moved, operations.rotate_matrices(amount["rotate"], size)))
  return functools.reduce(operations.compose, stages)


def apply_photometry(images: UInt8[Array, "b h w c"], plan: Plan) -> UInt8[Array, "b h w c"]:
  """The photometric operations of the plan, stage by stage; geometric ones and the identity change nothing here."""
  return (_apply_sliced if plan.sliced else _apply_masked)(images, plan)


def _apply_masked(images, plan: Plan) -> UInt8[Array, "b h w c"]:
  for stage, capacity in enumerate(plan.capacity):
    ops, magnitudes = plan.ops[:, stage], plan.magnitudes[:, stage]
    source = images
    for name in PHOTOMETRIC:
      if capacity[ID[name]]:
        hit = (ops == ID[name])[:, None, None, None]
        images = jnp.where(hit, OPERATIONS[name](source, magnitudes), images)
  return images


def _apply_sliced(images, plan: Plan) -> UInt8[Array, "b h w c"]:
  """Results of each stage are written behind the images into one buffer; `place` says where the newest version of an
  image is in it. (Written in place: concatenated, each part would be computed again by all who read it.)"""
  shards = images.shape[0] // SHARD
  ops, magnitudes = (x.reshape(shards, SHARD, -1) for x in (plan.ops, plan.magnitudes))
  names = [[name for name in PHOTOMETRIC if capacity[ID[name]]] for capacity in plan.capacity]
  slices = sum(
    capacity[ID[name]] for stage, capacity in zip(names, plan.capacity, strict=True) for name in stage
  )
  place = jnp.broadcast_to(jnp.arange(SHARD, dtype=jnp.int32)[None], (shards, SHARD))
  pool = jnp.zeros((shards, SHARD + slices, *images.shape[1:]), jnp.uint8)
  pool = _write(pool, images.reshape(shards, SHARD, *images.shape[1:]), 0)
  end = SHARD
  for stage, capacity in enumerate(plan.capacity):
    slot, start = _slots(ops[:, :, stage], names[stage], capacity)
    # Unused slots take image 0.
    chosen = (slot[:, None, :] == jnp.arange(start[-1])[None, :, None]).argmax(axis=2)
    taken = _take(pool, _take(place, chosen))
    strength = _take(magnitudes[:, :, stage], chosen)
    for name, (a, b) in zip(names[stage], itertools.pairwise(start), strict=True):
      pool = _write(pool, _merged(OPERATIONS[name], taken[:, a:b], strength[:, a:b]), end + a)
    place = jnp.where(slot >= 0, end + slot, place)
    end += start[-1]
  return _take(pool, place).reshape(images.shape)


def _write(pool, part, start: int) -> UInt8[Array, "shards n h w c"]:
  return jax.lax.dynamic_update_slice_in_dim(pool, part, start, axis=1)


def _slots(ops, names: list[str], capacity) -> tuple[Int[Array, "shards 64"], list[int]]:
  """Where each image goes among the slices (-1: nowhere), and where the slices start."""
  start = [0]
  slot = jnp.full(ops.shape, -1, jnp.int32)
  for name in names:
    hit = ops == ID[name]
    rank = jnp.cumsum(hit, axis=1, dtype=jnp.int32) - 1
    slot = jnp.where(hit, start[-1] + rank, slot)
    start.append(start[-1] + capacity[ID[name]])
  return slot, start


def _take(x, index) -> Array:
  """x[s, index[s, i]] for every shard s."""
  return jax.vmap(lambda a, i: jnp.take(a, i, axis=0, mode="clip"))(x, index)


def _merged(operation: Callable, images, magnitudes) -> UInt8[Array, "shards n h w c"]:
  flat = operation(images.reshape(-1, *images.shape[2:]), magnitudes.reshape(-1))
  return flat.reshape(images.shape)


def describe(plan: Plan) -> list[str]:
  """For people: each image's operations in the order drawn, such as `rotate -12.5, equalize`; `identity` for none."""
  plain = {ID[n] for n in ("autocontrast", "equalize", "invert")}
  lines = []
  for ops, magnitudes in zip(np.asarray(plan.ops), np.asarray(plan.magnitudes), strict=True):
    drawn = [
      (NAMES[op] if op in plain else f"{NAMES[op]} {m:.3g}")
      for op, m in zip(ops, magnitudes, strict=True)
      if op
    ]
    lines.append(", ".join(drawn) or "identity")
  return lines


def draw_erasing(
  key: Array,
  positions: Int[Array, " b"],
  *,
  size: tuple[int, int],
  probability: float = 0.25,
  area: tuple[float, float] = (0.02, 0.33),
  aspect: tuple[float, float] = (0.3, 3.3),
) -> Int[Array, "b 4"]:
  """Boxes for `operations.erase` (Zhong et al., AAAI 2020, arXiv:1708.04896), empty with 1 - `probability`.

  As torchvision's RandomErasing: the share of the image and the logarithm of height / width are uniform; the first of
  ten tries that is smaller than the image is taken.
  """
  tries = 10
  u = uniforms(key, positions, 2 * tries + 3)
  share = area[0] + (area[1] - area[0]) * u[:, :tries]
  log = jnp.log(aspect[0]) + (jnp.log(aspect[1]) - jnp.log(aspect[0])) * u[:, tries : 2 * tries]
  pixels = size[0] * size[1] * share
  sides = jnp.round(jnp.sqrt(jnp.stack([pixels * jnp.exp(log), pixels * jnp.exp(-log)], axis=-1)))
  fits = (sides < jnp.array(size, jnp.float32)[None, None]).all(axis=-1)
  side = jnp.take_along_axis(sides, fits.argmax(axis=1)[:, None, None], axis=1)[:, 0]
  corner = jnp.floor(u[:, -2:] * (jnp.array(size, jnp.float32)[None] - side + 1))
  wanted = fits.any(axis=1) & (u[:, -3] < probability)
  return jnp.concatenate([corner, jnp.where(wanted[:, None], side, 0)], axis=1).astype(jnp.int32)
