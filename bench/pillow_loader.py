"""The augmentation of `bench.data` as torchvision's transforms.v1 do it: image by image, on PIL images, in a Dataset.

torchvision itself is not needed; each operation is the one its `functional_pil` calls.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch.utils.data import DataLoader, Dataset

PAD, CUTOUT = 4, 8
ENHANCE = {"brightness", "color", "contrast", "sharpness"}
SIGNED = {"shear_x", "shear_y", "translate_x", "translate_y", "rotate", *ENHANCE}


def magnitudes(size: int) -> dict[str, np.ndarray]:
  """AutoAugment's ten bins for images of `size` pixels."""
  steps = np.linspace(0.0, 1.0, 10)
  return {
    **{name: 0.3 * steps for name in ("shear_x", "shear_y")},
    **{name: 150 / 331 * size * steps for name in ("translate_x", "translate_y")},
    **{name: 0.9 * steps for name in ENHANCE},
    "rotate": 30 * steps,
    "posterize": 8 - np.round(4 * steps),
    "solarize": 255 * (1 - steps),
  }


def apply(image: Image.Image, name: str, magnitude: float) -> Image.Image:
  """One operation of AutoAugment."""
  if name in ENHANCE:
    return getattr(ImageEnhance, name.capitalize())(image).enhance(1 + magnitude)
  if name == "rotate":
    return image.rotate(magnitude, Image.Resampling.NEAREST)
  if name == "posterize":
    return ImageOps.posterize(image, int(magnitude))
  if name == "solarize":
    return ImageOps.solarize(image, magnitude)  # type: ignore[arg-type]
  if name in ("autocontrast", "equalize", "invert"):
    return getattr(ImageOps, name)(image)
  shift = int(magnitude)
  matrix = {
    "shear_x": (1, magnitude, 0, 0, 1, 0),
    "shear_y": (1, 0, 0, magnitude, 1, 0),
    "translate_x": (1, 0, -shift, 0, 1, 0),
    "translate_y": (1, 0, 0, 0, 1, -shift),
  }[name]
  return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


class Augmented(Dataset):
  """RandomCrop(padding=4), RandomHorizontalFlip, AutoAugment, ToTensor, Normalize, Cutout."""

  def __init__(self, images: np.ndarray, policy: tuple, mean: tuple[float, ...], std: tuple[float, ...]):
    self.images, self.policy, self.magnitudes = images, policy, magnitudes(images.shape[1])
    self.mean, self.std = (torch.tensor(x).view(-1, 1, 1) for x in (mean, std))

  def __len__(self) -> int:
    return len(self.images)

  def __getitem__(self, index: int) -> torch.Tensor:
    image = self._autoaugment(self._crop(Image.fromarray(self.images[index])))
    x = torch.from_numpy(np.array(image, copy=True)).permute(2, 0, 1).contiguous().float().div(255)
    x.sub_(self.mean).div_(self.std)
    h, w = x.shape[1:]
    row, column = int(torch.randint(h, (1,))), int(torch.randint(w, (1,)))
    half = CUTOUT // 2
    x[:, max(0, row - half) : row + half, max(0, column - half) : column + half] = 0
    return x

  def _crop(self, image: Image.Image) -> Image.Image:
    width, height = image.size
    padded = ImageOps.expand(image, border=PAD, fill=0)
    top, left = (int(torch.randint(2 * PAD + 1, (1,))) for _ in range(2))
    image = padded.crop((left, top, left + width, top + height))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if torch.rand(1) < 0.5 else image

  def _autoaugment(self, image: Image.Image) -> Image.Image:
    first, p, first_bin, second, q, second_bin = self.policy[int(torch.randint(len(self.policy), (1,)))]
    chances, signs = torch.rand((2,)), torch.randint(2, (2,))
    for i, (name, share, level) in enumerate(((first, p, first_bin), (second, q, second_bin))):
      if chances[i] <= share:
        magnitude = float(self.magnitudes[name][level]) if name in self.magnitudes else 0.0
        image = apply(image, name, -magnitude if name in SIGNED and signs[i] == 0 else magnitude)
    return image


def loader(dataset: Augmented, *, batch_size: int, workers: int) -> DataLoader:
  """Shuffled whole batches; worker processes stay between epochs."""
  started = {"persistent_workers": True, "multiprocessing_context": "spawn"} if workers else {}
  return DataLoader(dataset, batch_size, shuffle=True, drop_last=True, num_workers=workers, **started)  # type: ignore[arg-type]
