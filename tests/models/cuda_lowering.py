"""Lowering for CUDA on a machine without a GPU: what a step would hand to XLA there.

The only place that touches `jax._src`: tracing cuDNN attention asks for the installed cuDNN version, and that
probe is answered here. This proves lowering, not that cuDNN accepts or speeds up anything. Use it on a single
device: with several, the text shows `CustomSPMDPartitioning` in place of the kernels.
"""

from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
from jax._src.cudnn import fused_attention_stablehlo

FORWARD, BACKWARD = "__cudnn$fmhaSoftmax(", "__cudnn$fmhaSoftmaxBackward("


def cuda_text(function: Callable[..., Any], *arguments: Any) -> str:
  """The StableHLO text of jit(function) lowered for CUDA at the given (abstract) arguments."""
  with mock.patch.object(fused_attention_stablehlo, "check_cudnn_version", return_value=91002):
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
