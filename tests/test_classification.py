"""Measures of classification against scikit-learn, counting by hand and closed forms; calibration and intervals."""

import itertools

import numpy as np
import pytest
from sklearn import metrics as sk

from jaxkd.calibration import calibration, equal_count, equal_width
from jaxkd.classification import classification_report, confident_mistakes, probabilities

NAMES = ("a", "b", "c", "d")


def made(n=400, seed=0, sharp=1.5):
  """Logits and labels of a mediocre classifier; some scores are equal."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, 4, n)
  logits = np.round(rng.normal(0, 1, (n, 4)) + sharp * np.eye(4)[labels], 1)
  return logits.astype(np.float32), labels


@pytest.fixture(scope="module")
def found():
  logits, labels = made()
  return logits, labels, classification_report(logits, labels, NAMES)


def test_scores_are_those_of_scikit_learn(found):
  logits, labels, report = found
  p, predicted = probabilities(logits), logits.argmax(1)
  assert report["accuracy"]["value"] == pytest.approx(sk.accuracy_score(labels, predicted), abs=1e-12)
  precision, recall, f1, _ = sk.precision_recall_fscore_support(labels, predicted)
  for i, name in enumerate(NAMES):
    row = report["per_class"][name]
    assert (row["precision"]["value"], row["recall"]["value"], row["f1"]) == pytest.approx(
      (precision[i], recall[i], f1[i]), abs=1e-12
    )
    assert row["auc"] == pytest.approx(sk.roc_auc_score(labels == i, p[:, i]), abs=1e-12)
    assert report["roc"][name]["auc"] == pytest.approx(row["auc"], abs=1e-12)
  macro = {k: report["macro"][k]["value"] for k in ("precision", "recall", "f1", "auc")}
  expected = (precision.mean(), recall.mean(), f1.mean(), sk.roc_auc_score(labels, p, multi_class="ovr"))
  assert tuple(macro.values()) == pytest.approx(expected, abs=1e-12)
  assert report["loss"]["value"] == pytest.approx(sk.log_loss(labels, p), abs=1e-9)
  assert report["brier"]["value"] == pytest.approx(
    sum(sk.brier_score_loss(labels == i, p[:, i]) for i in range(4)), abs=1e-12
  )
  assert report["confusion"] == sk.confusion_matrix(labels, predicted).tolist()


def test_top_k_is_that_of_scikit_learn():
  rng = np.random.default_rng(3)
  logits, labels = rng.normal(size=(300, 4)), rng.integers(0, 4, 300)
  top = classification_report(logits, labels, NAMES, resamples=2)["top_k"]
  assert set(top) == {"2", "3"}
  for k, entry in top.items():
    assert entry["value"] == pytest.approx(sk.top_k_accuracy_score(labels, logits, k=int(k)), abs=1e-12)
    assert entry["low"] < entry["value"] < entry["high"]


def test_ties_count_half_in_the_area(found):
  logits, labels = np.zeros((6, 4), np.float32), np.array([0, 1, 2, 3, 0, 1])
  assert classification_report(logits, labels, NAMES, resamples=2)["macro"]["auc"]["value"] == 0.5


def test_intervals_hold_the_truth_as_often_as_they_say():
  """Brier score and macro F1 of the population, 40 samples of 200: 95 % intervals miss it about twice."""
  logits, labels = made(100_000, seed=1)
  truth = classification_report(logits, labels, NAMES, resamples=2)
  hits = {"brier": 0, "f1": 0, "half": 0}
  for k in range(40):
    part = slice(200 * k, 200 * (k + 1))
    got = classification_report(logits[part], labels[part], NAMES, resamples=200)
    brier, f1 = got["brier"], got["macro"]["f1"]
    hits["brier"] += brier["low"] <= truth["brier"]["value"] <= brier["high"]
    hits["f1"] += f1["low"] <= truth["macro"]["f1"]["value"] <= f1["high"]
    centre, width = (brier["low"] + brier["high"]) / 2, (brier["high"] - brier["low"]) / 4
    hits["half"] += abs(truth["brier"]["value"] - centre) <= width
  assert hits["brier"] >= 35
  assert hits["f1"] >= 35
  assert hits["half"] < 34  # the control: halved intervals


def test_bootstrap_standard_error_is_the_closed_form():
  logits, labels = made(1000)
  brier = ((probabilities(logits) - np.eye(4)[labels]) ** 2).sum(1)
  got = classification_report(logits, labels, NAMES)["brier"]
  assert (got["high"] - got["low"]) / (2 * 1.96) == pytest.approx(brier.std() / np.sqrt(1000), rel=0.08)


def test_a_class_without_images_is_left_out_and_one_never_predicted_has_precision_0():
  logits = np.array([[9, 0, 1, 0], [0, 0, 9, 0], [9, 0, 0, 1]], np.float32)
  report = classification_report(logits, np.array([0, 2, 3]), NAMES)
  assert report["per_class"]["b"]["recall"] is None
  assert report["per_class"]["b"]["auc"] is None
  assert report["per_class"]["d"]["precision"] == {"value": 0.0, "low": None, "high": None}
  assert report["macro"]["recall"]["value"] == pytest.approx(2 / 3)
  assert set(report["roc"]) == {"a", "c", "d"}


def test_calibration_error_by_hand():
  confidence = np.array([0.55, 0.6, 0.95, 0.95, 1.0])
  correct = np.array([True, False, True, True, False])
  got = calibration(confidence, correct, bins=10)
  # bins (0.5, 0.6]: 2 rows, 1 right, sum 1.15; (0.9, 1]: 3 rows, 2 right, sum 2.9
  assert got["ece"] == pytest.approx((abs(1 - 1.15) + abs(2 - 2.9)) / 5)
  assert got["mce"] == pytest.approx(0.3)
  assert got["mean_confidence"] == pytest.approx(confidence.mean())
  assert [(b["count"], b["accuracy"]) for b in got["bins"] if b["count"]] == [
    (2, 0.5),
    (3, pytest.approx(2 / 3)),
  ]
  two = calibration(confidence, correct, bins=2)
  # equal counts: rows 0, 1, 2 and rows 3, 4
  assert two["ece_adaptive"] == pytest.approx((abs(2 - 2.1) + abs(1 - 1.95)) / 5)


def test_bins_hold_their_upper_end():
  assert equal_width(np.array([0.0, 0.1, 0.1000001, 0.5, 1.0]), 10).tolist() == [0, 0, 1, 4, 9]
  assert equal_count(np.array([0.3, 0.1, 0.2, 0.9, 0.8]), 2).tolist() == [0, 0, 0, 1, 1]


def test_the_error_of_a_calibrated_model_is_within_what_chance_gives():
  rng = np.random.default_rng(0)
  below = 0
  for _ in range(40):
    confidence = rng.uniform(0.4, 1, 500)
    got = calibration(confidence, rng.random(500) < confidence, resamples=200)
    below += got["ece"] <= got["ece_if_calibrated"]["high"]
  assert below >= 34
  wrong = calibration(confidence, rng.random(500) < confidence - 0.15)  # the control: too confident
  assert wrong["ece"] > 1.5 * wrong["ece_if_calibrated"]["high"]


def test_mistakes_come_most_confident_first():
  logits, labels = made(50)
  found = confident_mistakes(logits, labels, 5)
  p = probabilities(logits)
  assert len(found) == 5
  assert all(a["confidence"] >= b["confidence"] for a, b in itertools.pairwise(found))
  everything = [p[i].max() for i in range(50) if p[i].argmax() != labels[i]]
  assert found[0]["confidence"] == max(everything)
  assert all(m["true"] == labels[m["index"]] != m["predicted"] for m in found)
  assert len(confident_mistakes(logits, labels, 99)) == len(everything)


@pytest.mark.parametrize(
  ("logits", "labels", "message"),
  [
    (np.zeros((3, 4)), np.zeros(2, int), "must be"),
    (np.zeros((0, 4)), np.zeros(0, int), "n > 0"),
    (np.zeros((1, 4)), np.array([4]), "4 classes"),
  ],
)
def test_arrays_that_do_not_fit_are_refused(logits, labels, message):
  with pytest.raises(ValueError, match=message):
    classification_report(logits, labels, NAMES)
  with pytest.raises(ValueError, match="not within"):
    calibration(np.array([1.2]), np.array([True]))
