"""Eigenvalues of the Hessian by Lanczos' method: the largest ones, and the density of all of them.

matfree makes the tridiagonal matrix, with full reorthogonalisation. It traces the product with the Hessian into its
loop, so here the product is one program that scans over the batches and linearises each of them again at every step;
only one batch's residuals are alive at a time. The Krylov basis is kept: 4 bytes x parameters x iterations, and up to
three times that while the program runs.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from matfree import decomp

from jaxkd.analysis.curvature.estimate import mean_and_stderr
from jaxkd.analysis.curvature.products import flat, hessian_vector_products, unflat
from jaxkd.analysis.curvature.sample import LossFn, in_float, normal_like, rademacher_like, shares, signature

Which = Literal["largest", "smallest", "magnitude"]
ORDER = {"largest": lambda x: -x, "smallest": lambda x: x, "magnitude": lambda x: -np.abs(x)}


@dataclass(frozen=True, eq=False)
class Eigenvalues:
  """Some eigenvalues of a Hessian.

  Attributes:
    values: [k], in the order that was asked for.
    errors: [k] |Hx - value x| / |x| by a product of its own: an eigenvalue lies within this distance of the value.
    vectors: k pytrees like the parameters, of norm 1.
    iterations: steps of Lanczos' method, each one product with the Hessian.
  """

  values: np.ndarray
  errors: np.ndarray
  vectors: list[PyTree] = field(repr=False)
  iterations: int


@dataclass(frozen=True, eq=False)
class SpectralDensity:
  """The distribution of a Hessian's eigenvalues by stochastic Lanczos quadrature.

  Attributes:
    nodes: [starts iterations] Ritz values of each start vector.
    masses: [starts iterations] their shares of all eigenvalues; rows add up to 1.
    size: number of eigenvalues, that is of parameters.
  """

  nodes: np.ndarray
  masses: np.ndarray
  size: int

  def on(self, points: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Density at `points`, every node a Gaussian of width `sigma`: mean and standard error over starts, [points]."""
    z = (points[None, :, None] - self.nodes[:, None, :]) / sigma
    curves = np.sum(self.masses[:, None, :] * np.exp(-0.5 * z**2), axis=2) / (sigma * np.sqrt(2 * np.pi))
    return curves.mean(axis=0), curves.std(axis=0, ddof=1) / np.sqrt(len(curves))

  def share_between(self, low: float, high: float) -> tuple[float, float]:
    """Share of eigenvalues in [low, high): mean and standard error over starts."""
    inside = (self.nodes >= low) & (self.nodes < high)
    return mean_and_stderr(np.sum(self.masses * inside, axis=1))

  def moment(self, power: int) -> tuple[float, float]:
    """tr(H^power): mean and standard error; power 1 is Hutchinson's estimate with these starts."""
    return mean_and_stderr(self.size * np.sum(self.masses * self.nodes**power, axis=1))


def top_eigenvalues(
  loss_fn: LossFn,
  params: PyTree,
  batches: Sequence[PyTree],
  *,
  key: PRNGKeyArray,
  k: int = 2,
  iterations: int = 30,
  which: Which = "largest",
  weights: Sequence[float] | None = None,
) -> Eigenvalues:
  """The k largest eigenvalues of the Hessian with their eigenvectors and error bounds, by Lanczos' method.

  Args:
    loss_fn, params, batches, key, weights: as in `hessian_trace`.
    k: eigenvalues wanted. One start vector finds an eigenvalue that occurs several times once only, and then there may
      be fewer than k.
    iterations: steps, at most the number of parameters; an error bound that is too large asks for more.
    which: "largest" (algebraically), "smallest" (the most negative) or "magnitude".

  Raises:
    ValueError: k or iterations out of range, an unknown `which`, or as `hessian_trace` for the batches.
    FloatingPointError: the Hessian is not finite.

  Source: Lanczos (1950); Parlett (1998), "The symmetric eigenvalue problem", theorem 4.5.1 for the bound.
  """
  if which not in ORDER:
    raise ValueError(f"unknown which {which!r}; known: {', '.join(ORDER)}")
  if not 1 <= k <= iterations:
    raise ValueError(f"k = {k} must lie between 1 and iterations = {iterations}")
  share, params = shares(batches, weights), in_float(params)
  start = normal_like(key, params)
  basis, diagonal, off = _tridiagonal(loss_fn, params, batches, share, start, iterations)
  steps = _length(diagonal, off)
  ritz, coordinates = _eigh(diagonal[:steps], off[: steps - 1])
  chosen = np.argsort(ORDER[which](ritz), kind="stable")[:k]
  vectors = coordinates[:, chosen].T.astype(basis.dtype) @ basis[:steps]
  vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
  products = hessian_vector_products(loss_fn, params, batches, vectors, share)
  values = np.sum(vectors.astype(np.float64) * products, axis=1)
  errors = np.linalg.norm(products - values[:, None] * vectors, axis=1)
  return Eigenvalues(values, errors, [unflat(v, params) for v in vectors], steps)


