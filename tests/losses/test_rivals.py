"""Known answers of DKD, DIST, OFA, RKD, attention transfer and similarity preservation, and what they ignore."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from tests.losses import references as ref

RNG = np.random.default_rng(0)
STUDENT, TEACHER = (np.float32(2 * RNG.normal(size=(5, 10))) for _ in range(2))
LABELS = np.array([3, 0, 9, 3, 5])
dkd = jax.jit(losses.dkd, static_argnames=("alpha", "beta", "temperature"))
dist = jax.jit(losses.dist, static_argnames=("beta", "gamma", "temperature"))
ofa = jax.jit(losses.ofa, static_argnames=("epsilon", "temperature"))
rkd = jax.jit(losses.rkd, static_argnames=("distance_weight", "angle_weight"))
attention_transfer = jax.jit(losses.attention_transfer)
similarity_preserving = jax.jit(losses.similarity_preserving)
soft_kd = jax.jit(losses.soft_kd, static_argnames="temperature")


def logs(*rows):
  return jnp.log(jnp.asarray(rows, jnp.float32))


def rotation(width):
  return np.float32(np.linalg.qr(np.random.default_rng(1).normal(size=(width, width)))[0])


# --- DKD ---


def test_dkd_three_classes_by_hand():
  """Teacher (1/2, 1/4, 1/4), student (1/4, 1/4, 1/2), label 0; among the others (1/2, 1/2) and (1/3, 2/3)."""
  target = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
  others = 0.5 * math.log(1.5) + 0.5 * math.log(0.75)
  student, teacher, labels = 4 * logs((0.25, 0.25, 0.5)), 4 * logs((0.5, 0.25, 0.25)), jnp.asarray([0])
  value = dkd(student, teacher, labels)
  np.testing.assert_allclose(value, [16 * (target + 8 * others)], rtol=1e-6)
  np.testing.assert_allclose(dkd(student, teacher, labels, alpha=3.0, beta=0.0), [48 * target], rtol=1e-6)
  # Another label is another split, and the direction of the KL matters.
  assert abs(dkd(student, teacher, labels + 2) - value)[0] > 0.1
  assert abs(dkd(teacher, student, labels) - value)[0] > 0.1


def test_dkd_with_the_teachers_own_weights_is_soft_kd():
  sure = ref.softmax(TEACHER.astype(np.float64) / 4)[np.arange(5), LABELS]
  target = dkd(STUDENT, TEACHER, LABELS, beta=0.0)
  others = dkd(STUDENT, TEACHER, LABELS, alpha=0.0, beta=1.0)
  expected = soft_kd(STUDENT, TEACHER, temperature=4.0)
  np.testing.assert_allclose(target + (1 - sure) * others, expected, rtol=3e-6)
  # Not with the student's probability, and decoupled it is another loss.
  unsure = ref.softmax(STUDENT.astype(np.float64) / 4)[np.arange(5), LABELS]
  assert not np.allclose(target + (1 - unsure) * others, expected, rtol=1e-2)
  assert not np.allclose(target + others, expected, rtol=1e-2)


def test_dkd_teaches_the_other_classes_of_a_sure_teacher():
  """Certain to 1e-13 of the label, the teacher gives soft KD no gradient among the others, but DKD one."""
  teacher = jnp.asarray([[30.0, 2.0, 0.0, 0.0]])
  gradients = []
  for loss in (
    lambda s: soft_kd(s, teacher, temperature=1.0),
    lambda s: dkd(s, teacher, jnp.asarray([0]), temperature=1.0),
  ):
    gradient = np.asarray(jax.grad(lambda s, loss=loss: loss(s).sum())(jnp.asarray([[40.0, 0.0, 0.0, 0.0]])))
    gradients.append(np.abs(gradient[0, 1:]).max())
  assert gradients[0] < 1e-9
  assert gradients[1] > 0.1


def test_dkd_of_certain_probabilities_stays_exact():
  """log p and log (1 - p) at p = 1 - 2e-9, where 1 - p is 0 in float32."""
  value = dkd(jnp.zeros((1, 2)), jnp.asarray([[20.0, 0.0]]), jnp.asarray([1]), beta=0.0, temperature=1.0)
  p = 1 / (1 + math.exp(20.0))
  expected = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
  np.testing.assert_allclose(value, [expected], rtol=1e-6)


@pytest.mark.parametrize("loss", [dkd, ofa])
def test_a_label_that_no_class_has_gives_nan(loss):
  value = loss(STUDENT, TEACHER, np.array([-1, 10, 9, 0, 3]))
  np.testing.assert_array_equal(np.isnan(value), [True, True, False, False, False])


# --- DIST ---


def test_dist_two_samples_by_hand():
  """Rows centred: (1 0 -1)/6 against (0 1 -1)/6, then (-1 0 1)/6 against (0 -1 1)/6: correlation 1/2 each.

  Columns: of the teacher falling, constant, rising; of the student constant, falling, rising: 0, 0, 1.
  """
  teacher = logs((1 / 2, 1 / 3, 1 / 6), (1 / 6, 1 / 3, 1 / 2))
  student = logs((1 / 3, 1 / 2, 1 / 6), (1 / 3, 1 / 6, 1 / 2))
  np.testing.assert_allclose(dist(student, teacher), 1 / 2 + 2 / 3, rtol=1e-6)
  np.testing.assert_allclose(dist(student, teacher, beta=3.0, gamma=0.0), 3 / 2, rtol=1e-6)
  hot = dist(2 * student, 2 * teacher, temperature=2.0)
  np.testing.assert_allclose(hot, 4 * (1 / 2 + 2 / 3), rtol=1e-6)


def test_dist_ignores_a_linear_map_of_the_probabilities_that_kd_pays_for():
  teacher = ref.softmax(TEACHER.astype(np.float64))
  student = logs(*(0.1 + 0.4 * (teacher - 0.1)))  # sums to 1 still
  np.testing.assert_allclose(dist(student, TEACHER), 0.0, atol=2e-6)
  assert soft_kd(student, TEACHER, temperature=1.0).max() > 0.1
  np.testing.assert_allclose(dist(-STUDENT, STUDENT, temperature=1e3) / 1e6, 4.0, rtol=1e-3)  # opposed


def test_dist_without_variation_has_no_gradient():
  step = jax.value_and_grad(lambda s, gamma: dist(s, TEACHER, beta=0.0, gamma=gamma))
  constant = np.tile(STUDENT[:1], (5, 1))
  value, gradient = step(constant, 1.0)
  assert value == 1.0
  np.testing.assert_array_equal(gradient, 0.0)
  assert np.abs(step(STUDENT, 1.0)[1]).max() > 1e-3


# --- OFA ---


def test_ofa_two_classes_by_hand():
  """Teacher (3/4, 1/4), student (1/2, 1/2), label 0: weights (7/4)^e - 1 and (1/4)^e, each times log 2."""
  student, teacher, labels = jnp.zeros((1, 2)), logs((0.75, 0.25)), jnp.asarray([0])
  for epsilon, expected in ((1.0, 1.0), (2.0, 33 / 16 + 1 / 16), (1.5, 1.75**1.5 - 1 + 1 / 8)):
    value = ofa(student, teacher, labels, epsilon=epsilon)
    np.testing.assert_allclose(value, [expected * math.log(2)], rtol=1e-6)
  assert abs(ofa(student, teacher, labels + 1, epsilon=2.0)[0] - 34 / 16 * math.log(2)) > 0.1


def test_ofa_with_epsilon_1_is_kl_plus_the_teachers_entropy():
  p = ref.softmax(TEACHER.astype(np.float64))
  entropy = -(p * np.log(p)).sum(-1)
  kl = soft_kd(STUDENT, TEACHER, temperature=1.0)
  np.testing.assert_allclose(ofa(STUDENT, TEACHER, LABELS), kl + entropy, rtol=2e-6)
  ours, plain = (
    jax.grad(lambda s, f=f: f(s).sum())(STUDENT)
    for f in (lambda s: ofa(s, TEACHER, LABELS), lambda s: soft_kd(s, TEACHER, temperature=1.0))
  )
  np.testing.assert_allclose(ours, plain, atol=3e-7)
  assert not np.allclose(ofa(STUDENT, TEACHER, LABELS, epsilon=1.5), kl + entropy, rtol=0.05)


# --- RKD ---

# Sides 3, 4, 5 (mean 4, cosines 0, 3/5, 4/5) and an equilateral triangle in space (1, 1, 1; all 1/2).
RIGHT, EQUILATERAL = np.float32([[0, 0], [3, 0], [0, 4]]), np.eye(3, dtype=np.float32)


def test_rkd_two_triangles_by_hand():
  distances = 4 * (0.25**2 / 2) / 9
  angles = 2 * (0.5**2 + 0.1**2 + 0.3**2) / 2 / 27
  only_distances = rkd(RIGHT, EQUILATERAL, angle_weight=0.0)
  np.testing.assert_allclose(only_distances, 25 * distances, rtol=1e-6)
  only_angles = rkd(RIGHT, EQUILATERAL, distance_weight=0.0)
  np.testing.assert_allclose(only_angles, 50 * angles, rtol=1e-6)
  np.testing.assert_allclose(rkd(RIGHT, EQUILATERAL), 25 * distances + 50 * angles, rtol=1e-6)


def test_rkd_is_linear_beyond_1():
  """Five points at 0 and one at 1 have nonzero distances 1; spread ones differ from them by more than 1."""
  far = np.float32([[0], [0], [0], [0], [0], [1]])
  near = np.float32([[0], [1], [2], [3], [4], [100]])
  expected = 25 * ref.huber(ref.rkd_distances(near) - ref.rkd_distances(far)).mean()
  assert np.abs(ref.rkd_distances(near) - ref.rkd_distances(far)).max() > 1
  np.testing.assert_allclose(rkd(near, far, angle_weight=0.0), expected, rtol=1e-6)
  square = 25 * (0.5 * (ref.rkd_distances(near) - ref.rkd_distances(far)) ** 2).mean()
  assert abs(square - expected) > 0.1


@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e15])
def test_rkd_ignores_offset_rotation_and_scale(scale):
  x, y = np.float32(RNG.normal(size=(6, 4))), np.float32(RNG.normal(size=(6, 3)))
  moved = np.float32(scale * (x + 1) @ rotation(4))
  np.testing.assert_allclose(rkd(moved, y), rkd(x, y), rtol=1e-5)
  np.testing.assert_allclose(rkd(moved, x), 0.0, atol=1e-9)
  stretched = x * np.float32([5, 1, 1, 1])
  assert rkd(stretched, x) > 0.1


def test_rkd_of_coinciding_samples():
  """Twins count as pairs of distance 0 and stay out of the mean; the gradient is finite and moves the others."""
  x = np.float32(RNG.normal(size=(5, 4)))
  x[1] = x[0]
  y = np.float32(RNG.normal(size=(5, 3)))
  value, gradient = jax.jit(jax.value_and_grad(losses.rkd))(x, y)
  expected = 25 * ref.huber(ref.rkd_distances(x.astype(np.float64)) - ref.rkd_distances(y)).mean()
  np.testing.assert_allclose(rkd(x, y, angle_weight=0.0), expected, rtol=2e-6)
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()
  assert np.abs(gradient[2:]).max() > 1e-3


# --- attention transfer ---


def test_attention_transfer_by_hand():
  """Maps (3, 4) / 5 and (4, 3) / 5 of squared activations: both positions differ by 1/5."""
  student = jnp.sqrt(jnp.asarray([3.0, 4.0])).reshape(1, 1, 2, 1)
  teacher = jnp.sqrt(jnp.asarray([[5.0, 6.0, 1.0], [3.0, 3.0, 3.0]])).reshape(1, 1, 2, 3)  # means 4 and 3
  np.testing.assert_allclose(attention_transfer(student, teacher), [0.04], rtol=1e-6)


@pytest.mark.parametrize("scale", [-1e-18, 1e9])
def test_attention_transfer_ignores_channels_signs_and_scale(scale):
  x, y = np.float32(RNG.normal(size=(2, 3, 4, 6))), np.float32(RNG.normal(size=(2, 3, 4, 5)))
  value = attention_transfer(x, y)
  assert (value > 1e-3).all()
  np.testing.assert_allclose(attention_transfer(np.float32(scale * x[..., ::-1]), y), value, rtol=1e-5)
  assert not np.allclose(attention_transfer(x[:, :, ::-1], y), value, rtol=0.01)  # positions do count


# --- similarity preservation ---


def test_similarity_preserving_by_hand():
  """Rows (1, 0) and (0, 1) against (1, 1) / sqrt 2 twice: each of two rows is off by 2 - sqrt 2."""
  student, teacher = jnp.eye(2), jnp.ones((2, 3, 1, 1))
  np.testing.assert_allclose(similarity_preserving(student, teacher), 2 * (2 - math.sqrt(2)) / 4, rtol=1e-6)


@pytest.mark.parametrize("scale", [-1e-18, 1e15])
def test_similarity_preserving_ignores_rotation_and_scale(scale):
  x, y = np.float32(RNG.normal(size=(6, 4))), np.float32(RNG.normal(size=(6, 3, 2)))
  value = similarity_preserving(x, y)
  np.testing.assert_allclose(similarity_preserving(np.float32(scale * x @ rotation(4)), y), value, rtol=1e-5)
  np.testing.assert_allclose(similarity_preserving(x @ rotation(4), x), 0.0, atol=1e-12)
  assert abs(similarity_preserving(x + 1, y) - value) > 0.01


# --- several devices ---

SCRIPT = """
import json, jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxkd.losses import dist, rkd, similarity_preserving

