"""Analyses as pure functions: curvature, attention locality, similarity, and statistics over seeds."""

from jaxkd.analysis.attention import (
  attention_rollout,
  attention_statistics,
  mean_and_stderr,
  uniform_distance,
)
from jaxkd.analysis.curvature.estimate import TraceEstimate
from jaxkd.analysis.curvature.ggn import ggn_trace
from jaxkd.analysis.curvature.groups import first_component, layer_type
from jaxkd.analysis.curvature.lanczos import Eigenvalues, SpectralDensity, spectral_density, top_eigenvalues
from jaxkd.analysis.curvature.landscape import filter_normalized, loss_slice
from jaxkd.analysis.curvature.sharpness import Sharpness, sharpness
from jaxkd.analysis.hessian import hessian_trace, hessian_vector_product, rademacher_like
from jaxkd.analysis.similarity import cka_matrix, knn_accuracy, linear_probe
from jaxkd.analysis.statistics import (
  Comparison,
  Interval,
  PairedDifference,
  Verdict,
  compare,
  holm,
  mean_interval,
  paired_difference,
  smallest_detectable,
  verdict,
  wilson,
)

__all__ = [
  "Comparison",
  "Eigenvalues",
  "Interval",
  "PairedDifference",
  "Sharpness",
  "SpectralDensity",
  "TraceEstimate",
  "Verdict",
  "attention_rollout",
  "attention_statistics",
  "cka_matrix",
  "compare",
  "filter_normalized",
  "first_component",
  "ggn_trace",
  "hessian_trace",
  "hessian_vector_product",
  "holm",
  "knn_accuracy",
  "layer_type",
  "linear_probe",
  "loss_slice",
  "mean_and_stderr",
  "mean_interval",
  "paired_difference",
  "rademacher_like",
  "sharpness",
  "smallest_detectable",
  "spectral_density",
  "top_eigenvalues",
  "uniform_distance",
  "verdict",
  "wilson",
]
