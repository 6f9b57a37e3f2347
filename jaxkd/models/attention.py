"""The one door to scaled dot-product attention.

Two implementations: `xla` (any device, any dtype, any order of derivative) and `cudnn` (flash attention,
arXiv:2307.08691; bfloat16 or float16 on a CUDA GPU, first derivatives only). Which one a model uses is
decided in Python when the model is built, so that it can be written down: `lax.platform_dependent` would
trace both branches and fail wherever cuDNN is missing. Attention maps always come from the explicit softmax
in float32, because a fused kernel has none to give.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd.models.layers import choose

IMPLEMENTATIONS = ("auto", "xla", "cudnn")


def resolve_implementation(
  name: str,
  dtype: Any,
  second_order: bool = False,
  *,
  head_dim: int | None = None,
  platform: str | None = None,
) -> str:
  """What `name` means here: "xla" or "cudnn".

  `auto` is cuDNN for bfloat16 and float16 on a CUDA GPU where its limits allow (head size a multiple of 8, at
  most 128; no second derivatives), XLA elsewhere. `platform` ("cuda", "cpu") resolves for another machine
  than this one, for programs that are lowered or compiled for it and not run here. Raises ValueError for an
  unknown name, and for "cudnn" where it cannot be had, naming the obstacle.
  """
  choose("attention", name, IMPLEMENTATIONS)
  if name == "xla":
    return "xla"
  obstacle = _cudnn_obstacle(dtype, second_order, head_dim, platform)
  if name == "cudnn" and obstacle:
    raise ValueError(f"attention='cudnn' cannot be had: {obstacle}; use attention='xla' or 'auto'")
  return "xla" if obstacle else "cudnn"


def _cudnn_obstacle(dtype: Any, second_order: bool, head_dim: int | None, platform: str | None) -> str:
  """Why cuDNN cannot compute this attention, or an empty string."""
  if second_order:
    return "it has no second derivative"
  if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
    return f"it computes in bfloat16 or float16, not in {jnp.dtype(dtype).name}"
  if head_dim is not None and (head_dim % 8 or head_dim > 128):
    return f"its head size is a multiple of 8 and at most 128, not {head_dim}"
  if platform is None:
    device = jax.devices()[0]
    cuda = device.platform == "gpu" and "cuda" in device.client.platform_version.lower()
    return "" if cuda else f"it needs a CUDA GPU, and this process runs on {device.platform}"
  return "" if platform == "cuda" else f"it needs a CUDA GPU, not {platform}"


def attention(
  q: Float[Array, "b n h d"],
  k: Float[Array, "b n h d"],
  v: Float[Array, "b n h d"],
  *,
  implementation: str,
) -> Float[Array, "b n h d"]:
  """softmax(q k^T / sqrt d) v per head, in the inputs' dtype, with the softmax in float32.

  `implementation` is a resolved name, "xla" or "cudnn". Raises ValueError for another one.
  """
  choose("implementation", implementation, IMPLEMENTATIONS[1:])
  if implementation == "cudnn":
    return _cudnn(q, k, v)
  return _xla(q, k, v)


def attention_with_maps(
  q: Float[Array, "b n h d"],
  k: Float[Array, "b n h d"],
  v: Float[Array, "b n h d"],
  *,
  perturb: Callable[[Array], Array] = lambda maps: maps,
) -> tuple[Float[Array, "b n h d"], Float[Array, "b h n n"]]:
  """Attention and its maps, both computed in float32; the output is cast to v's dtype, the maps are not.

  `perturb` sees the maps before they weigh the values: the place to take a gradient with respect to them.
  """
  q, k, values = (x.astype(jnp.float32).swapaxes(1, 2) for x in (q, k, v))
  maps = perturb(jax.nn.softmax(_scores(q, k), axis=-1))
  return jnp.matmul(maps, values).swapaxes(1, 2).astype(v.dtype), maps


def _scores(q: Float[Array, "b h n d"], k: Float[Array, "b h n d"]) -> Float[Array, "b h n n"]:
  """q k^T / sqrt d in float32."""
  scores = jnp.matmul(q, k.swapaxes(-1, -2), preferred_element_type=jnp.float32)
  return scores * q.shape[-1] ** -0.5


def _xla(q: Array, k: Array, v: Array) -> Array:
  """Batched matmuls with heads ahead of tokens, normalised after the second product instead of before it.

  Alone on CPU this order is the fastest of five tried, `jax.nn.dot_product_attention` included; within a
  training step they are equal. The row maximum only guards against overflow and cancels: no gradient
  goes through it.
  """
  q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
  scores = _scores(q, k)
  weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
  total = jnp.sum(weights, axis=-1, keepdims=True)
  out = jnp.matmul(weights.astype(v.dtype), v).astype(jnp.float32) / total
  return out.astype(v.dtype).swapaxes(1, 2)


def _cudnn(q: Array, k: Array, v: Array) -> Array:
  """cuDNN's kernel, which refuses odd token counts in its backward pass: those are padded by one."""
  n = q.shape[1]
  if n % 2 == 0:
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
  q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
  lengths = jnp.full((q.shape[0],), n, jnp.int32)
  out = jax.nn.dot_product_attention(
    q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="cudnn"
  )
  return out[:, :n]
