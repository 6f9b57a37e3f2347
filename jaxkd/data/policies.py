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
from jaxtyping import Array, Float, Int, UInt

from jaxkd.data import operations, packing
from jaxkd.data.fusion import apart
from jaxkd.errors import did_you_mean

SHARD = 64
BINS = 31  # magnitudes of RandAugment and TrivialAugment: 0 (weakest) to 30
GRID = 1024  # steps of the random offset between two points, a power of two: probabilities are exact to 2^-17

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
  groups = _groups(policy, count, magnitude)
  n, stages = len(groups), sum(group.ops.shape[1] for group in groups)
  random = _words(key, positions, 2 * (n + stages))
  drawn = []
  for i, group in enumerate(groups):
    points = _shard_points(random[:, i], random[:, n + i]) if stratified else random[:, i] % (SHARD * GRID)
    category = (points.astype(jnp.int32)[:, None] >= jnp.asarray(group.bounds)[None]).sum(axis=1)
    drawn.append((jnp.asarray(group.ops)[category], jnp.asarray(group.bins)[category]))
  ops, bins = (jnp.concatenate(x, axis=1) for x in zip(*drawn, strict=True))
  magnitudes = _look_up(policy, size, ops, bins, _fractions(random[:, 2 * n :]))
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
    for a, b in ((1, 1), (1, 0), (0, 1), (0, 0)):
      shares.append((p if a else 1 - p) * (q if b else 1 - q) / len(table))
      ops.append([ID[first] * a, ID[second] * b])
      bins.append([first_bin, second_bin])
  pairs = np.array(ops, np.int32)
  order = np.lexsort(pairs.T[::-1])  # equal operations side by side: their number varies least
  kept = np.where(np.isin(pairs, [ID[name] for name in GEOMETRIC]), 0, pairs) if color_only else pairs
  return _Group(_bounds(np.array(shares)[order]), kept[order], np.array(bins, np.int32)[order])


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


def _shard_points(order: UInt[Array, " b"], offsets: UInt[Array, " b"]) -> UInt[Array, " b"]:
  """Systematic sampling: 64 equidistant points with one offset, dealt out to the shard's images."""
  ranks = jnp.argsort(order.reshape(-1, SHARD), axis=1).astype(jnp.uint32)
  return (ranks * GRID + offsets[::SHARD, None] % GRID).reshape(-1)


def _words(key: Array, positions: Int[Array, " b"], count: int) -> UInt[Array, "b {count}"]:
  """`count` random words for each example, whatever the batch it is computed in."""
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, positions)
  return jax.vmap(lambda k: jax.random.bits(k, (count,)))(keys)


def _fractions(words: UInt[Array, "b n"]) -> Float[Array, "b n"]:
  """Numbers in [0, 1) in steps of 2^-24."""
  return (words >> 8).astype(jnp.float32) * 2**-24


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


def apply_photometry(images: UInt[Array, "b h w c"], plan: Plan) -> UInt[Array, "b h w c"]:
  """The photometric operations of the plan, stage by stage; geometric ones and the identity change nothing here.

  Args:
    images: uint8, or packed (`packing.pack`); so is the result.
  """
  return (_apply_sliced if plan.sliced else _apply_masked)(images, plan)


def _apply_masked(images, plan: Plan) -> UInt[Array, "b h w c"]:
  for stage, capacity in enumerate(plan.capacity):
    ops, magnitudes = plan.ops[:, stage], plan.magnitudes[:, stage]
    source = images
    for name in PHOTOMETRIC:
      if capacity[ID[name]]:
        hit = (ops == ID[name])[:, None, None, None]
        images = jnp.where(hit, OPERATIONS[name](source, magnitudes), images)
  return images


def _apply_sliced(images, plan: Plan) -> UInt[Array, "b h w c"]:
  """Each stage takes the newest version of its images, operation by operation, and keeps the results beside them;
  `place` says where the newest version of an image is. (Each operation reads from and writes to a buffer of its own, so
  that none waits for another and its pixels lie together; joined they are as packed pixels, which is a copy.)"""
  packed = packing.pack(images)
  shards = packed.shape[0] // SHARD
  ops, magnitudes = (x.reshape(shards, SHARD, -1) for x in (plan.ops, plan.magnitudes))
  place = jnp.broadcast_to(jnp.arange(SHARD, dtype=jnp.int32)[None], (shards, SHARD))
  versions = [packed.reshape(shards, SHARD, *packed.shape[1:3])]
  for stage, capacity in enumerate(plan.capacity):
    names = [name for name in PHOTOMETRIC if capacity[ID[name]]]
    slot, start = _slots(ops[:, :, stage], names, capacity)
    chosen = _chosen(slot, start[-1])
    strengths = _parts(_take(magnitudes[:, :, stage], chosen), start)
    taken = apart(_newest_of_each, versions, _parts(_take(place, chosen), start))
    jobs = zip(names, taken, strengths, strict=True)
    done = [apart(functools.partial(_merged, OPERATIONS[name]), *operands) for name, *operands in jobs]
    place = jnp.where(slot >= 0, sum(x.shape[1] for x in versions) + slot, place)
    versions.append(jnp.concatenate(done, axis=1))
  result = apart(_newest, versions, place).reshape(packed.shape)
  return result if images.dtype == jnp.uint32 else packing.unpack(result)


def _parts(x, start: list[int]) -> list[Array]:
  """Columns of x [shards n] for each operation."""
  return [x[:, a:b] for a, b in itertools.pairwise(start)]


def _merged(operation: Callable, images, magnitudes) -> UInt[Array, "shards n h w"]:
  flat = operation(images.reshape(-1, *images.shape[2:], 1), magnitudes.reshape(-1))
  return flat.reshape(images.shape)


def _slots(ops, names: list[str], capacity) -> tuple[Int[Array, "shards 64"], list[int]]:
  """Where each image goes among the slices (-1: nowhere), and where the slices start."""
  start = [0, *itertools.accumulate(capacity[ID[name]] for name in names)]
  hit = ops[:, :, None] == jnp.array([ID[name] for name in names], jnp.int32)[None, None]
  earlier = jnp.tri(SHARD, k=-1, dtype=jnp.float32)
  rank = jnp.einsum("ik,skn->sin", earlier, hit.astype(jnp.float32)).astype(jnp.int32)
  slot = jnp.array(start[:-1], jnp.int32)[None, None] + rank
  return jnp.where(hit, slot + 1, 0).sum(axis=2) - 1, start


def _chosen(slot: Int[Array, "shards 64"], slots: int) -> Int[Array, "shards {slots}"]:
  """The image in each slot; unused ones take image 0."""
  here = slot[:, None, :] == jnp.arange(slots, dtype=jnp.int32)[None, :, None]
  return jnp.where(here, jnp.arange(SHARD, dtype=jnp.int32)[None, None], 0).sum(axis=2)


def _newest(versions, place: Int[Array, "shards n"]) -> UInt[Array, "shards n h w"]:
  """The images at `place` in all `versions` one after the other."""
  newest, start = _take(versions[0], place), versions[0].shape[1]
  for version in versions[1:]:
    newest = jnp.where((place >= start)[..., None, None], _take(version, place - start), newest)
    start += version.shape[1]
  return newest


def _newest_of_each(versions, places: list[Array]) -> list[Array]:
  return [_newest(versions, place) for place in places]


def _take(x, index) -> Array:
  """x[s, index[s, i]] for every shard s."""
  return jax.vmap(lambda a, i: jnp.take(a, i, axis=0, mode="clip"))(x, index)


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
