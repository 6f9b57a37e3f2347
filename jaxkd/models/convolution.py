"""The one door to convolutions over [b h w c] with kernels [kh kw c o].

Two implementations: `native` (XLA's own, for GPUs) and `matmul`, for CPUs, which takes for each shape the fastest of
the formulations in docs/performance.md. There XLA's weight gradients and depthwise convolutions are slow: weight
gradients become one matrix product each, a depthwise convolution a sum of shifted maps, a convolution whose strides
are its kernel's sides a product of rows. Values, parameters and second derivatives by forward-over-reverse are those
of the native one; forward-mode differentiation alone (`jax.jvp` of a model) needs `native`. Which one a model uses is
decided when it is built, as for attention.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

IMPLEMENTATIONS = ("auto", "native", "matmul")
LAYOUT = ("NHWC", "HWIO", "NHWC")

Maps = Float[Array, "b h w c"]
Kernel = Float[Array, "kh kw c o"]
Pairs = tuple[tuple[int, int], tuple[int, int]]
Strides = tuple[int, int]


def resolve_convolution(name: str, platform: str | None = None) -> str:
  """What `name` means on `platform` ("cuda", "cpu"; None: here): "native" or "matmul"; `auto` is matmul on CPU.

  Raises ValueError for another name.
  """
  if name not in IMPLEMENTATIONS:
    raise ValueError(f"unknown convolution {name!r}; known: {', '.join(IMPLEMENTATIONS)}")
  if name == "auto":
    return "matmul" if (platform or jax.default_backend()) == "cpu" else "native"
  return name


def implementation(name: str) -> Callable[..., Array]:
  """What `nn.Conv(conv_general_dilated=...)` calls, for a resolved name."""
  known: dict[str, Callable[..., Array]] = {"native": lax.conv_general_dilated, "matmul": convolve}
  return known[name]


def convolve(
  x: Maps,
  kernel: Kernel,
  window_strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  *,
  lhs_dilation: Sequence[int] | None = None,
  rhs_dilation: Sequence[int] | None = None,
  dimension_numbers: Any = None,
  feature_group_count: int = 1,
  precision: Any = None,
) -> Float[Array, "b h2 w2 o"]:
  """`lax.conv_general_dilated` over [b h w c], in the formulation that suits the shape on a CPU.

  Dilated and grouped convolutions, but depthwise ones at stride 1, are the native one.
  """
  (kh, kw), (sh, sw) = kernel.shape[:2], window_strides
  size, strides = (kh, kw), (sh, sw)
  dilated = any(d != 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
  depthwise = feature_group_count == x.shape[-1] == kernel.shape[-1] and strides == (1, 1)
  if dilated or (feature_group_count > 1 and not depthwise):
    return lax.conv_general_dilated(
      x,
      kernel,
      strides,
      padding,
      lhs_dilation=lhs_dilation,
      rhs_dilation=rhs_dilation,
      dimension_numbers=LAYOUT,
      feature_group_count=feature_group_count,
      precision=precision,
    )
  pads = _pads(x, size, strides, padding)
  if feature_group_count > 1:
    return _depthwise(pads, x, kernel)
  if pads == ((0, 0), (0, 0)) and (size == strides or size == (1, 1)):
    return _patches_times(x, kernel, strides, precision)
  return _dense(strides, pads, precision, x, kernel)


def _pads(x: Array, size: Strides, strides: Strides, padding: str | Sequence[tuple[int, int]]) -> Any:
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(x.shape[1:3], size, strides, padding)
  return tuple((int(low), int(high)) for low, high in padding)


def _wide(dtype: Any) -> Any:
  """The dtype in which sums of products of this dtype are taken: at least float32."""
  return jnp.float64 if dtype == jnp.float64 else jnp.float32


def _patches_times(x: Maps, kernel: Kernel, strides: Strides, precision: Any) -> Array:
  """A kernel that covers each pixel at most once: every patch is a row, and the kernel a matrix."""
  (kh, kw, c, o), (b, h, w, _), (sh, sw) = kernel.shape, x.shape, strides
  rows, columns = (h - kh) // sh + 1, (w - kw) // sw + 1
  if (kh, kw) == (1, 1):
    x = x[:, ::sh, ::sw]
  else:
    x = x[:, : rows * kh, : columns * kw].reshape(b, rows, kh, columns, kw, c).transpose(0, 1, 3, 2, 4, 5)
  y = jnp.matmul(
    x.reshape(-1, kh * kw * c),
    kernel.reshape(-1, o),
    precision=precision,
    preferred_element_type=_wide(x.dtype),
  )
  return y.astype(x.dtype).reshape(b, rows, columns, o)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _dense(strides: Strides, pads: Pairs, precision: Any, x: Maps, kernel: Kernel) -> Array:
  """Forward and input gradient are native, the kernel's gradient one matrix product."""
  return _native(strides, pads, precision, x, kernel)


