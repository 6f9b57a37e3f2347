"""Accuracy when the picture is cut up: patches in other places, or patches missing; and which cue a decision follows.

A model that lives on local texture hardly minds patches that trade places; one that needs the arrangement does.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxkd.analysis.statistics import Interval, wilson
from jaxkd.analysis.streaming import map_batches, taps_of


class Robustness(NamedTuple):
  """Accuracy with Wilson's interval when `moved` of the patches of `patch` pixels were disturbed."""

  patch: int
  share: float
  moved: int
  accuracy: Interval


class CueConflict(NamedTuple):
  """Decisions on images whose two cues say different classes.

  Attributes:
    global_share: among decisions that follow either cue, the share that follow the global one, with Wilson's interval;
      NaN in [0, 1] of 0 decisions where none does.
    follow_global, follow_local, neither: numbers of images.
  """

  global_share: Interval
  follow_global: int
  follow_local: int
  neither: int


def shuffle_patches(
  images: Float[Array, "b h w c"],
  index: Int[Array, " b"],
  moved: Int[Array, ""] | int,
  *,
  key: Array,
  patch: int,
) -> Float[Array, "b h w c"]:
  """Images of which `moved` random patches trade places in a ring, so that each of them moves (1 moves nothing).

  Which ones is a function of `key` and the image's `index` alone, and a larger `moved` moves the same ones and more.

  Raises:
    ValueError: the patch does not divide the image.
  """
  x = _cut(images, patch)

  def one(tiles: Float[Array, "n d"], i: Array) -> Float[Array, "n d"]:
    order = jax.random.permutation(jax.random.fold_in(key, i), tiles.shape[0])
    rank = jnp.arange(tiles.shape[0])
    source = jnp.where(rank < moved, jnp.where(rank + 1 < moved, rank + 1, 0), rank)
    return jnp.zeros_like(tiles).at[order].set(tiles[order[source]])

  return _join(jax.vmap(one)(x, index), images.shape, patch)


def occlude_patches(
  images: Float[Array, "b h w c"],
  index: Int[Array, " b"],
  hidden: Int[Array, ""] | int,
  *,
  key: Array,
  patch: int,
) -> Float[Array, "b h w c"]:
  """Images of which `hidden` random patches are 0, the mean colour of normalised images. See `shuffle_patches`."""
  x = _cut(images, patch)

  def one(tiles: Float[Array, "n d"], i: Array) -> Float[Array, "n d"]:
    order = jax.random.permutation(jax.random.fold_in(key, i), tiles.shape[0])
    keep = jnp.zeros(tiles.shape[0], bool).at[order].set(jnp.arange(tiles.shape[0]) >= hidden)
    return jnp.where(keep[:, None], tiles, jnp.zeros_like(tiles))

  return _join(jax.vmap(one)(x, index), images.shape, patch)


DISTURBANCES = {"shuffle": shuffle_patches, "occlude": occlude_patches}


