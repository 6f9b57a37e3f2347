"""The CPU's convolutions against XLA's own: values, first and second derivatives, transforms, devices, models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from jaxkd import models
from jaxkd.models import convolution
from jaxkd.models.convolution import LAYOUT, convolve, resolve_convolution
from jaxkd.planning import cuda

from .jitted import QUICK, init

SAME = ((1, 1), (1, 1))
# kernel [kh kw c o], stride, padding, groups, map
CASES = {
  "3x3": ((3, 3, 5, 6), 1, SAME, 1, (6, 7)),
  "3x3 stem": ((3, 3, 1, 8), 1, SAME, 1, (6, 5)),
  "3x3 stride 2": ((3, 3, 4, 6), 2, SAME, 1, (7, 8)),
  "5x3 uneven padding": ((5, 3, 4, 3), 1, ((1, 3), (2, 0)), 1, (8, 6)),
  "3x3 inside": ((3, 3, 4, 4), 1, ((0, 0), (0, 0)), 1, (6, 5)),
  "3x3 same": ((3, 3, 4, 4), 2, "SAME", 1, (6, 6)),
  "7x7 stride 2": ((7, 7, 3, 4), 2, ((3, 3), (3, 3)), 1, (10, 11)),
  "1x1": ((1, 1, 5, 4), 1, "VALID", 1, (4, 5)),
  "1x1 stride 2": ((1, 1, 5, 4), 2, ((0, 0), (0, 0)), 1, (5, 6)),
  "patches": ((4, 4, 3, 6), 4, "VALID", 1, (9, 8)),
  "depthwise 7x7": ((7, 7, 1, 6), 1, ((3, 3), (3, 3)), 6, (5, 8)),
  "depthwise uneven": ((3, 5, 1, 4), 1, ((2, 0), (1, 3)), 4, (6, 5)),
  "depthwise stride 2": ((3, 3, 1, 4), 2, SAME, 4, (6, 6)),
  "groups": ((3, 3, 2, 4), 1, SAME, 2, (5, 5)),
}


def case(name, dtype=np.float64):
  """(convolution by us, by XLA, x, kernel, cotangent), each convolution a function of x and kernel."""
  kernel, stride, padding, groups, size = CASES[name]
  rng = np.random.default_rng(0)
  x = rng.standard_normal((3, *size, kernel[2] * groups)).astype(dtype)
  w = rng.standard_normal(kernel).astype(dtype)

  def by(function):
    return lambda x, w: function(
      x, w, (stride, stride), padding, dimension_numbers=LAYOUT, feature_group_count=groups
    )

  ours, native = by(convolve), by(lax.conv_general_dilated)
  shape = jax.eval_shape(native, x, w).shape
  return ours, native, x, w, rng.standard_normal(shape).astype(dtype)


def derivatives(function, x, w, dy):
  """Value, gradients, and the second derivative along a direction: jvp of the gradient of a loss that is not linear."""

  def loss(x, w):
    y = function(x, w)
    return jnp.sum(dy * (y + jnp.tanh(y)))

  gradient = jax.grad(loss, argnums=(0, 1))
  direction = (jnp.cos(x), jnp.sin(w))
  return function(x, w), *jax.jvp(gradient, (x, w), direction)


def compiled(function, *arguments):
  return jax.device_get(jax.jit(function, compiler_options=QUICK)(*arguments))


def error(found, expected):
  """Largest difference relative to the largest value (absolute where all values are 0), over all arrays."""
  worst = 0.0
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    a, b = np.float64(a), np.float64(b)
    worst = max(worst, np.abs(a - b).max() / (np.abs(b).max() or 1.0))
  return worst


@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives_are_those_of_the_native_convolution(name):
  with jax.enable_x64(True):
    ours, native, x, w, dy = case(name)
    found = compiled(lambda *a: derivatives(ours, *a), x, w, dy)
    expected = compiled(lambda *a: derivatives(native, *a), x, w, dy)
    assert error(found, expected) < 1e-12
    wrong = compiled(lambda *a: derivatives(lambda x, w: native(x, w[::-1]), *a), x, w, dy)
    assert w.shape[0] == 1 or error(wrong, expected) > 1e-2  # negative control: a kernel turned over


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 2e-6), ("bfloat16", 1.5e-2)])
@pytest.mark.parametrize("name", ["3x3", "3x3 stride 2", "patches", "depthwise 7x7"])
def test_other_dtypes_are_kept_and_near_float64(name, dtype, limit):
  ours, _, x, w, dy = case(name, np.float32)
  x, w, dy = (jnp.asarray(a, dtype) for a in (x, w, dy))

  def all_of(function, x, w, dy):
    y, pull = jax.vjp(function, x, w)
    return y, *pull(dy)

  found = compiled(lambda *a: all_of(ours, *a), x, w, dy)
  assert {a.dtype for a in found} == {jnp.dtype(dtype)}
  with jax.enable_x64(True):
    native = case(name)[1]
    exact = compiled(lambda *a: all_of(native, *a), *(np.asarray(a).astype(np.float64) for a in (x, w, dy)))
  assert error(found, exact) < limit


@pytest.mark.parametrize("name", ["3x3", "3x3 stride 2", "depthwise 7x7"])
def test_vmap_remat_and_reverse_over_reverse(name):
  with jax.enable_x64(True):
    ours, native, x, w, dy = case(name)
    ws = np.stack([w, 2 * w, w[::-1]])

    def transformed(function, x, ws, dy):
      gradient = jax.grad(lambda x, w: jnp.sum(jnp.tanh(jax.checkpoint(function)(x, w)) * dy), argnums=(0, 1))
      twice = jax.grad(lambda w: jnp.sum(jnp.sin(gradient(x, w)[0])))(ws[0])
      return jax.vmap(gradient, (None, 0))(x, ws), twice

    found = compiled(lambda *a: transformed(ours, *a), x, ws, dy)
    assert error(found, compiled(lambda *a: transformed(native, *a), x, ws, dy)) < 1e-12


def test_no_gradient_of_a_kernel_is_left_to_xla():
  """The gradient's program has no convolution whose result is a kernel; natively it has."""
  ours, native, x, w, dy = case("3x3", np.float32)

  def kernels(function):
    gradient = jax.grad(lambda w: jnp.sum(function(x, w) * dy))
    text = jax.jit(gradient).lower(w).as_text()
    return sum("stablehlo.convolution" in line and "-> tensor<3x3x" in line for line in text.splitlines())

  assert kernels(ours) == 0
  assert kernels(native) == 1


