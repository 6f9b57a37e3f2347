"""What every loss promises: the reference's value and gradient, float32 [b], jit, vmap, bf16, finiteness."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from tests.losses import references as ref

B, N, D, E, C = 3, 7, 5, 4, 6
TEACHER_LABELS = np.array([1, 0, 5])
MIXED = np.array([[0.25, 0.75, 0, 0, 0, 0], [0, 0, 1.0, 0, 0, 0], [0.1, 0.2, 0.3, 0.4, 0, 0]])
CENTER = np.linspace(-0.2, 0.3, C)
LOGITS, TOKENS, OTHER, FEATURES, VIEWS = (B, C), (B, N, D), (B, N, E), (8, D), (4, B, C)
MAPS, ATTENTION, GRID = (B, 3, 2, D), (B, 2, 6, 6), (2, 3)


def per_image(f, **options):
  return lambda s, t: np.array([f(a, b, **options) for a, b in zip(s, t, strict=True)])


def pooled(f, **options):
  return lambda s, t: f(s.mean(1), t.mean(1), **options)


def one_minus_cka(s, t, **options):
  return 1 - ref.cka(s, t, **options)


def labelled(loss, **options):
  """The loss with the labels of its first images, so that fewer than three will do."""
  return lambda s, t: loss(s, t, jnp.asarray(TEACHER_LABELS[: len(s)]), **options)


def labelled_reference(reference, **options):
  return lambda s, t: reference(s, t, TEACHER_LABELS, **options)


def attended(loss, target, **options):
  """The term has no teacher. Magnitudes stand for attention (rows are renormalised): exact in bf16, zeros too."""
  return lambda s, _: loss(abs(s), target, grid=GRID, special_tokens=0, **options)


# name: (loss, reference, student shape, teacher shape); arrays in, [b] or a scalar out
CASES = {
  "ce": (
    lambda s, t: losses.cross_entropy(s, jnp.asarray(TEACHER_LABELS)),
    lambda s, t: ref.cross_entropy(s, TEACHER_LABELS),
    LOGITS,
    LOGITS,
  ),
  "ce_smooth": (
    lambda s, t: losses.cross_entropy(s, jnp.asarray(TEACHER_LABELS), smoothing=0.1),
    lambda s, t: ref.cross_entropy(s, TEACHER_LABELS, 0.1),
    LOGITS,
    LOGITS,
  ),
  "ce_mixed": (
    lambda s, t: losses.cross_entropy(s, jnp.asarray(MIXED)),
    lambda s, t: ref.cross_entropy(s, MIXED),
    LOGITS,
    LOGITS,
  ),
  "soft_kd": (losses.soft_kd, ref.soft_kd, LOGITS, LOGITS),
  "soft_kd_tau1": (
    partial(losses.soft_kd, temperature=1.0),
    partial(ref.soft_kd, temperature=1.0),
    LOGITS,
    LOGITS,
  ),
  "hard_kd": (losses.hard_kd, ref.hard_kd, LOGITS, LOGITS),
  "cosine": (losses.token_cosine, ref.token_cosine, TOKENS, TOKENS),
  "mse": (
    partial(losses.token_cosine, metric="mse"),
    partial(ref.token_cosine, metric="mse"),
    TOKENS,
    TOKENS,
  ),
  "correlation": (losses.correlation_kl, per_image(ref.correlation), TOKENS, OTHER),
  "correlation_reverse": (
    partial(losses.correlation_kl, direction="teacher||student", temperature=0.3),
    per_image(ref.correlation, direction="teacher||student", temperature=0.3),
    TOKENS,
    OTHER,
  ),
  "correlation_diagonal": (
    partial(losses.correlation_kl, keep_diagonal=True),
    per_image(ref.correlation, keep_diagonal=True),
    TOKENS,
    OTHER,
  ),
  "correlation_frobenius": (
    partial(losses.correlation_kl, metric="frobenius"),
    per_image(ref.correlation, metric="frobenius"),
    TOKENS,
    OTHER,
  ),
  "correlation_samples": (
    partial(losses.correlation_kl, over="samples"),
    ref.correlation,
    FEATURES,
    (8, E),
  ),
  "correlation_pooled": (
    partial(losses.correlation_kl, over="samples"),
    pooled(ref.correlation),
    TOKENS,
    (B, N + 2, E),
  ),
  "cka": (losses.cka_loss, per_image(one_minus_cka), TOKENS, OTHER),
  "cka_biased": (
    partial(losses.cka_loss, debiased=False),
    per_image(one_minus_cka, debiased=False),
    TOKENS,
    OTHER,
  ),
  "cka_samples": (partial(losses.cka_loss, over="samples"), one_minus_cka, FEATURES, (8, E)),
  "cka_pooled": (partial(losses.cka_loss, over="samples"), pooled(one_minus_cka), (8, 3, D), (8, 2, E)),
  "gram": (losses.gram, ref.gram, TOKENS, OTHER),
  "gram_published": (
    partial(losses.gram, published=True),
    partial(ref.gram, published=True),
    TOKENS,
    OTHER,
  ),
  "dino": (
    lambda s, t: losses.dino(s, t, jnp.asarray(CENTER, jnp.float32)),
    lambda s, t: ref.dino(s, t, CENTER),
    VIEWS,
    (2, B, C),
  ),
  "dkd": (labelled(losses.dkd), labelled_reference(ref.dkd), LOGITS, LOGITS),
  "dkd_options": (
    labelled(losses.dkd, alpha=2.0, beta=0.5, temperature=1.0),
    labelled_reference(ref.dkd, alpha=2.0, beta=0.5, temperature=1.0),
    LOGITS,
    LOGITS,
  ),
  "dist": (losses.dist, ref.dist, (8, C), (8, C)),
  "dist_options": (
    partial(losses.dist, beta=2.0, gamma=0.5, temperature=2.0),
    partial(ref.dist, beta=2.0, gamma=0.5, temperature=2.0),
    (8, C),
    (8, C),
  ),
  "ofa": (labelled(losses.ofa), labelled_reference(ref.ofa), LOGITS, LOGITS),
  "ofa_options": (
    labelled(losses.ofa, epsilon=1.5, temperature=2.0),
    labelled_reference(ref.ofa, epsilon=1.5, temperature=2.0),
    LOGITS,
    LOGITS,
  ),
  "rkd": (losses.rkd, ref.rkd, (5, D), (5, E)),
  "rkd_distances": (
    partial(losses.rkd, angle_weight=0.0),
    partial(ref.rkd, angle_weight=0.0),
    (5, D),
    (5, E),
  ),
  "attention_transfer": (losses.attention_transfer, ref.attention_transfer, MAPS, (B, 3, 2, E)),
  "similarity": (losses.similarity_preserving, ref.similarity_preserving, (5, 3, D), (5, 2, 2, E)),
  "locality": (
    attended(losses.locality, 0.5),
    attended(ref.locality, 0.5),
    ATTENTION,
    (B, 1),
  ),
  "locality_relative": (
    attended(losses.locality, 0.5, relative=True),
    attended(ref.locality, 0.5, relative=True),
    ATTENTION,
    (B, 1),
  ),
}
# A KL of order 0.05 is the difference of numbers of order 1; temperature 4 multiplies its rounding by 16, and
# DKD by 8 more.
ROUNDING = {"soft_kd": 4e-6, "dkd": 8e-6}
# Options share their function's way in and out; these stand for all where a test compiles anew.
MAIN = ("ce_smooth", "ce_mixed", "soft_kd", "hard_kd", "cosine", "mse", "correlation", "correlation_samples")
MAIN += ("cka", "cka_samples", "gram", "dino")
MAIN += ("dkd", "dist", "ofa_options", "rkd", "attention_transfer", "similarity", "locality")
COUPLED = {name for name in CASES if name.endswith(("samples", "pooled"))}
COUPLED |= {"dist", "dist_options", "rkd", "rkd_distances", "similarity"}


@cache
def compiled(name):
  """(student, teacher) -> value, gradient of its sum; one compilation per shape serves the tests below."""
  loss = CASES[name][0]

  def summed(student, teacher):
    value = loss(student, teacher)
    return value.sum(), value

  def step(student, teacher):
    gradient, value = jax.grad(summed, has_aux=True)(student, teacher)
    return value, gradient

  return jax.jit(step)


def inputs(name):
  rng = np.random.default_rng(sum(map(ord, name)))
  return [np.float32(rng.normal(size=shape)) for shape in CASES[name][2:]]


@pytest.fixture(params=CASES)
def case(request):
  return request.param, CASES[request.param][1], *inputs(request.param)


def test_value_shape_and_dtype(case):
  name, reference, student, teacher = case
  value, _ = compiled(name)(student, teacher)
  assert value.dtype == jnp.float32
  assert value.shape == (() if name in COUPLED else (B,))
  expected = reference(student.astype(np.float64), teacher.astype(np.float64))
  np.testing.assert_allclose(value, expected, rtol=2e-6, atol=ROUNDING.get(name, 5e-7))


def test_gradient_against_central_differences_of_the_reference(case):
  name, reference, student, teacher = case
  _, gradient = compiled(name)(student, teacher)
  teacher64 = teacher.astype(np.float64)
  expected = ref.numeric_gradient(lambda s: reference(s, teacher64).sum(), student.astype(np.float64))
  np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=5e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", MAIN)
def test_vmap_changes_nothing(name):
  student, teacher = inputs(name)
  students, teachers = np.stack([student, 2 * student]), np.stack([teacher, teacher])
  replicas = jax.jit(jax.vmap(CASES[name][0]))(students, teachers)
  expected = [compiled(name)(s, t)[0] for s, t in zip(students, teachers, strict=True)]
  np.testing.assert_allclose(replicas, np.stack(expected), rtol=2e-6, atol=ROUNDING.get(name, 5e-7))


@pytest.mark.parametrize("name", MAIN)
def test_bf16_inputs_are_widened_before_anything_else(name):
  rounded = [jnp.asarray(x, jnp.bfloat16) for x in inputs(name)]
  value, gradient = compiled(name)(*rounded)
  expected, expected_gradient = compiled(name)(*(np.asarray(x, np.float32) for x in rounded))
  assert value.dtype == jnp.float32
  np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)
  expected_gradient = np.asarray(expected_gradient)
  # One rounding to bf16 at the very end: half a unit of its 8 bits.
  np.testing.assert_allclose(
    gradient.astype(jnp.float32), expected_gradient, rtol=2**-8, atol=1e-6 * np.abs(expected_gradient).max()
  )


def test_matrix_products_ask_for_full_float32(case):
  """GPUs would take TensorFloat-32 otherwise, in the loss and in its gradient."""
  name, _, student, teacher = case
  text = compiled(name).lower(student, teacher).as_text()
  products = [line for line in text.splitlines() if "dot_general" in line]
  assert all("[HIGHEST, HIGHEST]" in line for line in products)


def test_the_precision_check_sees_a_default_product():
  text = jax.jit(lambda x: x @ x.T).lower(jnp.ones((4, 4))).as_text()
  assert "dot_general" in text
  assert "[HIGHEST, HIGHEST]" not in text


def degenerate_inputs(student, teacher):
  zero_token = student.copy()
  zero_token[..., 0, :] = 0
  yield "zeros", np.zeros_like(student), teacher
  yield "zero teacher", student, np.zeros_like(teacher)
  yield "both zero", np.zeros_like(student), np.zeros_like(teacher)
  yield "constant", np.full_like(student, 1234.567), teacher
  yield "constant teacher", student, np.full_like(teacher, 0.1)
  yield "zero token", zero_token, teacher
  yield "tiny", student * np.float32(1e-18), teacher
  yield "large", student * np.float32(1e6), teacher
  if student.shape == teacher.shape:
    yield "equal", student, student


def test_degenerate_inputs_have_finite_value_and_gradient(case):
  name, _, student, teacher = case
  for what, s, t in degenerate_inputs(student, teacher):
    value, gradient = compiled(name)(s, t)
    assert np.isfinite(value).all(), what
    assert np.isfinite(gradient).all(), what


def test_nan_is_passed_on_not_hidden(case):
  name, _, student, teacher = case
  student = student.copy()
  student.flat[0] = np.nan
  assert np.isnan(compiled(name)(student, teacher)[0]).any()


# Labels belong to three images, and CKA over samples refuses fewer than 4 (tested with CKA).
SINGLE = [name for name in MAIN if not name.startswith("ce") and name != "cka_samples"]


@pytest.mark.parametrize("name", SINGLE)
def test_one_sample(name):
  one = (slice(None), slice(1)) if name == "dino" else slice(1)
  student, teacher = (x[one] for x in inputs(name))
  value, gradient = compiled(name)(student, teacher)
  assert np.isfinite(value).all()
  assert np.isfinite(gradient).all()
