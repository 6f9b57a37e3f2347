"""Heat maps of where a classification comes from, and pictures of feature maps.

- `grad_cam` (Selvaraju et al., ICCV 2017, arXiv:1610.02391): channels of one layer, weighed by the mean gradient of
  the class's logit; for transformers the patch tokens that enter the last block are the map. Not those that leave
  it: no logit depends on them.
- `rollout` (Abnar and Zuidema, ACL 2020, arXiv:2005.00928): attention alone, whatever the class.
- `gradient_attention` (Chefer et al., ICCV 2021, arXiv:2103.15679): attention weighed by the positive part of the
  class's gradient with respect to it, added up along the residual stream, from the cls token.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxkd.analysis.attention import attention_rollout
from jaxkd.analysis.streaming import (
  attends,
  check_attends,
  map_batches,
  patch_grid,
  spatial_map,
  spatial_taps,
  taps_of,
)

METHODS = ("grad_cam", "rollout", "gradient_attention")


def saliency(
  model: nn.Module,
  variables: Any,
  images: Float[Array, "b h w c"],
  *,
  method: str,
  target: int | Int[np.ndarray, " b"] | None = None,
  layer: str | None = None,
  batch_size: int = 32,
) -> Float[np.ndarray, "b h w"]:
  """A heat map in [0, 1] for every image, of the image's size (bilinear), float32.

  Each map is stretched to its own range; one without any contrast is all 0.

  Args:
    images: normalised as the model expects.
    method: one of `METHODS`; `rollout` and `gradient_attention` need a transformer.
    target: the class to explain, for all images or each; None is the class the cls logits name. `rollout` knows none.
    layer: tap for `grad_cam`; None is the last stage, or the tokens that enter the last block.

  Raises:
    ValueError: an unknown method or layer, a method that the model cannot serve, a target that is no class, or no
      images.
  """
  _check(model, images, method, target, layer)
  classes = np.broadcast_to(np.asarray(-1 if target is None else target, np.int32), (len(images),))
  if method == "grad_cam":
    name = layer or _default_layer(model)
    function = partial(_grad_cam, model, variables, layer=name, path=_source(model, variables, images, name))
  else:
    function = partial(
      {"rollout": _rollout, "gradient_attention": _gradient_attention}[method], model, variables
    )
  return map_batches(function, images, classes, batch_size=batch_size)


def _default_layer(model: nn.Module) -> str:
  if attends(model):
    return f"block{model.num_layers - 2:02d}/tokens" if model.num_layers > 1 else "embed/tokens"
  return f"stage{model.num_layers - 1}"


@partial(jax.jit, static_argnames=("model", "layer", "path"))
def _grad_cam(
  model: nn.Module, variables: Any, images: Array, classes: Array, *, layer: str, path: tuple[str, ...]
) -> Float[Array, "b h w"]:
  def logit(added: Array) -> tuple[Array, Array]:
    with nn.intercept_methods(_adding(path, added)):
      taps = taps_of(model, variables, images)
    return _chosen(taps["logits/cls"], classes), taps[layer]

  shape = jax.eval_shape(lambda x: taps_of(model, variables, x)[layer], images)
  gradient, tap = jax.grad(logit, has_aux=True)(jnp.zeros(shape.shape, shape.dtype))
  grid = patch_grid(model, images) if attends(model) else None
  maps, slopes = (spatial_map(x, model.special_tokens, grid).astype(jnp.float32) for x in (tap, gradient))
  weights = slopes.mean(axis=(1, 2))
  return _picture(jax.nn.relu(jnp.einsum("bhwd,bd->bhw", maps, weights, precision="highest")), images)


@partial(jax.jit, static_argnames="model")
def _rollout(model: nn.Module, variables: Any, images: Array, classes: Array) -> Float[Array, "b h w"]:
  del classes
  taps = taps_of(model, variables, images, ("attn",))
  reached = attention_rollout(jnp.stack([taps[name] for name in _map_names(model)]))
  return _cls_picture(model, reached, images)


@partial(jax.jit, static_argnames="model")
def _gradient_attention(
  model: nn.Module, variables: Any, images: Array, classes: Array
) -> Float[Array, "b h w"]:
  def logit(maps: list[Array]) -> tuple[Array, list[Array]]:
    added = {f"block{i:02d}": {"attn": {"maps": x}} for i, x in enumerate(maps)}
    given = {**variables, "perturbations": added}
    taps = taps_of(model, given, images, ("attn",))
    return _chosen(taps["logits/cls"], classes), [taps[name] for name in _map_names(model)]

  shapes = jax.eval_shape(lambda x: taps_of(model, variables, x, ("attn",)), images)
  zeros = [jnp.zeros(shapes[name].shape, jnp.float32) for name in _map_names(model)]
  gradients, maps = jax.grad(logit, has_aux=True)(zeros)
  return _cls_picture(model, gradient_weighted_relevance(maps, gradients), images)


def gradient_weighted_relevance(
  maps: list[Float[Array, "b h n n"]], gradients: list[Float[Array, "b h n n"]]
) -> Float[Array, "b n n"]:
  """Relevance of input token j for output token i: from R = I, `R <- R + mean_h relu(gradient * map) R` per layer."""
  n = maps[0].shape[-1]
  relevance = jnp.broadcast_to(jnp.eye(n, dtype=jnp.float32), (maps[0].shape[0], n, n))
  for attention, gradient in zip(maps, gradients, strict=True):
    weighted = jax.nn.relu(gradient * attention).mean(axis=1)
    relevance = relevance + jnp.matmul(weighted, relevance, precision="highest")
  return relevance


def _map_names(model: nn.Module) -> list[str]:
  return [f"block{i:02d}/attn" for i in range(model.num_layers)]


def _chosen(logits: Float[Array, "b c"], classes: Int[Array, " b"]) -> Float[Array, ""]:
  """Sum over images of the logit of the class asked for, or of the largest one where that is negative."""
  index = jnp.where(classes < 0, logits.argmax(axis=-1).astype(classes.dtype), classes)
  return jnp.take_along_axis(logits, index[:, None], axis=1).sum()


def _cls_picture(model: nn.Module, tokens: Float[Array, "b n n"], images: Array) -> Float[Array, "b h w"]:
  row = tokens[:, 0, model.special_tokens :]
  return _picture(row.reshape(row.shape[0], *patch_grid(model, images)), images)


def _picture(heat: Float[Array, "b y x"], images: Float[Array, "b h w c"]) -> Float[Array, "b h w"]:
  """Heat at the images' size, each map stretched to [0, 1]; contrast below rounding is none."""
  low, high = (f(heat, axis=(1, 2), keepdims=True) for f in (jnp.min, jnp.max))
  flat = high - low <= 1e-5 * jnp.maximum(jnp.abs(high), jnp.abs(low))
  # Stretched before it is resized: bilinear weights keep the range, rounding may not, hence the clip.
  unit = jnp.where(flat, 0.0, (heat - low) / jnp.where(flat, 1.0, high - low))
  return jnp.clip(jax.image.resize(unit, images.shape[:3], method="bilinear"), 0.0, 1.0)