def _native(strides: Strides, pads: Pairs, precision: Any, x: Maps, kernel: Kernel) -> Array:
  return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=LAYOUT, precision=precision)


def _dense_forward(strides: Strides, pads: Pairs, precision: Any, x: Maps, kernel: Kernel) -> Any:
  return _native(strides, pads, precision, x, kernel), (x, kernel)


def _dense_backward(
  strides: Strides, pads: Pairs, precision: Any, kept: Any, dy: Array
) -> tuple[Array, Array]:
  x, kernel = kept
  (dx,) = jax.linear_transpose(lambda x: _native(strides, pads, precision, x, kernel), x)(dy)
  kh, kw, c, o = kernel.shape
  # What is copied for each position: rows of x beside columns of dy, or whole patches of x.
  crossed = strides == (1, 1) and kh * c + kw * o < kh * kw * c + o
  dk = (_crossed if crossed else _by_patches)(strides, pads, precision, x, dy, (kh, kw))
  return dx, dk.astype(kernel.dtype)


_dense.defvjp(_dense_forward, _dense_backward)


def _crossed(
  strides: Strides, pads: Pairs, precision: Any, x: Maps, dy: Array, size: tuple[int, int]
) -> Float[Array, "kh kw c o"]:
  """Kernel gradient at stride 1 from x moved by rows, times dy moved by columns: all taps in one product.

  dk[i, j] = sum of x[h + i, w + j] dy[h, w] = sum of x[h + i, u] dy[h, u - j]: copies of kh c + kw o numbers for each
  position instead of the kh kw c of whole patches.
  """
  (kh, kw), (_, _, w, c), (_, rows, columns, o) = size, x.shape, dy.shape
  (top, bottom), (left, _) = pads
  x = jnp.pad(x, ((0, 0), (top, bottom), (0, 0), (0, 0)))
  x = jnp.concatenate([x[:, i : i + rows] for i in range(kh)], axis=-1)
  zero = jnp.zeros((), dy.dtype)
  moves = [j - left for j in range(kw)]
  moved = [lax.pad(dy, zero, ((0, 0, 0), (0, 0, 0), (m, w - columns - m, 0), (0, 0, 0))) for m in moves]
  dk = _rows_product(x, jnp.concatenate(moved, axis=-1), precision)
  return dk.reshape(kh, c, kw, o).transpose(0, 2, 1, 3)


def _by_patches(
  strides: Strides, pads: Pairs, precision: Any, x: Maps, dy: Array, size: tuple[int, int]
) -> Float[Array, "kh kw c o"]:
  """Kernel gradient as the product of the patches of x [b*h2*w2, kh*kw*c] with dy."""
  (kh, kw), (sh, sw), (_, rows, columns, o) = size, strides, dy.shape
  x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
  taps = [
    x[:, i : i + (rows - 1) * sh + 1 : sh, j : j + (columns - 1) * sw + 1 : sw]
    for i in range(kh)
    for j in range(kw)
  ]
  return _rows_product(jnp.concatenate(taps, axis=-1), dy, precision).reshape(kh, kw, -1, o)


