"""The attention door: numbers against float64, the choice of implementation, what reaches CUDA."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.models import create
from jaxkd.models.attention import attention, attention_with_maps, resolve_implementation
from jaxkd.models.resolution import resolved_for
from jaxkd.planning import cuda
from jaxkd.planning.lowered import attention_calls

SHAPE = (2, 7, 3, 8)
QKV = tuple(3 * jax.random.normal(jax.random.key(i), SHAPE) for i in range(3))


def reference(q, k, v):
  """Softmax attention in float64, one query at a time."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  b, n, h, d = q.shape
  out, maps = np.zeros_like(q), np.zeros((b, h, n, n))
  for i, t, j in np.ndindex(b, n, h):
    scores = np.array([q[i, t, j] @ k[i, s, j] for s in range(n)]) / np.sqrt(d)
    weights = np.exp(scores - scores.max())
    maps[i, j, t] = weights / weights.sum()
    out[i, t, j] = maps[i, j, t] @ v[i, :, j]
  return out, maps


def test_matches_a_float64_loop():
  out, maps = reference(*QKV)
  np.testing.assert_allclose(attention(*QKV, implementation="xla"), out, atol=5e-6)
  with_maps = attention_with_maps(*QKV)
  np.testing.assert_allclose(with_maps[0], out, atol=5e-6)
  np.testing.assert_allclose(with_maps[1], maps, atol=1e-6)
  wrong_scale = attention(QKV[0] * 8**0.5, *QKV[1:], implementation="xla")
  assert np.abs(wrong_scale - out).max() > 0.1


def test_first_and_second_derivatives_match_the_plain_softmax():
  def plain(q, k, v):
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / 8**0.5, axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)

  def hvp(function):
    grad = jax.grad(lambda x: jnp.sum(function(*x) ** 2))
    return jax.jit(lambda x: jax.jvp(grad, (x,), (x[::-1],)))(tuple(x / 3 for x in QKV))

  for ours, theirs in zip(
    jax.tree.leaves(hvp(lambda *x: attention(*x, implementation="xla"))),
    jax.tree.leaves(hvp(plain)),
    strict=True,
  ):
    np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=1e-5)


def test_large_scores_stay_finite():
  q, k, v = QKV
  out, grad = jax.jit(jax.value_and_grad(lambda q: jnp.sum(attention(q, k, v, implementation="xla"))))(
    1e4 * q
  )
  assert np.isfinite(out)
  assert np.all(np.isfinite(grad))


def test_bfloat16_inputs_give_bfloat16_outputs_and_float32_maps():
  low = tuple(x.astype(jnp.bfloat16) for x in QKV)
  exact = reference(*(x.astype(jnp.float32) for x in low))
  out, maps = attention_with_maps(*low)
  assert (out.dtype, maps.dtype) == (jnp.bfloat16, jnp.float32)
  np.testing.assert_allclose(maps, exact[1], atol=1e-6)
  for values in (out, attention(*low, implementation="xla")):
    np.testing.assert_allclose(values.astype(jnp.float32), exact[0], atol=0.04, rtol=0.004)


def device(platform, version):
  return SimpleNamespace(platform=platform, client=SimpleNamespace(platform_version=version))


