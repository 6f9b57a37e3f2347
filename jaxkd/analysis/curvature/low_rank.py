"""Trace estimators that take the range of the matrix out first: Hutch++ and XTrace.

Own code, though matfree has XTrace: these return values by parameter, so that blocks have traces too, and the products
are streamed over batches on the host, which a traced program cannot do. The tests hold XTrace against matfree's.

For any projection P = QQ' and probe g = (I - P) w with E[ww'] = I: diag(HQQ') + E[g * Hg] = diag(H), since
E[gg'] = I - P. So summed over one parameter's entries the two terms are an unbiased estimate of its block's trace.
"""

import functools
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jaxkd.analysis.curvature.products import flat
from jaxkd.analysis.curvature.sample import normal_like, paths, rademacher_like

Apply = Callable[[Float[np.ndarray, "k n"]], Float[np.ndarray, "k n"]]


def hutch_plus_plus(apply: Apply, params: PyTree, key: PRNGKeyArray, products: int) -> dict[str, np.ndarray]:
  """Hutch++ (Meyer, Musco, Musco and Woodruff, 2021, arXiv:2010.09649): path -> [values] of independent values.

  A third of the products find a range Q, a third give the trace on it, and the rest are Hutchinson probes of what
  is left, which are the values; given Q they are independent and their mean is unbiased.
  """
  rank = _rank(products // 3, params)
  q = _orthonormal(apply(_draw(key, params, range(rank))))
  exact = sum_by_leaf(q * apply(q), params).sum(axis=0)
  w = _draw(key, params, range(rank, rank + products - 2 * rank))
  g = w - (w @ q.T) @ q
  return _by_path(exact + sum_by_leaf(g * apply(g), params), params)


def xtrace(apply: Apply, params: PyTree, key: PRNGKeyArray, products: int) -> dict[str, np.ndarray]:
  """XTrace (Epperly, Tropp and Webber, 2024, arXiv:2301.07825): path -> [products // 2] exchangeable values.

  Value i is Hutch++ with the range of all other test vectors' products and test vector i as its one probe. The
  probes are Gaussian, and each g is given the length that it would have in expectation, n - m + 1 (section 2.3).
  """
  count = _rank(products // 2, params)
  w = _draw(key, params, range(count), normal_like)
  y = apply(w)
  q, r = np.linalg.qr(y.T)
  q = np.ascontiguousarray(q.T)
  z = apply(q)
  # s_i: the direction, in coordinates of Q, that only test vector i brought in.
  s = np.linalg.inv(r).T
  s /= np.linalg.norm(s, axis=0)
  everything = sum_by_leaf(q * z, params).sum(axis=0)
  values = np.empty((count, everything.size))
  for i in range(count):
    alone = s[:, i]
    coordinates = q @ w[i]
    coordinates -= alone * (alone @ coordinates)
    g, hg = w[i] - coordinates @ q, y[i] - coordinates @ z
    scale = (g.size - count + 1) / (g @ g)
    without = everything - sum_by_leaf(((alone @ q) * (alone @ z))[None], params)[0]
    values[i] = without + scale * sum_by_leaf((g * hg)[None], params)[0]
  return _by_path(values, params)


def sum_by_leaf(rows: Float[np.ndarray, "k n"], params: PyTree) -> Float[np.ndarray, "k leaves"]:
  """Sums of each row over each parameter, in float64."""
  ends = np.cumsum([x.size for x in jax.tree.leaves(params)])
  return np.add.reduceat(rows.astype(np.float64), [0, *ends[:-1]], axis=1)


def _rank(count: int, params: PyTree) -> int:
  size = sum(x.size for x in jax.tree.leaves(params))
  if 2 * count >= size:
    raise ValueError(
      f"{count} test vectors for {size} parameters: as many products give the exact trace; use fewer probes"
    )
  return count


def _draw(key: PRNGKeyArray, params: PyTree, indices: range, draw=rademacher_like) -> np.ndarray:
  """Test vectors as rows, [k n]; vector i is that of `fold_in(key, i)`."""
  return np.stack([np.asarray(_one(key, params, np.uint32(i), draw)) for i in indices])


@functools.partial(jax.jit, static_argnames="draw")
def _one(key: PRNGKeyArray, params: PyTree, index: Array, draw: Callable[..., PyTree]) -> Float[Array, " n"]:
  return flat(draw(jax.random.fold_in(key, index), params))


def _orthonormal(rows: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(np.linalg.qr(rows.T)[0].T)


def _by_path(values: np.ndarray, params: PyTree) -> dict[str, np.ndarray]:
  return {path: values[:, i] for i, path in enumerate(paths(params))}
