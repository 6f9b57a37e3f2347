"""Writes tests/parity/goldens/optim.npz: parameters that torch.optim leaves after 20 steps of the same gradients.

pip install torch==2.13.0
python -m tests.parity.make_optim_goldens
"""

from pathlib import Path

import numpy as np
import torch

from tests.parity import optim_cases as cases

FILE = Path(__file__).parent / "goldens" / "optim.npz"


def train(optim, *, decayed=cases.DECAYED) -> dict[str, np.ndarray]:
  """What `optim_cases.train` does, by torch: optimisers, schedulers and clipping are its own."""
  # A matrix is [in, out] here and [out, in] there, which no rule below sees.
  params = {k: torch.nn.Parameter(torch.from_numpy(v.copy())) for k, v in cases.parameters().items()}
  optimizers = _optimizers(optim, params, decayed)
  schedulers = [_scheduler(optim, o) for o in optimizers]
  for grads in cases.gradients():
    for name, p in params.items():
      p.grad = torch.from_numpy(grads[name].copy())
    torch.nn.utils.clip_grad_norm_(params.values(), optim.clip)
    for step in (*optimizers, *schedulers):
      step.step()
  return {name: p.detach().numpy() for name, p in params.items()}


def _optimizers(optim, params, decayed) -> list[torch.optim.Optimizer]:
  def group(names, weight_decay):
    return {"params": [params[n] for n in names], "weight_decay": weight_decay}

  matrices = cases.ORTHOGONALISED if optim.name == "muon" else ()
  rest = [n for n in params if n not in matrices]
  groups = [
    group([n for n in rest if n in decayed], optim.weight_decay),
    group([n for n in rest if n not in decayed], 0.0),
  ]
  lr = optim.lr
  adam = {"lr": lr, "betas": (optim.beta1, optim.beta2), "eps": optim.eps}
  match optim.name:
    case "adamw":
      return [torch.optim.AdamW(groups, **adam)]
    case "adam":
      return [torch.optim.Adam(groups, **adam)]
    case "sgd":
      nesterov = optim.nesterov and optim.momentum > 0
      return [torch.optim.SGD(groups, lr=lr, momentum=optim.momentum, nesterov=nesterov)]
    case "rmsprop":
      decay, momentum = optim.rmsprop_decay, optim.rmsprop_momentum
      return [torch.optim.RMSprop(groups, lr=lr, alpha=decay, eps=optim.eps, momentum=momentum)]
  options = {"lr": lr, "momentum": optim.muon_momentum, "adjust_lr_fn": "match_rms_adamw"}
  return [
    torch.optim.AdamW(groups, **adam),
    torch.optim.Muon([group(matrices, optim.weight_decay)], **options),
  ]


def _scheduler(optim, optimizer):
  """The default schedule: a warm-up of one epoch, then a cosine."""
  warmup = cases.STEPS_PER_EPOCH
  return torch.optim.lr_scheduler.SequentialLR(
    optimizer,
    [
      torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=warmup - 1),
      torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, cases.STEPS - warmup),
    ],
    milestones=[warmup],
  )


def main() -> None:
  torch.Tensor.bfloat16 = torch.Tensor.clone  # Muon's iterations in float32, as ours
  found = {case: train(cases.config(**options)) for case, options in cases.CASES.items()}
  np.savez_compressed(FILE, **{f"{case}/{k}": v for case, arrays in found.items() for k, v in arrays.items()})
  print(f"optim: {FILE.stat().st_size:,} bytes, torch {torch.__version__}")


if __name__ == "__main__":
  main()
