"""Sharpness-aware minimisation (Foret et al., 2021, arXiv:2010.01412): the gradient where the loss is worst nearby.

A function of gradients instead of an optimiser around another one: both gradients are of the same batch with the
same keys, and accumulation, freezing and the guard against non-finite steps stay what they are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def perturb(params, grads, *, rho: float):
  """`params + rho * grads / |grads|`, the norm over all leaves of `grads`: the first-order worst point at distance rho.

  Leaves that are None in `grads` stay where they are, as all do where the gradient is zero.
  """
  norm = optax.tree.norm(jax.tree.map(lambda g: g.astype(jnp.float32), grads))
  scale = jnp.where(norm > 0, rho / jnp.where(norm > 0, norm, 1.0), 0.0)

  def move(p, g):
    return p if g is None else p + (scale * g.astype(jnp.float32)).astype(p.dtype)

  return jax.tree.map(move, params, grads, is_leaf=lambda leaf: leaf is None)
