"""Muon: momentum whose matrices are orthogonalised (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/).

optax.contrib.muon corrects the bias of the momentum and of the gradient by different powers, which turns the
first updates away from the published algorithm and from torch.optim.Muon; hence these lines.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalize(matrix: Float[Array, "p q"]) -> Float[Array, "p q"]:
  """`U V^T` of `matrix = U S V^T`, roughly: singular values come out between about 0.7 and 1.2.

  Five quintic Newton-Schulz iterations with the published coefficients, in the dtype of `matrix` (torch: bfloat16).
  """
  wide = matrix.shape[0] <= matrix.shape[1]
  x = matrix if wide else matrix.T
  x = x / jnp.maximum(jnp.linalg.norm(x), 1e-7)
  a, b, c = COEFFICIENTS
  for _ in range(ITERATIONS):
    gram = x @ x.T
    x = a * x + (b * gram + c * gram @ gram) @ x
  return x if wide else x.T


def scale_by_muon(momentum: float) -> optax.GradientTransformation:
  """Nesterov momentum, orthogonalised, with the root mean square of an AdamW update; for trees of matrices.

  The factor 0.2 sqrt(max(p, q)) lets matrices share learning rate and weight decay with what AdamW trains
  (Liu et al., 2025, arXiv:2502.16982; torch's adjust_lr_fn="match_rms_adamw").
  """
  orthogonal = optax.stateless_with_tree_map(lambda g, _: 0.2 * max(g.shape) ** 0.5 * orthogonalize(g))
  return optax.chain(optax.trace(momentum, nesterov=True), orthogonal)


def muon(
  schedule: optax.Schedule, momentum: float, *, weight_decay: float, mask, groups, rest
) -> optax.GradientTransformation:
  """Muon where `groups(params)` is True, `rest` elsewhere. The weight decay of `mask` is decoupled."""
  matrices = optax.chain(
    scale_by_muon(momentum),
    optax.add_decayed_weights(weight_decay, mask),
    optax.scale_by_learning_rate(schedule),
  )

  def labels(params):
    return jax.tree.map(lambda chosen: "matrices" if chosen else "rest", groups(params))

  return optax.partition({"matrices": matrices, "rest": rest}, labels)