def test_auto_is_matmul_on_a_cpu_and_names_are_checked(monkeypatch):
  assert resolve_convolution("auto") == "matmul"
  assert resolve_convolution("native") == "native"
  monkeypatch.setattr(convolution.jax, "default_backend", lambda: "gpu")
  assert resolve_convolution("auto") == "native"
  with pytest.raises(ValueError, match="unknown convolution 'winograd'; known: auto, native, matmul"):
    resolve_convolution("winograd")


def test_a_gpu_gets_the_native_convolutions():
  """Lowered for CUDA: one convolution forward, two backward, for each of the model's layers that has a kernel of it."""
  model = models.create("resnet18_cifar", widths=(4, 8), depths=(1, 1), convolution="native")
  images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)

  def loss(params, stats, images):
    return jnp.sum(
      model.apply({"params": params, **stats}, images, train=True, mutable=["batch_stats"])[0][0]
    )

  stats = {"batch_stats": variables["batch_stats"]}
  text = cuda.lower(jax.grad(loss), variables["params"], stats, images).as_text()
  assert text.count("stablehlo.convolution(") == 6 * 3 - 1  # images need no gradient


MODELS = {
  "resnet18_cifar": {"widths": (4, 8), "depths": (1, 1), "image_size": 8},
  "resnet18": {"widths": (4, 8), "depths": (1, 1), "image_size": 16, "num_classes": 3},
  "adaptive_cnn": {"widths": (4, 8), "depths": (1, 1), "image_size": 8},
  "convnextv2_tiny": {"widths": (8, 16), "depths": (1, 1), "image_size": 8, "patch_size": 2},
}


