"""Losses of logits against labels."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def cross_entropy(
  logits: Float[Array, "b c"], labels: Int[Array, " b"] | Float[Array, "b c"], *, smoothing: float = 0.0
) -> Float[Array, " b"]:
  """Cross entropy in nats, float32, one value per example.

  Integer labels [b] may be smoothed: the target is `1 - smoothing` on the label plus `smoothing / c`
  everywhere (Szegedy et al., 2016, arXiv:1512.00567; the same as `label_smoothing` of torch). Labels [b c]
  are the probabilities that MixUp and CutMix produce and are used as they are. A label outside [0, c) gives
  NaN.

  Raises:
    ValueError: shapes do not fit, `smoothing` is outside [0, 1), or smoothing is asked for mixed labels.
  """
  if not 0.0 <= smoothing < 1.0:
    raise ValueError(f"cross_entropy: smoothing is {smoothing}; it must be in [0, 1)")
  mixed = labels.ndim == 2
  if logits.ndim != 2 or labels.shape != (logits.shape if mixed else logits.shape[:1]):
    raise ValueError(
      f"cross_entropy: logits {logits.shape} need labels [b] (integers) or [b c] (probabilities), "
      f"got {labels.shape}"
    )
  logits = logits.astype(jnp.float32)
  if mixed:
    if smoothing:
      raise ValueError(
        f"cross_entropy: smoothing {smoothing} with mixed labels [b c], which are soft already; "
        "set smoothing to 0"
      )
    return optax.losses.softmax_cross_entropy(logits, labels.astype(jnp.float32))
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(f"cross_entropy: labels [b] must be integers, got {labels.dtype}")
  # Negative indices would count from the end; the last class is not what a wrong label means.
  labels = jnp.where(labels < 0, logits.shape[-1], labels)
  hard = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
  if not smoothing:
    return hard
  uniform = -jax.nn.log_softmax(logits).mean(axis=-1)
  return (1.0 - smoothing) * hard + smoothing * uniform
