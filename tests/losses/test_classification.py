"""Cross entropy: closed forms, smoothing, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses

cross_entropy = jax.jit(losses.cross_entropy, static_argnames="smoothing")
LOGITS = jnp.asarray([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])


def test_equal_logits_cost_log_c():
  np.testing.assert_allclose(cross_entropy(LOGITS, jnp.asarray([0, 2]))[1], np.log(3), rtol=1e-6)


def test_by_hand():
  expected = np.log(np.exp(2) + 2) - 2
  np.testing.assert_allclose(cross_entropy(LOGITS, jnp.asarray([0, 0]))[0], expected, rtol=1e-6)


def test_mixed_labels_mix_the_losses():
  mixed = jnp.asarray([[0.3, 0.7, 0.0], [0.3, 0.7, 0.0]])
  first, second = (cross_entropy(LOGITS, jnp.full(2, k)) for k in (0, 1))
  np.testing.assert_allclose(cross_entropy(LOGITS, mixed), 0.3 * first + 0.7 * second, rtol=1e-6)


def test_smoothing_spreads_over_all_classes_the_right_one_included():
  smoothed = np.asarray(cross_entropy(LOGITS, jnp.asarray([0, 0]), smoothing=0.3))[0]
  by_class = [float(cross_entropy(LOGITS, jnp.full(2, k))[0]) for k in range(3)]
  np.testing.assert_allclose(smoothed, 0.8 * by_class[0] + 0.1 * by_class[1] + 0.1 * by_class[2], rtol=1e-6)
  # The other reading, 0.3 over the wrong classes only, is another number.
  assert abs(smoothed - (0.7 * by_class[0] + 0.15 * by_class[1] + 0.15 * by_class[2])) > 0.1


@pytest.mark.parametrize("label", [-1, 3])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_label_out_of_range_is_nan_not_another_class(label, smoothing):
  value = cross_entropy(LOGITS, jnp.asarray([label, 0]), smoothing=smoothing)
  assert np.isnan(value[0])
  assert np.isfinite(value[1])


@pytest.mark.parametrize(
  ("labels", "options", "message"),
  [
    (jnp.zeros(3, int), {}, r"got \(3,\)"),
    (jnp.zeros((2, 4)), {}, r"got \(2, 4\)"),
    (jnp.zeros(2), {}, "must be integers, got float32"),
    (jnp.zeros(2, int), {"smoothing": 1.0}, r"smoothing is 1.0; it must be in \[0, 1\)"),
    (jnp.zeros((2, 3)), {"smoothing": 0.1}, "set smoothing to 0"),
  ],
)
def test_refusals(labels, options, message):
  with pytest.raises(ValueError, match=message):
    cross_entropy(LOGITS, labels, **options)
