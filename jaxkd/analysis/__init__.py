"""Analyses as pure functions: curvature, attention locality, similarity, saliency, and statistics over seeds."""

from jaxkd.analysis.alignment import mutual_knn_matrix, procrustes_matrix
from jaxkd.analysis.attention import (
  attention_rollout,
  attention_statistics,
  mean_and_stderr,
  rollout_statistics,
  uniform_distance,
)
from jaxkd.analysis.bootstrap import Estimate, bootstrap_class_means, bootstrap_few, bootstrap_mean
from jaxkd.analysis.curvature.estimate import TraceEstimate
from jaxkd.analysis.curvature.ggn import ggn_trace
from jaxkd.analysis.curvature.groups import first_component, layer_type
from jaxkd.analysis.curvature.lanczos import Eigenvalues, SpectralDensity, spectral_density, top_eigenvalues
from jaxkd.analysis.curvature.landscape import filter_normalized, loss_slice
from jaxkd.analysis.curvature.sharpness import Sharpness, sharpness
from jaxkd.analysis.hessian import hessian_trace, hessian_vector_product, rademacher_like
from jaxkd.analysis.layers import LayerAccuracy, Shown, common_grid, layer_probes, layer_rows, model_cka
from jaxkd.analysis.locality import attention_by_class, attention_per_image, summarize_attention
from jaxkd.analysis.power import detectable_effect, hedges_g, power, sd_factors, seeds_needed
from jaxkd.analysis.receptive_field import ReceptiveField, effective_receptive_field
from jaxkd.analysis.robustness import CueConflict, Robustness, cue_conflict, robustness_curve
from jaxkd.analysis.saliency import feature_maps, saliency
from jaxkd.analysis.similarity import (
  CkaEstimate,
  cka_accumulate,
  cka_finish,
  cka_matrix,
  knn_accuracy,
  linear_probe,
)
from jaxkd.analysis.spectrum import feature_spectra, fourier_spectrum, spectrum_frequencies
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
  "CkaEstimate",
  "Comparison",
  "CueConflict",
  "Eigenvalues",
  "Estimate",
  "Interval",
  "LayerAccuracy",
  "PairedDifference",
  "ReceptiveField",
  "Robustness",
  "Sharpness",
  "Shown",
  "SpectralDensity",
  "TraceEstimate",
  "Verdict",
  "attention_by_class",
  "attention_per_image",
  "attention_rollout",
  "attention_statistics",
  "bootstrap_class_means",
  "bootstrap_few",
  "bootstrap_mean",
  "cka_accumulate",
  "cka_finish",
  "cka_matrix",
  "common_grid",
  "compare",
  "cue_conflict",
  "detectable_effect",
  "effective_receptive_field",
  "feature_maps",
  "feature_spectra",
  "filter_normalized",
  "first_component",
  "fourier_spectrum",
  "ggn_trace",
  "hedges_g",
  "hessian_trace",
  "hessian_vector_product",
  "holm",
  "knn_accuracy",
  "layer_probes",
  "layer_rows",
  "layer_type",
  "linear_probe",
  "loss_slice",
  "mean_and_stderr",
  "mean_interval",
  "model_cka",
  "mutual_knn_matrix",
  "paired_difference",
  "power",
  "procrustes_matrix",
  "rademacher_like",
  "robustness_curve",
  "rollout_statistics",
  "saliency",
  "sd_factors",
  "seeds_needed",
  "sharpness",
  "smallest_detectable",
  "spectral_density",
  "spectrum_frequencies",
  "summarize_attention",
  "top_eigenvalues",
  "uniform_distance",
  "verdict",
  "wilson",
]
