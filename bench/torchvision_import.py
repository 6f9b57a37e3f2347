"""Imports torchvision where it is installed, also PyPI's build beside a torch without CUDA.

There its compiled operators do not load, and the import fails where it describes them; transformers, which imports it
when it is there, fails likewise. Transforms use none of them, so it is enough to declare the two that are described.
"""

import importlib.util

import torch

if importlib.util.find_spec("torchvision"):
  try:
    import torchvision  # noqa: F401
  except RuntimeError:
    OPERATORS = torch.library.Library("torchvision", "FRAGMENT")  # undeclared again when it is collected
    for name in ("nms", "qnms"):
      OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
