"""Pure losses: arrays in, float32 [b] out, or a scalar where the term couples the batch."""

from jaxkd.losses.cka import cka, cka_loss
from jaxkd.losses.classification import cross_entropy
from jaxkd.losses.correlation import correlation_kl
from jaxkd.losses.dino import OutputEntropy, dino, output_entropy, update_center
from jaxkd.losses.gram import gram
from jaxkd.losses.kd import hard_kd, soft_kd
from jaxkd.losses.tokens import normalize_tokens, resize_grid, token_cosine

__all__ = [
  "OutputEntropy",
  "cka",
  "cka_loss",
  "correlation_kl",
  "cross_entropy",
  "dino",
  "gram",
  "hard_kd",
  "normalize_tokens",
  "output_entropy",
  "resize_grid",
  "soft_kd",
  "token_cosine",
  "update_center",
]
