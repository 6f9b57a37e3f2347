"""Analyses as pure functions: curvature, attention locality, similarity, and statistics over seeds."""

from jaxkd.analysis.attention import (
  attention_rollout,
  attention_statistics,
  mean_and_stderr,
  uniform_distance,
)
from jaxkd.analysis.hessian import TraceEstimate, hessian_trace, hessian_vector_product, rademacher_like
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
  "Interval",
  "PairedDifference",
  "TraceEstimate",
  "Verdict",
  "attention_rollout",
  "attention_statistics",
  "cka_matrix",
  "compare",
  "hessian_trace",
  "hessian_vector_product",
  "holm",
  "knn_accuracy",
  "linear_probe",
  "mean_and_stderr",
  "mean_interval",
  "paired_difference",
  "rademacher_like",
  "smallest_detectable",
  "uniform_distance",
  "verdict",
  "wilson",
]