def _adding(path: tuple[str, ...], added: Array) -> Callable[..., Any]:
  """Adds an array to what the module at `path` returns (first of several)."""

  def interceptor(call, args, kwargs, context):
    out = call(*args, **kwargs)
    if context.method_name != "__call__" or context.module.path != path:
      return out
    return (out[0] + added, *out[1:]) if isinstance(out, tuple) else out + added

  return interceptor


def _source(model: nn.Module, variables: Any, images: Array, layer: str) -> tuple[str, ...]:
  """Path of the module that returns the tap `layer`: taps are the very objects that modules return."""
  calls: list[tuple[tuple[str, ...], Any]] = []
  found: list[tuple[str, ...]] = []

  def record(call, args, kwargs, context):
    out = call(*args, **kwargs)
    if context.method_name == "__call__":
      calls.append((context.module.path, out[0] if isinstance(out, tuple) else out))
    return out

  def forward(variables, images):
    with nn.intercept_methods(record):
      taps = taps_of(model, variables, images)
    if layer not in taps:
      raise ValueError(f"{type(model).__name__} has no tap {layer!r}; known: {', '.join(sorted(taps))}")
    found.extend(path for path, out in calls if out is taps[layer])
    return taps["logits/cls"]

  jax.eval_shape(forward, variables, jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32))
  if not found or sum(path == found[0] for path, _ in calls) > 1:
    raise ValueError(
      f"grad_cam cannot reach the tap {layer!r}: no module of its own returns it; try a block or stage"
    )
  return found[0]


def _check(model: nn.Module, images: Array, method: str, target: Any, layer: str | None) -> None:
  if method not in METHODS:
    raise ValueError(f"method = {method!r}; known: {', '.join(METHODS)}")
  if method != "grad_cam":
    check_attends(model, method)
  if layer is not None and method != "grad_cam":
    raise ValueError(f"layer={layer!r} says where grad_cam looks; {method} uses all layers")
  if method != "rollout" and not model.num_classes:
    raise ValueError(
      f"{method} explains a class, and {type(model).__name__} has no classifier (num_classes=0)"
    )
  if target is None:
    return
  if method == "rollout":
    raise ValueError("rollout does not depend on a class; leave target out, or use gradient_attention")
  classes = np.asarray(target)
  if classes.shape not in ((), (len(images),)) or classes.min() < 0 or classes.max() >= model.num_classes:
    raise ValueError(
      f"target {target} is not a class in 0 .. {model.num_classes - 1} for all or each of the images"
    )


def feature_maps(
  model: nn.Module,
  variables: Any,
  images: Float[Array, "b h w c"],
  *,
  layer: str,
  count: int = 16,
  batch_size: int = 64,
) -> tuple[Float[np.ndarray, "b k y x"], Int[np.ndarray, " k"]]:
  """The `count` channels of a layer that vary most over positions and images, and their numbers, most varied first.

  Each channel is stretched to [0, 1] over all images together, so that images can be compared; a constant one is 0.

  Raises:
    ValueError: no images, a tap that the model lacks or that is not spatial, or a count below 1.
  """
  if count < 1:
    raise ValueError(f"feature_maps: count is {count}; it must be at least 1")
  maps = map_batches(partial(_layer, model, variables, layer=layer), images, batch_size=batch_size)
  chosen = np.argsort(-maps.var(axis=(0, 1, 2)), kind="stable")[:count]
  maps = maps[..., chosen]
  low, high = maps.min(axis=(0, 1, 2)), maps.max(axis=(0, 1, 2))
  scaled = (maps - low) / np.where(high > low, high - low, 1.0)
  return np.moveaxis(scaled, -1, 1), chosen


@partial(jax.jit, static_argnames=("model", "layer"))
def _layer(model: nn.Module, variables: Any, images: Array, *, layer: str) -> Float[Array, "b y x d"]:
  return spatial_taps(model, variables, images, (layer,))[layer].astype(jnp.float32)
