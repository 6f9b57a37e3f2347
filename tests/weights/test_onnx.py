"""ONNX export against the model, in the runtime. Needs the extra `onnx`."""

import jax
import numpy as np
import pytest

from jaxkd.checkpoint import Checkpoint
from jaxkd.errors import IntegrityFailure
from jaxkd.weights import portable

from .test_convert import OPTIONS, variables_of

pytest.importorskip("jax2onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def checkpoint_of(name):
  variables = variables_of(name, **OPTIONS[name])
  stats = {k: v for k, v in variables.items() if k != "params"}
  stats = jax.tree.map(np.abs, stats)  # a variance is positive
  meta = {"model": {"name": name, **OPTIONS[name]}, "inference": "params"}
  return Checkpoint(None, 0, {"params": {"model": variables["params"]}, "stats": stats}, {}, meta, "")


@pytest.mark.filterwarnings("ignore")  # the converter's own
@pytest.mark.parametrize(
  "name", ["deit_tiny", "dinov2_vitg14", "convnextv2_tiny", "resnet18_cifar", "adaptive_cnn"]
)
def test_the_runtime_answers_as_the_model(name, tmp_path):
  out = tmp_path / "model.onnx"
  with jax.numpy_rank_promotion("allow"):  # the converter relies on it
    assert portable.write_onnx(checkpoint_of(name), out) == [out]  # compares at batch 1 and 5
  session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
  assert session.get_inputs()[0].shape[0] == "B"


@pytest.mark.filterwarnings("ignore")
def test_a_program_that_answers_otherwise_is_not_called_written(tmp_path):
  path = tmp_path / "x"
  path.write_bytes(b"")
  with pytest.raises(IntegrityFailure, match="differ from the model's"):
    portable._compare(checkpoint_of("deit_tiny"), lambda x: np.ones((len(x), 3)), path)
  assert not path.exists()