def pair(name):
  """(model on CPU, the same natively, variables, images)."""
  ours, native = (models.create(name, **MODELS[name], convolution=c) for c in ("matmul", "native"))
  images = (
    np.random.default_rng(1).standard_normal((8, *ours.image_size, ours.in_channels)).astype(np.float32)
  )
  return ours, native, init(ours, images[:1]), images


def second_order(model):
  """(params, stats, images) -> loss, gradient, Hessian times cos(params)."""

  def loss(params, stats, images):
    logits = model.apply({"params": params, **stats}, images)[0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - logits[:, 0])

  def run(params, stats, images):
    direction = jax.tree.map(jnp.cos, params)
    gradient = lambda p: jax.grad(loss)(p, stats, images)  # noqa: E731
    return loss(params, stats, images), *jax.jvp(gradient, (params,), (direction,))

  return run


@pytest.mark.parametrize("name", MODELS)
def test_models_have_the_same_parameters_gradients_and_curvature(name):
  ours, native, variables, images = pair(name)
  shapes = [jax.eval_shape(m.init, jax.random.key(0), images) for m in (ours, native)]
  assert jax.tree.leaves_with_path(shapes[0]) == jax.tree.leaves_with_path(shapes[1])
  params = variables.pop("params")
  found, expected = (compiled(second_order(m), params, variables, images) for m in (ours, native))
  assert error(found, expected) < 1e-5


@pytest.mark.parametrize("name", ["resnet18_cifar", "convnextv2_tiny"])
def test_initial_values_do_not_depend_on_the_implementation(name):
  ours, native, _, images = pair(name)
  drawn = [jax.jit(m.init, compiler_options=QUICK)(jax.random.key(3), images[:1]) for m in (ours, native)]
  jax.tree.map(np.testing.assert_array_equal, *drawn)


def test_eight_devices_compute_what_one_does(eight_devices):
  """Gradients of sharded images, in a process of its own."""
  assert eight_devices < 1e-5


@pytest.fixture(scope="module")
def eight_devices():
  import os
  import subprocess
  import sys

  flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
  code = (
    "from tests.models import test_convolution as t; import jax, jax.numpy as jnp, numpy as np\n"
    "from jax.sharding import AxisType, NamedSharding, PartitionSpec as P\n"
    "mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))\n"
    "worst = 0\n"
    "for name in ('resnet18_cifar', 'convnextv2_tiny'):\n"
    "  ours, native, variables, images = t.pair(name)\n"
    "  params = variables.pop('params')\n"
    "  f = jax.jit(t.second_order(ours), compiler_options=t.QUICK)\n"
    "  one = jax.device_get(f(params, variables, images))\n"
    "  split = jax.device_put(images, NamedSharding(mesh, P('data')))\n"
    "  kept = jax.device_put((params, variables), NamedSharding(mesh, P()))\n"
    "  eight = f(*kept, split)\n"
    "  assert len(eight[0].sharding.device_set) == 8\n"
    "  worst = max(worst, t.error(jax.device_get(eight), one))\n"
    "print(worst)\n"
  )
  environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return float(done.stdout.split()[-1])


def test_strides_reach_flax_layers():
  """Through `nn.Conv`, whose padding and strides come in other forms."""
  x = np.random.default_rng(0).standard_normal((2, 6, 6, 3)).astype(np.float32)
  for options in ({"strides": 2, "padding": 1}, {"padding": "SAME"}, {"kernel_dilation": 2}):
    layers = [
      nn.Conv(4, (3, 3), conv_general_dilated=f, **options) for f in (convolve, lax.conv_general_dilated)
    ]
    variables = init(layers[0], x)
    found, expected = (compiled(layer.apply, variables, x) for layer in layers)
    np.testing.assert_allclose(found, expected, atol=1e-5)