rng = np.random.default_rng(0)
arrays = [np.float32(rng.normal(size=(8, 5))) for _ in range(2)]
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
split = [jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))) for x in arrays]
for loss in (dist, rkd, similarity_preserving):
  step = jax.jit(jax.value_and_grad(loss))
  (one, gradient), (eight, gradient8) = step(*arrays), step(*split)
  halves = np.mean([float(step(*(x[part] for x in arrays))[0]) for part in (slice(4), slice(4, 8))])
  print(json.dumps([float(one), float(eight), float(halves), gradient.tolist(), gradient8.tolist()]))
"""


def test_eight_devices_see_the_whole_batch():
  """And the subprocess optimises as a run does: what XLA fuses there, it does not in the other tests."""
  env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
  root = Path(__file__).parents[2]
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT], env=env, cwd=root, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  rows = [json.loads(line) for line in done.stdout.splitlines()]
  rng = np.random.default_rng(0)
  arrays = [np.float32(rng.normal(size=(8, 5))).astype(np.float64) for _ in range(2)]
  references = (ref.dist, ref.rkd, ref.similarity_preserving)
  for reference, (one, eight, halves, *gradients) in zip(references, rows, strict=True):
    np.testing.assert_allclose([one, eight], reference(*arrays), rtol=2e-6)
    gradient, gradient8 = map(np.asarray, gradients)
    np.testing.assert_allclose(gradient8, gradient, rtol=1e-4, atol=2e-5 * np.abs(gradient).max())
    assert abs(halves - one) > 0.01 * one, "averaging over parts of the batch is another loss"


# --- refusals ---

FEATURES, MAPS = np.zeros((4, 3), np.float32), np.zeros((2, 3, 3, 5), np.float32)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: losses.dkd(STUDENT, TEACHER[:, :9], LABELS), r"dkd: student logits \(5, 10\) and teacher logi"),
    (lambda: losses.dkd(STUDENT, TEACHER, LABELS, temperature=0.0), r"dkd: temperature is 0\.0"),
    (
      lambda: losses.dkd(STUDENT, TEACHER, TEACHER),
      r"dkd: logits \(5, 10\) need integer labels \[b\], got f",
    ),
    (lambda: losses.dkd(STUDENT[:, :1], TEACHER[:, :1], LABELS), "dkd: 1 classes"),
    (lambda: losses.dist(STUDENT, TEACHER[:4]), "dist: student logits"),
    (lambda: losses.dist(STUDENT, TEACHER, temperature=-1.0), r"dist: temperature is -1\.0"),
    (lambda: losses.ofa(STUDENT, TEACHER, LABELS[:4]), r"ofa: logits \(5, 10\) need integer labels"),
    (lambda: losses.ofa(STUDENT, TEACHER, LABELS, epsilon=0.0), r"ofa: epsilon is 0\.0"),
    (lambda: losses.rkd(FEATURES, FEATURES[:3]), r"rkd: student \(4, 3\) and teacher \(3, 3\)"),
    (lambda: losses.rkd(MAPS, MAPS), "rkd: student"),
    (lambda: losses.attention_transfer(MAPS, MAPS[:, :2]), "resize_grid"),
    (lambda: losses.similarity_preserving(FEATURES, FEATURES[:3]), "similarity_preserving: student"),
    (lambda: losses.similarity_preserving(FEATURES[:, 0], FEATURES), r"student \(4,\)"),
  ],
)
def test_refusals(call, message):
  with pytest.raises(ValueError, match=message):
    call()
