"""What the training step hands to XLA for CUDA: attention kernels, float32 matrix products. Lowered, not run."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from jaxkd import models
from jaxkd.errors import UserError
from jaxkd.models.resolution import resolved_for
from jaxkd.planning import cuda
from jaxkd.planning.lowered import attention_calls, float32_products
from jaxkd.subjects import ANALYSIS

from .. import tiny
from .steps import cuda_step, load

pytestmark = pytest.mark.usefixtures("optax_promotion")


# Pixel positions and counts of pixels: before the first layer, in full float32.
AUGMENTATION = {("boxes.py", "sample_boxes"), ("operations.py", "_running_totals")}


def origins(text):
  return {(p.file, p.function) for p in float32_products(text)}


def test_deit_tiny_has_flash_attention_in_every_layer_and_no_float32_product():
  text, experiment = cuda_step(load("vit.py:cifar10,matched", train__batch_size=16))
  assert experiment.model.depth == 12
  assert attention_calls(text) == (12, 12)
  assert origins(text) <= AUGMENTATION


def test_the_live_teacher_has_it_forward_only_and_float32_is_left_to_statistics():
  text, experiment = cuda_step(load("ss_cka.py:views=0", train__batch_size=16))
  student, teacher = experiment.model, experiment.teachers["dino"].model
  assert (student.depth, teacher.depth) == (12, 12)
  assert attention_calls(text) == (12 + 12, 12)
  products = float32_products(text)
  assert {p.function for p in products if not p.reason} == set()
  # Not an empty claim: these are there, and each in full float32 but the logged spread.
  assert {("cka.py", "_gram"), ("gram.py", "cosine_matrix")} <= origins(text)
  assert {p.function for p in products if not p.highest} <= {"_spread"}


def test_with_the_bank_no_teacher_is_in_the_step():
  text, experiment = cuda_step(load("ss_cka.py", train__batch_size=16))
  assert experiment.teachers["dino"].bank
  assert attention_calls(text) == (12, 12)


def test_replicas_have_flash_attention_too():
  """`vmap` over three students makes one kernel of their attention, not the products of XLA's."""
  text, experiment = cuda_step(
    load("vit.py:cifar10,matched", train__batch_size=16, train__replicas="0,1,2", model__depth=2)
  )
  assert len(experiment.replicas) == 3
  assert attention_calls(text) == (2, 2)
  assert origins(text) <= AUGMENTATION


def test_every_kind_of_term_keeps_float32_to_statistics():
  logits, tokens = {"teacher": "t"}, {"teacher": "t", "student_taps": ("block01/tokens",)}
  terms = {
    "ce": tiny.CE,
    **{kind: {"kind": kind, **logits} for kind in ("soft_kd", "hard_kd", "dkd", "dist")},
    **{
      kind: {"kind": kind, **tokens}
      for kind in ("correlation", "cka", "gram", "rkd", "attention_transfer", "similarity_preserving")
    },
    "ofa": {"kind": "ofa", **tokens, "head": "mlp"},
    "white": {"kind": "token_cosine", **tokens, "head": "mlp", "whiten": True},
    "rbf": {"kind": "cka", **tokens, "kernel": "rbf", "over": "samples"},
  }
  model = {**tiny.MODEL, "name": "deit"}
  config = tiny.config(
    model=model,
    teachers={"t": {"weights": "random", "model": {**model, "width": 8}}},
    terms=terms,
    precision={"compute": "bfloat16"},
  )
  assert {(p.file, p.function) for p in float32_products(cuda_step(config)[0]) if not p.reason} == set()
  config = tiny.dino_config(precision={"compute": "bfloat16"})
  assert {(p.file, p.function) for p in float32_products(cuda_step(config)[0]) if not p.reason} == set()
  knob = {"kind": "locality", "student_taps": ("block00/attn",), "targets": (0.5,)}
  config = tiny.config(terms={"ce": tiny.CE, "knob": knob}, precision={"compute": "bfloat16"})
  assert {(p.file, p.function) for p in float32_products(cuda_step(config)[0]) if not p.reason} == set()


def test_negative_controls_xla_attention_has_no_kernel_and_float32_shows():
  config = load("vit.py:cifar10,matched", train__batch_size=16, model__depth=2)
  assert attention_calls(cuda_step(config, "xla")[0]) == (0, 0)
  config = load("vit.py:cifar10,matched", train__batch_size=16, model__depth=2, precision__compute="float32")
  text, experiment = cuda_step(config)
  assert experiment.model.attention == "xla"
  unexpected = [p for p in float32_products(text) if not p.reason]
  assert {"Attention.__call__", "Mlp.__call__", "attention"} & {p.function for p in unexpected}
  assert (
    sum(p.count for p in unexpected) >= 2 * 3 * 6
  )  # two layers, forward and both gradients of six products
  with pytest.raises(UserError, match="attention='cudnn' cannot be had"):
    cuda_step(config, "cudnn")


@pytest.mark.parametrize(("size", "patch", "tokens"), [(32, 4, 65), (224, 16, 197), (224, 14, 257)])
def test_odd_token_counts_lower_forward_and_backward(size, patch, tokens):
  model = models.create("vit_tiny", depth=1, image_size=size, patch_size=patch, dtype="bfloat16")
  assert model.grid[0] * model.grid[1] + model.special_tokens == tokens
  images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  model = resolved_for(model, "cuda")
  text = cuda.lower(
    jax.grad(lambda v, x: model.apply(v, x, train=True)[0].sum()), variables, images
  ).as_text()
  assert attention_calls(text) == (1, 1)
  assert f"x{tokens + 1}x3x64xbf16" in text  # padded by one


def hessian_vector_product(model, params, vector, images):
  gradient = jax.grad(lambda p: (model.apply(p, images)[1]["logits/cls"] ** 2).mean())
  return jax.linearize(gradient, params)[1](vector)


def test_the_hessian_has_no_flash_attention_and_float32_products_only():
  options = {"depth": 1, "width": 64, "heads": 1, "image_size": 16, "patch_size": 4}
  wanted = resolved_for(models.create("vit", **options, **ANALYSIS), "cuda", ANALYSIS["attention"])
  images = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
  params = jax.eval_shape(wanted.init, jax.random.key(0), images)
  text = cuda.lower(partial(hessian_vector_product, wanted), params, params, images).as_text()
  assert "fmha" not in text
  assert "bf16" not in text
  # Negative control: with cuDNN's kernel the same program cannot even be traced.
  fused = resolved_for(models.create("vit", **options, dtype="bfloat16"), "cuda")
  assert fused.attention == "cudnn"
  with pytest.raises((TypeError, NotImplementedError)):
    cuda.lower(partial(hessian_vector_product, fused), params, params, images)
