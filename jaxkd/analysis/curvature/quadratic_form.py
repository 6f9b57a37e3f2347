"""v'Hv by parameter, from the linear map v -> Hv, without the matrix products that Hv itself would need.

For a layer y = x W inside the map, with tangents dx and dy and the gradient g of y with tangent dg, Hv restricted to W
is dx'g + x'dg: two matrix products. But <V, x'dg> = <x V, dg> and <V, dx'g> = <dx, g V'>, and the map computes x V and
g V' anyway, for dy and for dg's way down. What is left are sums of elementwise products, so a probe costs two thirds of
a Hessian-vector product. The identity is exact; only the order of rounding differs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jaxtyping import Array, Float, PyTree

CALLS = ("jit", "pjit", "closed_call")


class _Made(NamedTuple):
  """How a value that depends on v came about. `value` keeps the array alive, so that its id stays its own."""

  name: str
  params: dict[str, Any]
  inputs: list[Any]
  value: Any


def leaf_forms(
  hvp: Callable[[PyTree], PyTree], vector: PyTree, whole: tuple[int, ...] = ()
) -> tuple[list[Float[Array, ""]], list[Array]]:
  """`v . Hv` restricted to every leaf, in flattening order, and v * Hv of the leaves in `whole`.

  Args:
    hvp: the linear map, as `jax.linearize` gives it.
    vector: v.
    whole: leaves whose elementwise products are wanted; these cost what Hv costs.
  """
  leaves = jax.tree.leaves(vector)
  outputs, graph = _trace(hvp, vector, leaves)
  products = {i: leaves[i] * outputs[i] for i in whole}
  forms = [jnp.sum(products[i]) if i in products else graph.inner(i, out) for i, out in enumerate(outputs)]
  return forms, list(products.values())


def _trace(
  hvp: Callable[[PyTree], PyTree], vector: PyTree, leaves: list[Array]
) -> tuple[list[Any], "_Graph"]:
  closed = jax.make_jaxpr(lambda h, v: h(v))(hvp, vector)
  graph = _Graph(leaves)
  residuals = jax.tree.leaves(hvp)
  return graph.run(closed.jaxpr, closed.consts, [*residuals, *leaves]), graph


class _Graph:
  """The values of a linear program as it is traced, with what made them."""

  def __init__(self, leaves: list[Array]):
    self.leaves = leaves
    self.index = {id(leaf): i for i, leaf in enumerate(leaves)}
    self.made: dict[int, _Made] = {}
    # (id of x, leaf) -> [(value of x V, x's contracted axis, V's contracted axis, x comes first)]
    self.applied: dict[tuple[int, int], list[tuple[Array, int, int, bool]]] = {}
    self.kept: list[Any] = []  # alive, so that no id is used twice

  def run(self, jaxpr: Any, consts: Any, args: list[Any]) -> list[Any]:
    """Evaluates the program and writes down what depends on v."""
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    read = lambda atom: atom.val if isinstance(atom, Literal) else env[atom]  # noqa: E731
    for eqn in jaxpr.eqns:
      inputs = [read(v) for v in eqn.invars]
      if eqn.primitive.name in CALLS:
        inner = eqn.params["jaxpr"]
        outputs = self.run(inner.jaxpr, inner.consts, inputs)
      else:
        outputs = self._bind(eqn, inputs)
      env.update(zip(eqn.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]

  def _bind(self, eqn: Any, inputs: list[Any]) -> list[Any]:
    bound = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
    outputs = list(bound) if eqn.primitive.multiple_results else [bound]
    self.kept += inputs
    if any(self._moves(x) for x in inputs):
      for out in outputs:
        self.made[id(out)] = _Made(eqn.primitive.name, eqn.params, inputs, out)
      if eqn.primitive.name == "dot_general":
        self._note(eqn.params, inputs, outputs[0])
    return outputs

  def _moves(self, x: Any) -> bool:
    return id(x) in self.made or id(x) in self.index

  def _note(self, params: dict[str, Any], inputs: list[Any], out: Array) -> None:
    """Remembers a product of two matrices, one of which is a leaf of v (or its transpose)."""
    if (axes := _matrix_axes(params, inputs)) is None:
      return
    for side in (0, 1):
      leaf, swapped = self._leaf(inputs[1 - side])
      if leaf is not None and not self._moves(inputs[side]):
        axis = 1 - axes[1 - side] if swapped else axes[1 - side]
        self.applied.setdefault((id(inputs[side]), leaf), []).append((out, axes[side], axis, side == 0))

  def _leaf(self, x: Any) -> tuple[int | None, bool]:
    """The leaf of v that x is, and whether it is transposed."""
    if id(x) in self.index:
      return self.index[id(x)], False
    made = self.made.get(id(x))
    if made is not None and made.name == "transpose" and jnp.ndim(x) == 2:
      leaf, swapped = self._leaf(made.inputs[0])
      return leaf, not swapped
    return None, False

  def inner(self, leaf: int, value: Any, swapped: bool = False) -> Float[Array, ""]:
    """<v's leaf, value>, where `swapped` says that value is the transpose of something like the leaf."""
    made = self.made.get(id(value))
    if made is not None and made.name in ("add_any", "add"):
      return self.inner(leaf, made.inputs[0], swapped) + self.inner(leaf, made.inputs[1], swapped)
    if made is not None and made.name == "transpose" and value.ndim == 2:
      return self.inner(leaf, made.inputs[0], not swapped)
    if made is not None and made.name == "dot_general":
      found = self._through(leaf, made, swapped)
      if found is not None:
        return found
    v = self.leaves[leaf]
    return jnp.sum((v.T if swapped else v) * value)

  def _through(self, leaf: int, made: _Made, swapped: bool) -> Float[Array, ""] | None:
    """<V, x'dg> as <x V, dg>, if x V has been computed."""
    if (axes := _matrix_axes(made.params, made.inputs)) is None:
      return None
    side = 0 if not self._moves(made.inputs[0]) else 1
    x, tangent = made.inputs[side], made.inputs[1 - side]
    row = side if not swapped else 1 - side  # the axis of the leaf that x's free axis became
    for out, x_axis, v_axis, x_first in self.applied.get((id(x), leaf), []):
      if x_axis == 1 - axes[side] and v_axis == row:
        # x V is [free axis of x, free axis of V] or the reverse; bring the tangent's contracted axis to the former.
        same = (axes[1 - side] == 0) == x_first
        return jnp.sum(out * (tangent if same else tangent.T))
    return None


def _matrix_axes(params: dict[str, Any], inputs: list[Any]) -> tuple[int, int] | None:
  """The contracted axes of a plain product of two matrices, else None."""
  (left, right), (batch, _) = params["dimension_numbers"]
  if len(left) != 1 or batch or any(jnp.ndim(x) != 2 for x in inputs):
    return None
  return int(left[0]), int(right[0])
