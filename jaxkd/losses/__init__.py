"""Pure losses: arrays in, float32 [b] out, or a scalar where the term couples the batch."""

from jaxkd.losses.attention_transfer import attention_transfer
from jaxkd.losses.cka import cka, cka_loss
from jaxkd.losses.classification import cross_entropy
from jaxkd.losses.correlation import correlation_kl
from jaxkd.losses.dino import OutputEntropy, dino, output_entropy, update_center
from jaxkd.losses.gram import gram
from jaxkd.losses.kd import hard_kd, soft_kd
from jaxkd.losses.locality import attention_distance, locality
from jaxkd.losses.logit_rivals import dist, dkd, ofa
from jaxkd.losses.relational import rkd, similarity_preserving
from jaxkd.losses.tokens import normalize_tokens, resize_grid, token_cosine
from jaxkd.losses.whitening import Whitening, fit_whitening, whiten

__all__ = [
  "OutputEntropy",
  "Whitening",
  "attention_distance",
  "attention_transfer",
  "cka",
  "cka_loss",
  "correlation_kl",
  "cross_entropy",
  "dino",
  "dist",
  "dkd",
  "fit_whitening",
  "gram",
  "hard_kd",
  "locality",
  "normalize_tokens",
  "ofa",
  "output_entropy",
  "resize_grid",
  "rkd",
  "similarity_preserving",
  "soft_kd",
  "token_cosine",
  "update_center",
  "whiten",
]
