"""The augmentation of `bench.data` as users of torchvision write it: a Compose in a Dataset in a DataLoader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from bench import torchvision_import  # noqa: F401, before torchvision

# isort: split
from torchvision import transforms as v1
from torchvision.transforms import v2

VARIANTS = ("v1 on PIL images", "v2 on PIL images", "v2 on tensors")


def transform(
  variant: str, *, mean: tuple[float, ...], std: tuple[float, ...], crop: int, cutout: int, size: int
):
  """Crop, flip, AutoAugment, normalise and Cutout: RandomErasing of one square of `cutout` pixels in every image."""
  tv: Any = v1 if variant.startswith("v1") else v2
  floats = [v1.ToTensor()] if tv is v1 else [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
  share = cutout**2 / size**2
  return tv.Compose(
    [
      tv.RandomCrop(size, padding=crop),
      tv.RandomHorizontalFlip(),
      tv.AutoAugment(tv.AutoAugmentPolicy.CIFAR10),
      *floats,
      tv.Normalize(mean, std),
      tv.RandomErasing(p=1.0, scale=(share, share), ratio=(1.0, 1.0)),
    ]
  )


class Augmented(Dataset):
  """Images uint8 [n h w c], handed to the transform as PIL images or as tensors [c h w]."""

  def __init__(self, images: np.ndarray, change: Callable, *, tensors: bool):
    self.images, self.change, self.tensors = images, change, tensors
    if tensors:
      self.images = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).contiguous()

  def __len__(self) -> int:
    return len(self.images)

  def __getitem__(self, index: int) -> torch.Tensor:
    image = self.images[index]
    return self.change(image if self.tensors else Image.fromarray(image))


def loader(images: np.ndarray, variant: str, *, batch_size: int, workers: int, **options) -> DataLoader:
  """Shuffled whole batches; worker processes stay between epochs, each of them two batches ahead."""
  change = transform(variant, size=images.shape[1], **options)
  dataset = Augmented(images, change, tensors=variant.endswith("tensors"))
  started: dict[str, Any] = {
    "persistent_workers": True,
    "prefetch_factor": 2,
    "multiprocessing_context": "spawn",
  }
  return DataLoader(
    dataset, batch_size, shuffle=True, drop_last=True, num_workers=workers, **(started if workers else {})
  )
