"""Reports: plain JSON data in, figures, tables and one self-contained HTML page out.

This room computes no result. What it is handed (and what `study.json` and `<name>_forensics.json` hold)
is described here; a wrong schema version or a missing entry raises ValueError naming it. Further keys are
allowed and ignored.
Numbers may be null where a statistic does not exist, for example the interval of a single seed.

`jaxkd.forensics/2` (l layers, h heads; measured: {value, low, high}, with arrays where a shape is given)::

  schema, date, command, hardware: str     versions: {package: version}
  data: {name, split, images, classes}
  settings: {metrics: [str], images, hessian_images, probes}     seconds: {predicted, taken}
  models: [{name, checkpoint, model: str, parameters: int, digest: str, grid: [rows, columns] | null,
            special_tokens, step: int, seconds,
            differs: {config key: value},                         # where this model differs from the first
            accuracy: {cls | mean | dist: measured},              # fractions, Wilson 95 %
            hessian: {trace, stderr, low, high, probes, images, loss,
                      per_block, per_type, per_head: {part: [mean, stderr]}} | null,
            eigenvalues: {values, errors [k], iterations, starts, negative_share: [mean, stderr],
                          density: {points, value, stderr [200]}},
            landscape: {steps [k], plane [k k] of the loss, sharpness: {plain, adaptive: {rho, value, one_step}},
                        ggn: {trace, stderr, probes}},
            attention: {images, uniform_distance, mean_distance [l h], distance_to_uniform [l h],
                        entropy [l h], cls_dispersion [l h], cls_self_attention [l h],
                        collapsed [l h] of bool,
                        layer_distance: {mean: [l], stderr: [l]},                        # distances in patches
                        model: {statistic: measured}, layers: {statistic: measured [l]}, # bootstrap over images
                        by_class: {statistic: measured [classes]}} | null,
            receptive_field: {images, layers, mean_distance: measured [l], uniform_distance [l],
                              radius: {share: [l]}, energy [rows columns] of the last layer}    # pixels
            spectrum: {images, layers: {layer: {frequencies [r], value, low, high [r]}}},       # log amplitude
            robustness: {images, shuffle, occlude: [{patch, share, moved, value, low, high}],
                         cue_conflict: {global_share: measured, follow_global, follow_local, neither}},
            probes: {train_images, images, layers, knn, linear: [measured per layer]}}]
  cka: [{a, b: model name, layers_a, layers_b, matrix, stderr [la lb], kernel, images, estimator}]  # a == b: self
  alignment: [{a, b, layers_a, layers_b, procrustes, mutual_knn [la lb], k, images}]
  comparisons: [{metric, a, b, difference, low, high, level, p, p_holm, n}]    # b - a, paired by image or probe

  What was not asked for is absent or empty. Version 2 has everything of 1; new are `kernel` and `stderr` of cka, its
  estimator (batches instead of all images at once), `low` and `high` of hessian, and all keys 1 did not have.

`jaxkd.study/1`::

  schema, name, question, date, command, hardware: str   versions, seeds: [int], conditions, warnings: [str]
  data: {name, train, validation, test, classes, image_size}
  student: {model, parameters, steps, batch_size, optimizer, lr}
  metrics: [{key, label, unit, scale, digits, higher_is: str | null}]     # shown value = scale * stored value
  arms: {key: {label, description, runs: [{seed, <metric key>: number}],
               summary: {metric key: {mean, low, high, sd, n, bootstrap_low, bootstrap_high}},   # t; percentile
               distance_per_layer: [[l] per seed], terms: {name: {kind, weight, ...}}}}
  baseline: arm key
  teachers: [{key, label, model, parameters, trained_on, rows: [[what, fraction or text]]}]
  comparisons: [{metric, a, b: arm key, mean, low, high, p, p_holm, sd, n, level,    # difference b - a, paired
                 bootstrap_low, bootstrap_high, effect, g, g_low, g_high,            # d_z and Hedges' g with 95 %
                 power: {power, detectable, seeds_for_observed, smallest, seeds_for_smallest} | null}]
  verdicts: [{claim, metric, order: [arm key], verdict: supported | contradicted | undecided, reason,
              power: sentence, where undecided}]
  curves: {arm key: {step: [..],
                     train_loss, validation_accuracy: {mean, low, high: [..], step: [..] if its own},
                     terms, gradient_share: {term: [..]}}}

`jaxkd.training/1`::

  schema, name: str   date, command, hardware, versions, config: as above, optional
  warnings: [str], optional
  rows: [{step: int, <key>: number}]    # as in metrics.jsonl; a row need not have every key

  Drawn are `loss`, `lr`, `validation/accuracy_cls`, `loss/<term>` (the term's value before its weight) and
  `gradient/<term>` (the norm of the weighted term's own gradient); the table has first and last of all.

`jaxkd.evaluation/2` (measured: {value, low, high}, an estimate with its 95 % interval over images)::

  schema, date, command, hardware, versions   name, checkpoint, model, digest, data, split: str   step: int
  heads: {cls | mean | dist: {examples, accuracy, top_k {k: ..}, loss, brier: measured,
                              macro: {precision, recall, f1, auc: measured},
                              per_class: {name: {precision, recall: measured, f1, auc, examples, predicted}},
                              confusion [c c] by (true, predicted), roc: {name: {auc, fpr, tpr}},
                              calibration: {ece, ece_adaptive, mce, mean_confidence, ece_if_calibrated {mean, high},
                                            bins: [{low, high, count, confidence, accuracy, accuracy_low, _high}]}}}
  mistakes: [{index, true, predicted: int, confidence, probability_of_true}]    # of the cls head, surest first
  tta: {views: int, heads: as above}, optional

  Version 1 had bare numbers where 2 has intervals, and no calibration, Brier score or mistakes.
"""

from jaxkd.report.evaluation import evaluation_table
from jaxkd.report.page import (
  evaluation_report,
  forensics_console_table,
  forensics_exports,
  forensics_report,
  runs_console_table,
  runs_exports,
  runs_report,
  study_exports,
  study_report,
  training_report,
)
from jaxkd.report.predictions import explanation_picture, predictions_table
from jaxkd.report.preview import preview_figure
from jaxkd.report.tables import console_table
from jaxkd.report.text import slugs

__all__ = [
  "console_table",
  "evaluation_report",
  "evaluation_table",
  "explanation_picture",
  "forensics_console_table",
  "forensics_exports",
  "forensics_report",
  "predictions_table",
  "preview_figure",
  "runs_console_table",
  "runs_exports",
  "runs_report",
  "slugs",
  "study_exports",
  "study_report",
  "training_report",
]