def spectral_density(
  loss_fn: LossFn,
  params: PyTree,
  batches: Sequence[PyTree],
  *,
  key: PRNGKeyArray,
  starts: int = 10,
  iterations: int = 30,
  weights: Sequence[float] | None = None,
) -> SpectralDensity:
  """The density of the Hessian's eigenvalues by stochastic Lanczos quadrature over `starts` random sign vectors.

  A start vector's Ritz values and squared first components integrate polynomials of degree 2 iterations - 1 exactly
  against that vector's spectral measure, whose expectation over signs is the density of eigenvalues.

  Args:
    loss_fn, params, batches, key, weights: as in `hessian_trace`; start i is probe i of `hessian_trace`.
    starts: vectors, at least 2, for the standard error.
    iterations: steps for each of them, at most the number of parameters.

  Raises:
    ValueError: starts or iterations out of range, or as `hessian_trace` for the batches.
    FloatingPointError: the Hessian is not finite.

  Source: Ubaru, Chen and Saad (2017), "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature"; Ghorbani,
    Krishnan and Xiao (2019), arXiv:1901.10159.
  """
  if starts < 2:
    raise ValueError(f"starts = {starts}: a standard error needs at least 2 start vectors")
  share, params = shares(batches, weights), in_float(params)
  nodes, masses = np.zeros((starts, iterations)), np.zeros((starts, iterations))
  for i in range(starts):
    start = jax.jit(rademacher_like)(jax.random.fold_in(key, i), params)
    _, diagonal, off = _tridiagonal(loss_fn, params, batches, share, start, iterations, basis=False)
    steps = _length(diagonal, off)
    ritz, coordinates = _eigh(diagonal[:steps], off[: steps - 1])
    nodes[i, :steps], masses[i, :steps] = ritz, coordinates[0] ** 2
    nodes[i, steps:] = ritz[-1]  # without mass
  return SpectralDensity(nodes, masses, sum(x.size for x in jax.tree.leaves(params)))


def _tridiagonal(
  loss_fn: LossFn,
  params: PyTree,
  batches: Sequence[PyTree],
  share: np.ndarray,
  start: PyTree,
  iterations: int,
  basis: bool = True,
) -> tuple[Any, np.ndarray, np.ndarray]:
  """Krylov basis [iterations n] (None without `basis`), diagonal and subdiagonal of the tridiagonal matrix."""
  size = sum(x.size for x in jax.tree.leaves(params))
  if not 1 <= iterations <= size:
    raise ValueError(f"iterations = {iterations} must lie between 1 and the number of parameters, {size}")
  with jax.default_matmul_precision("highest"):
    found = _lanczos(loss_fn, params, _stacked(batches, share, params), flat(start), iterations, basis)
  vectors, diagonal, off = jax.device_get(found)
  if not np.isfinite(diagonal[0]):
    raise FloatingPointError("the Hessian is not finite; check the loss and its gradient at these parameters")
  return vectors, diagonal.astype(np.float64), off.astype(np.float64)


@functools.partial(jax.jit, static_argnames=("loss_fn", "iterations", "basis"))
def _lanczos(
  loss_fn: LossFn, params: PyTree, groups: list[PyTree], start: Array, iterations: int, basis: bool
) -> tuple[Array | None, Array, Array]:
  decompose = decomp.tridiag_sym(iterations, materialize=False, reortho="full", custom_vjp=False)
  product = functools.partial(_product, loss_fn)
  found = decompose(product, start, params, groups)
  return found.Q_tall if basis else None, *found.J_small


def _product(loss_fn: LossFn, vector: Float[Array, " n"], params: PyTree, groups: list[PyTree]) -> Array:
  """H v; batches of equal shape are stacked and scanned over."""

  def add(total: Array, weighted: tuple[Array, PyTree]) -> tuple[Array, None]:
    weight, batch = weighted
    gradient = jax.grad(lambda p: loss_fn(p, batch))
    _, product = jax.jvp(gradient, (params,), (unflat(vector, params),))
    return total + weight * flat(product), None

  total = jnp.zeros_like(vector)
  for group in groups:
    total, _ = jax.lax.scan(add, total, group)
  return total


def _stacked(batches: Sequence[PyTree], share: np.ndarray, params: PyTree) -> list[PyTree]:
  """(weights, batches) of every shape that occurs, with a new leading axis."""
  dtype = jax.tree.leaves(params)[0].dtype
  groups: dict[Any, list[int]] = {}
  for i, batch in enumerate(batches):
    groups.setdefault(signature(batch), []).append(i)
  return [
    (share[rows].astype(dtype), jax.tree.map(lambda *x: jnp.stack(x), *[batches[i] for i in rows]))
    for rows in groups.values()
  ]


def _length(diagonal: np.ndarray, off: np.ndarray) -> int:
  """Steps before the Krylov space was exhausted: up to the first subdiagonal entry that is nothing but rounding."""
  scale = np.max(np.abs(diagonal[np.isfinite(diagonal)]))
  ended = ~np.isfinite(off) | (off <= 1e-6 * scale)
  return int(np.argmax(ended)) + 1 if ended.any() else len(diagonal)


def _eigh(diagonal: np.ndarray, off: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  return np.linalg.eigh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))