def robustness_curve(
  model: nn.Module,
  variables: Any,
  images: Float[Array, "b h w c"],
  labels: Int[np.ndarray, " b"],
  *,
  disturbance: str,
  patches: Sequence[int],
  shares: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
  key: Array,
  batch_size: int = 256,
) -> list[Robustness]:
  """Accuracy of the cls logits against the share of patches disturbed, for several patch sizes.

  All models see the same disturbed images under one key. Compiles once per patch size. The patch sizes are those of
  the disturbance: a transformer whose own patches are as large sees its tokens trade places, unharmed inside.

  Args:
    images: normalised as the model expects, so that 0 is the mean colour.
    disturbance: "shuffle" or "occlude".
    shares: of the patches, in [0, 1]; rounded to whole patches.

  Raises:
    ValueError: an unknown disturbance, a patch that does not divide the images, a share outside [0, 1], labels of
      another length, or a model without classifier.

  Source: Naseer et al. (NeurIPS 2021, arXiv:2105.10497).
  """
  _check(model, images, labels, disturbance, patches, shares)
  found = []
  for patch in patches:
    count = (images.shape[1] // patch) * (images.shape[2] // patch)
    for share in shares:
      moved = round(share * count)
      function = partial(
        _disturbed_decisions, model, variables, key, jnp.int32(moved), disturbance=disturbance, patch=patch
      )
      decided = map_batches(function, images, np.arange(len(images)), batch_size=batch_size)
      accuracy = wilson(int((decided == labels).sum()), len(labels))
      found.append(Robustness(patch, share, moved, accuracy))
  return found


@partial(jax.jit, static_argnames=("model", "disturbance", "patch"))
def _disturbed_decisions(
  model: nn.Module,
  variables: Any,
  key: Array,
  moved: Array,
  images: Array,
  index: Array,
  *,
  disturbance: str,
  patch: int,
) -> Int[Array, " b"]:
  x = DISTURBANCES[disturbance](images, index, moved, key=key, patch=patch)
  return _classes(model, variables, x)


def _classes(model: nn.Module, variables: Any, images: Array) -> Int[Array, " b"]:
  return taps_of(model, variables, images)["logits/cls"].argmax(axis=-1)


_decisions = partial(jax.jit, static_argnames="model")(_classes)


def cue_conflict(
  model: nn.Module,
  variables: Any,
  images: Float[Array, "b h w c"],
  global_labels: Int[np.ndarray, " b"],
  local_labels: Int[np.ndarray, " b"],
  *,
  batch_size: int = 256,
) -> CueConflict:
  """Whether the cls logits follow the global or the local cue where the two disagree.

  `jaxkd.data.shapes.cue_conflict` makes such images; normalise them as the model expects.

  Raises:
    ValueError: labels of other lengths or equal for some image, or a model without classifier.

  Source: Geirhos et al. (ICLR 2019, arXiv:1811.12231), with arrangement against texture for shape against texture.
  """
  _check_classifies(model)
  decided = map_batches(partial(_decisions, model, variables), images, batch_size=batch_size)
  return cue_conflict_score(decided, global_labels, local_labels)


def cue_conflict_score(
  decided: Int[np.ndarray, " b"], global_labels: Int[np.ndarray, " b"], local_labels: Int[np.ndarray, " b"]
) -> CueConflict:
  """The counts and the share behind `cue_conflict`, from decisions.

  Raises:
    ValueError: lengths differ, or the two cues agree on some image.
  """
  if not decided.shape == global_labels.shape == local_labels.shape or decided.ndim != 1:
    raise ValueError(
      f"decisions {decided.shape}, labels {global_labels.shape} and {local_labels.shape} differ"
    )
  if agreeing := int((global_labels == local_labels).sum()):
    raise ValueError(
      f"the two cues agree on {agreeing} of {len(decided)} images; a conflict needs two classes"
    )
  follow_global, follow_local = (int((decided == x).sum()) for x in (global_labels, local_labels))
  either = follow_global + follow_local
  share = wilson(follow_global, either) if either else Interval(float("nan"), 0.0, 1.0, float("nan"), 0)
  return CueConflict(share, follow_global, follow_local, len(decided) - either)


def _cut(images: Float[Array, "b h w c"], patch: int) -> Float[Array, "b n d"]:
  b, h, w, c = images.shape
  _check_patch((h, w), patch)
  x = images.reshape(b, h // patch, patch, w // patch, patch, c).swapaxes(2, 3)
  return x.reshape(b, -1, patch * patch * c)


def _join(tiles: Float[Array, "b n d"], shape: tuple[int, ...], patch: int) -> Float[Array, "b h w c"]:
  b, h, w, c = shape
  return tiles.reshape(b, h // patch, w // patch, patch, patch, c).swapaxes(2, 3).reshape(shape)


def _check_patch(size: tuple[int, ...], patch: int) -> None:
  if patch < 1 or size[0] % patch or size[1] % patch:
    raise ValueError(f"patches of {patch} pixels do not divide images of {size[0]}x{size[1]}")


def _check(
  model: nn.Module,
  images: Array,
  labels: np.ndarray,
  disturbance: str,
  patches: Sequence[int],
  shares: Sequence[float],
) -> None:
  _check_classifies(model)
  if disturbance not in DISTURBANCES:
    raise ValueError(f"disturbance = {disturbance!r}; known: {', '.join(DISTURBANCES)}")
  for patch in patches:
    _check_patch(images.shape[1:3], patch)
  if not patches or not shares or not all(0 <= s <= 1 for s in shares):
    raise ValueError(f"patches {patches} and shares {shares}: at least one of each, shares in [0, 1]")
  if np.shape(labels) != (len(images),):
    raise ValueError(f"labels {np.shape(labels)} do not fit {len(images)} images")


def _check_classifies(model: nn.Module) -> None:
  if not model.num_classes:
    raise ValueError(f"{type(model).__name__} has no classifier (num_classes=0), so it decides nothing")
