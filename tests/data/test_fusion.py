"""`apart` changes loops, never numbers; and only in programs for a CPU, wherever they are lowered."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.data.fusion import apart

X = jnp.arange(6.0).reshape(2, 3)


def both(x):
  return {"a": x * 2, "b": x.sum(axis=1)}


def conditionals(f):
  """In the compiled program, after every simplification."""
  return jax.jit(f).lower(X).compile().as_text().count(" conditional(")


def test_the_result_is_that_of_the_function():
  jax.tree.map(np.testing.assert_array_equal, jax.jit(lambda x: apart(both, x))(X), both(X))
  several = jax.vmap(lambda x: apart(both, x))(X[None])
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b), several, both(X))


def test_the_compiler_keeps_the_conditional():
  assert conditionals(lambda x: apart(both, x)) == 1
  plain = lambda x: jax.lax.cond(jnp.array(True), both, lambda y: both(-y), x)  # noqa: E731
  assert conditionals(plain) == 0, "a constant that is not hidden is simplified away"


def test_programs_for_gpus_are_not_held_apart():
  lower = lambda platform: jax.jit(lambda x: apart(both, x)).trace(X).lower(lowering_platforms=(platform,))  # noqa: E731
  assert "optimization_barrier" in lower("cpu").as_text()
  assert "optimization_barrier" not in lower("cuda").as_text()