def _rows_product(
  x: Float[Array, "b h w p"], y: Float[Array, "b h w q"], precision: Any
) -> Float[Array, "p q"]:
  """Sum over all positions of the products of x's and y's channels."""
  x, y = (a.reshape(-1, a.shape[-1]) for a in (x, y))
  numbers = (((0,), (0,)), ((), ()))
  return lax.dot_general(x, y, numbers, precision=precision, preferred_element_type=_wide(x.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _depthwise(pads: Pairs, x: Maps, kernel: Float[Array, "kh kw 1 c"]) -> Maps:
  """Every channel with its own kernel at stride 1: the sum of the shifted and weighted maps."""
  return _shifted_sum(pads, x, kernel)


def _shifted_sum(pads: Pairs, x: Maps, kernel: Array) -> Maps:
  """A loop over two halves of the batch (over its images where it is odd), each half one expression.

  Without the loop XLA would take the expression for cheap and compute it again, with all its taps, wherever the
  result is read.
  """
  b = x.shape[0]
  padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
  parts = padded.reshape(2 if b % 2 == 0 else b, -1, *padded.shape[1:])
  total = lax.map(lambda part: _taps_sum(part, kernel), parts)
  return total.reshape(b, *total.shape[2:])


def _taps_sum(padded: Maps, kernel: Array) -> Maps:
  (kh, kw, _, c), (_, h, w, _), wide = kernel.shape, padded.shape, _wide(padded.dtype)
  weights = kernel.astype(wide).reshape(kh, kw, 1, 1, 1, c)
  rows, columns = h - kh + 1, w - kw + 1
  taps = [
    padded[:, i : i + rows, j : j + columns].astype(wide) * weights[i, j]
    for i in range(kh)
    for j in range(kw)
  ]
  return functools.reduce(jnp.add, taps).astype(padded.dtype)


def _depthwise_forward(pads: Pairs, x: Maps, kernel: Array) -> Any:
  return _shifted_sum(pads, x, kernel), (x, kernel)


def _depthwise_backward(pads: Pairs, kept: Any, dy: Maps) -> tuple[Maps, Array]:
  """The input's gradient is the same sum with the kernel turned round, the kernel's comes from banded products."""
  x, kernel = kept
  dy = lax.optimization_barrier(
    dy
  )  # else XLA computes what led to it again, in the order of the product's operand
  kh, kw = kernel.shape[:2]
  (top, bottom), (left, right) = pads
  back = (kh - 1 - top, kh - 1 - bottom), (kw - 1 - left, kw - 1 - right)
  if min(*back[0], *back[1]) < 0:
    raise ValueError(f"padding {pads} is larger than the kernel of {kh}x{kw}")
  dx = _shifted_sum(back, dy, kernel[::-1, ::-1])
  (dk,) = jax.linear_transpose(lambda k: _banded(pads, x, k, dy.shape[2]), kernel.astype(_wide(x.dtype)))(
    dy.astype(_wide(x.dtype))
  )
  return dx, dk.astype(kernel.dtype)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _banded(pads: Pairs, x: Maps, kernel: Array, columns: int) -> Maps:
  """A depthwise convolution whose columns are a product with a banded matrix per channel; linear in the kernel."""
  (kh, kw, _, c), (_, h, w, _), wide = kernel.shape, x.shape, kernel.dtype
  (top, bottom), (left, _) = pads
  rows = h + top + bottom - kh + 1
  bands = jnp.stack(
    [jnp.eye(w, columns, k=left - j, dtype=wide) for j in range(kw)]
  )  # input column by output's
  matrix = jnp.einsum("juv,ijc->iuvc", bands, kernel[:, :, 0])
  x = jnp.pad(x.astype(wide), ((0, 0), (top, bottom), (0, 0), (0, 0)))
  x = jnp.concatenate([x[:, i : i + rows] for i in range(kh)], axis=2)  # [b rows kh*w c]
  return jnp.einsum("bruc,uvc->brvc", x, matrix.reshape(kh * w, columns, c))