@pytest.mark.parametrize(
  ("platform", "version", "dtype", "second_order", "head_dim", "expected"),
  [
    ("gpu", "PJRT C API\ncuda 12090", "bfloat16", False, 64, "cudnn"),
    ("gpu", "PJRT C API\ncuda 12090", "float16", False, None, "cudnn"),
    ("gpu", "PJRT C API\ncuda 12090", "float32", False, 64, "xla"),
    ("gpu", "PJRT C API\ncuda 12090", "bfloat16", True, 64, "xla"),
    ("gpu", "PJRT C API\ncuda 12090", "bfloat16", False, 12, "xla"),
    ("gpu", "rocm 60000", "bfloat16", False, 64, "xla"),
    ("cpu", "<unknown>", "bfloat16", False, 64, "xla"),
  ],
)
def test_auto_and_what_asking_for_cudnn_does_there(
  monkeypatch, platform, version, dtype, second_order, head_dim, expected
):
  monkeypatch.setattr(jax, "devices", lambda: [device(platform, version)])
  arguments = (dtype, second_order)
  assert resolve_implementation("auto", *arguments, head_dim=head_dim) == expected
  assert resolve_implementation("xla", *arguments, head_dim=head_dim) == "xla"
  if expected == "cudnn":
    assert resolve_implementation("cudnn", *arguments, head_dim=head_dim) == "cudnn"
  else:
    with pytest.raises(ValueError, match=r"attention='cudnn' cannot be had: its? .*use attention='xla'"):
      resolve_implementation("cudnn", *arguments, head_dim=head_dim)


def test_another_platform_is_resolved_for_without_its_gpu_and_a_run_here_is_still_refused():
  options = {"dtype": jnp.bfloat16, "head_dim": 64}
  assert resolve_implementation("auto", **options, platform="cuda") == "cudnn"
  assert resolve_implementation("cudnn", **options, platform="cuda") == "cudnn"
  assert resolve_implementation("auto", **options, platform="cpu") == "xla"
  assert resolve_implementation("auto", jnp.float32, head_dim=64, platform="cuda") == "xla"
  with pytest.raises(ValueError, match="it needs a CUDA GPU, not cpu"):
    resolve_implementation("cudnn", **options, platform="cpu")
  with pytest.raises(ValueError, match="this process runs on cpu"):
    create("deit_tiny", attention="cudnn", dtype="bfloat16")
  model = create("deit_tiny", dtype="bfloat16")
  assert (model.attention, resolved_for(model, "cuda").attention) == ("xla", "cudnn")
  assert resolved_for(model, "cuda", "xla").attention == "xla"
  cnn = create("resnet18_cifar")
  assert (cnn.convolution, resolved_for(cnn, "cuda").convolution) == ("matmul", "native")


def test_unknown_names_are_refused():
  with pytest.raises(ValueError, match=r"unknown attention 'cuddn'.*did you mean 'cudnn'"):
    resolve_implementation("cuddn", jnp.float32)
  with pytest.raises(ValueError, match="unknown implementation 'auto'; known: xla, cudnn"):
    attention(*QKV, implementation="auto")


def test_a_model_holds_the_resolved_name():
  assert create("deit_tiny", attention="auto").attention == "xla"


def lowered(name, dtype="bfloat16", implementation="cudnn", want=()):
  """CUDA text of the training gradient of two layers at width 192, and the number of tokens."""
  built = create(name, depth=2, dtype=dtype)
  images = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.float32)
  variables = jax.eval_shape(built.init, jax.random.key(0), images)
  model = built.clone(attention=implementation)

  def loss(variables, images):
    return jnp.sum(model.apply(variables, images, train=True, want=want)[0])

  return cuda.lower(jax.grad(loss), variables, images).as_text(), 64 + model.special_tokens


@pytest.mark.parametrize(("name", "tokens"), [("deit_tiny", 66), ("vit_tiny", 65)])
def test_a_bfloat16_gradient_lowers_to_flash_attention_once_per_layer(name, tokens):
  text, counted = lowered(name)
  assert counted == tokens
  assert attention_calls(text) == (2, 2)
  products = set(re.findall(r"dot_general.* -> tensor<[0-9x]*(\w+)>", text))
  assert products == {"bf16"}  # no matrix product of the step is in float32


def test_float32_and_attention_maps_do_not_reach_cudnn():
  assert "fmha" not in lowered("deit_tiny", "float32", "xla")[0]
  assert "fmha" not in lowered("deit_tiny", want=("attn",))[0]
  with pytest.raises(NotImplementedError):  # negative control: cuDNN itself has no float32
    lowered("deit_tiny", "float32", "cudnn")
