"""A linear map whose elementwise factors have been multiplied together beforehand.

Linearising a gradient leaves chains such as `t * a * b + t * c` with known arrays a, b, c: for a GELU nine of them in
every layer, each kept in memory and read again for every probe. They are `t * (a * b + c)`, so one array, computed
once, does the work of three. On a CPU a probe waits for such reads as much as for its matrix products.

Only arrays as large as the value they scale are merged. What is broadcast (a row's standard deviation, a scale by
channel) is cheap to read and stays by itself, or one shared array would become many.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jaxtyping import Array, PyTree

CALLS = ("jit", "pjit", "closed_call")
ROOTS = 2  # a sum of more different values is added up before it goes on
Term = tuple[Array, tuple[Array, ...]]


def fold(hvp: Callable[[PyTree], PyTree], like: PyTree) -> Callable[[PyTree], PyTree]:
  """The same linear map of trees like `like`, as `jax.linearize` gives it, with its factors merged.

  To be called where `hvp` was made, inside the same jitted function: what the new map no longer needs is then never
  stored.
  """
  closed = jax.make_jaxpr(lambda h, v: h(v))(hvp, like)
  treedef = jax.tree.structure(jax.eval_shape(hvp, like))
  residuals = jax.tree.leaves(hvp)

  def run(vector: PyTree) -> PyTree:
    folder = _Folder()
    moving = [_Sum([(x, ())]) for x in jax.tree.leaves(vector)]
    out = folder.run(closed.jaxpr, closed.consts, [*residuals, *moving])
    return jax.tree.unflatten(treedef, map(folder.whole, out))

  # Linear in the vector, so its linearisation is the map itself, and what is known in it, merged factors, residuals.
  return jax.linearize(run, like)[1]


class _Sum:
  """A sum of values that depend on the vector (roots), each times known factors that are still apart."""

  def __init__(self, terms: list[Term]):
    self.terms = terms
    self.shape = jnp.shape(terms[0][0])

  @property
  def roots(self) -> int:
    return len({id(root) for root, _ in self.terms})


class _Folder:
  """Evaluates a linear program and puts its elementwise products off until something else needs their result."""

  def __init__(self) -> None:
    self.broadcast: dict[int, Array] = {}  # by id; holding the arrays keeps the ids their own
    self.merged: dict[Any, tuple[Array, list[Any]]] = {}

  def run(self, jaxpr: Any, consts: Any, args: list[Any]) -> list[Any]:
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    read = lambda atom: atom.val if isinstance(atom, Literal) else env[atom]  # noqa: E731
    for eqn in jaxpr.eqns:
      inputs = [read(v) for v in eqn.invars]
      if eqn.primitive.name in CALLS:
        inner = eqn.params["jaxpr"]
        outputs = self.run(inner.jaxpr, inner.consts, inputs)
      else:
        outputs = self._apply(eqn, inputs)
      env.update(zip(eqn.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]

  def _apply(self, eqn: Any, inputs: list[Any]) -> list[Any]:
    if not any(isinstance(x, _Sum) for x in inputs):
      outputs = self._bind(eqn, inputs)
      if eqn.primitive.name == "broadcast_in_dim" and outputs[0].size > jnp.size(inputs[0]):
        self.broadcast[id(outputs[0])] = outputs[0]
      return outputs
    if (postponed := self._elementwise(eqn, inputs)) is not None:
      return [postponed]
    return [_Sum([(x, ())]) for x in self._bind(eqn, [self.whole(x) for x in inputs])]

  def _bind(self, eqn: Any, inputs: list[Any]) -> list[Any]:
    bound = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
    return list(bound) if eqn.primitive.multiple_results else [bound]

  def _elementwise(self, eqn: Any, inputs: list[Any]) -> _Sum | None:
    """The result as a sum of products, if it is one."""
    name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
    if any(isinstance(x, _Sum) and x.shape != shape for x in inputs):
      return None
    minus = jnp.array(-1, eqn.outvars[0].aval.dtype)
    if name == "copy":
      return inputs[0]
    if name == "neg":
      return self._times(inputs[0], minus)
    if len(inputs) != 2:
      return None
    a, b = inputs
    if name == "mul":
      return self._times(a, b) if isinstance(a, _Sum) else self._times(b, a)
    if name == "div" and isinstance(a, _Sum):
      return self._times(a, 1 / jnp.asarray(b))
    if name in ("add", "add_any", "sub") and isinstance(a, _Sum) and isinstance(b, _Sum):
      return self._add(a, self._times(b, minus) if name == "sub" else b)
    return None

  def _times(self, x: _Sum, factor: Array) -> _Sum:
    if x.roots > 1 and not any(factors for _, factors in x.terms):
      self.whole(x)  # a plain sum: one value with a factor, not several
    return _Sum([(root, (*factors, factor)) for root, factors in x.terms])

  def _add(self, a: _Sum, b: _Sum) -> _Sum:
    if _Sum(a.terms + b.terms).roots > ROOTS:
      self.whole(a), self.whole(b)
    return _Sum(a.terms + b.terms)

  def whole(self, x: Any) -> Any:
    """The value of a sum, which from then on is a root itself."""
    if not isinstance(x, _Sum):
      return x
    by_root: dict[int, list[Term]] = {}
    for term in x.terms:
      by_root.setdefault(id(term[0]), []).append(term)
    parts = [part for terms in by_root.values() for part in self._scaled(terms)]
    x.terms = [(sum(parts[1:], start=parts[0]), ())]
    return x.terms[0][0]

  def _scaled(self, terms: list[Term]) -> list[Array]:
    """One root times its factors: all merged into one if that leaves fewer large arrays, else one after the other."""
    root = terms[0][0]
    large = {id(f) for _, factors in terms for f in factors if self._is_large(f, root)}
    if len(large) < 2:
      return [_product(root, factors) for _, factors in terms]
    key = tuple(tuple(map(id, factors)) for _, factors in terms)
    if key not in self.merged:
      products = [_product(jnp.ones((), root.dtype), factors) for _, factors in terms]
      self.merged[key] = sum(products[1:], start=products[0]), [factors for _, factors in terms]
    return [root * self.merged[key][0]]

  def _is_large(self, factor: Array, root: Array) -> bool:
    return jnp.shape(factor) == jnp.shape(root) and id(factor) not in self.broadcast


def _product(start: Array, factors: tuple[Array, ...]) -> Array:
  for factor in factors:
    start = start * factor
  return start
