"""One training step or one inference by jaxkd and by PyTorch: same weights, same images, same work, same threads.

  python -m bench.against_torch --job resnet18_train [--seconds 40] [--no-compile]

Float32. Losses (of a training step and of the one after it) or outputs are compared before anything is timed; then
jaxkd, eager PyTorch, `torch.compile` and both libraries' matrix products run in turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bench import interleave, torch_models
from jaxkd import analysis, losses, models

LR, DECAY = 1e-4, 0.05
FIRST, SECOND, OUTPUT = 1e-5, 1e-3, 1e-4  # relative differences allowed: losses of two steps; outputs
QUICK = {"xla_backend_optimization_level": 0}


class Pair:
  """A jaxkd model with random weights, and its torch counterpart with the same."""

  def __init__(self, name: str, seed: int = 0, **options: Any):
    self.model = models.create(name, **options)
    images = jnp.zeros((1, *self.model.image_size, self.model.in_channels))
    self.variables = jax.jit(self.model.init, compiler_options=QUICK)(jax.random.key(seed), images)
    self.module = torch_models.counterpart(self.model, {"name": name, **options}, self.variables)

  def taps(self, images: jax.Array) -> dict[str, jax.Array]:
    return self.model.apply(self.variables, images)[1]


@dataclasses.dataclass
class Job:
  """Two ways to do the same: each returns a loss or an output, finished."""

  ours: Callable[[], Any]
  torch: Callable[[], Any]
  module: torch.nn.Module | None  # what `torch.compile` takes; None where no time is spent in one module
  images: int
  trains: bool
  what: str


def pictures(batch: int, size: int) -> tuple[np.ndarray, torch.Tensor]:
  x = np.random.default_rng(0).standard_normal((batch, size, size, 3)).astype(np.float32)
  return x, torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).to(memory_format=torch.channels_last)


def labels(batch: int) -> np.ndarray:
  return np.random.default_rng(1).integers(0, 10, batch)


def training(
  pair: Pair, batch: int, ours: Callable, theirs: Callable, what: str, size: int = 32, extra: Any = None
) -> Job:
  """A step of forward pass, gradient and AdamW. `ours(taps, images, labels, head, extra)`, `theirs(out, images, labels,
  head)` are the losses; head is a linear map of the last tokens to a teacher's width that learns too.
  """
  x, images = pictures(batch, size)
  y = labels(batch)
  width = getattr(pair.model, "width", 1)
  kernel = np.random.default_rng(2).standard_normal((width, 384)).astype(np.float32) * width**-0.5
  stats = {k: v for k, v in pair.variables.items() if k != "params"}
  tx = optax.adamw(LR, weight_decay=DECAY)
  params = {"model": pair.variables["params"], "head": jnp.asarray(kernel)}
  state = jax.tree.map(jnp.copy, (params, stats, tx.init(params)))

  def loss_of(params, stats, x, y, extra):
    variables = {"params": params["model"], **stats}
    (_, taps), new = pair.model.apply(variables, x, train=True, mutable=list(stats))
    return ours(taps, x, y, params["head"], extra), dict(new)

  @jax.jit
  def advance(state, x, y, extra):
    params, stats, opt = state
    (loss, stats), grads = jax.value_and_grad(loss_of, has_aux=True)(params, stats, x, y, extra)
    updates, opt = tx.update(grads, opt, params)
    return (optax.apply_updates(params, updates), stats, opt), loss

  given = jax.device_put((x, y, extra))

  def run_ours():
    nonlocal state
    state, loss = advance(state, *given)
    return float(jax.block_until_ready((state, loss))[1])

  head = torch.nn.Parameter(torch.from_numpy(kernel))
  module = pair.module.train()
  optimizer = torch.optim.AdamW([*module.parameters(), head], lr=LR, weight_decay=DECAY, fused=True)
  target = torch.from_numpy(y)

  def run_torch(module=module):
    optimizer.zero_grad(set_to_none=True)
    loss = theirs(module(images), images, target, head)
    loss.backward()
    optimizer.step()
    return float(loss)

  return Job(run_ours, run_torch, module, batch, True, what)


def inference(pair: Pair, tap: str, batch: int, size: int, what: str) -> Job:
  x, images = pictures(batch, size)
  forward = jax.jit(lambda variables, x: pair.model.apply(variables, x)[1][tap])
  variables, x = jax.device_put((pair.variables, x))
  special = pair.model.special_tokens if tap == "norm/tokens" else 0

  def run_torch(module=pair.module):
    with torch.inference_mode():
      out = module(images)
    return out[0] if isinstance(out, tuple) else out

  def run_ours():
    out = forward(variables, x).block_until_ready()
    return out[:, special:] if special else out

  return Job(run_ours, run_torch, pair.module, batch, False, what)


def _cross_entropy(taps, x, y, head, extra):
  return optax.softmax_cross_entropy_with_integer_labels(taps["logits"], y).mean()


def _both_heads(taps, x, y, head, extra):
  both = [
    optax.softmax_cross_entropy_with_integer_labels(taps[f"logits/{n}"], y).mean() for n in ("cls", "dist")
  ]
  return sum(both) / 2


def deit_train() -> Job:
  def theirs(out, images, y, head):
    return (F.cross_entropy(out[0], y) + F.cross_entropy(out[1], y)) / 2

  return training(Pair("deit_tiny"), 128, _both_heads, theirs, "DeiT-Tiny, 32 px, both heads, AdamW")


def deit_inference() -> Job:
  return inference(Pair("deit_tiny"), "logits/cls", 128, 32, "DeiT-Tiny, 32 px")


def cnn_train(name: str, batch: int, what: str, **options: Any) -> Job:
  def theirs(out, images, y, head):
    return F.cross_entropy(out, y)

  return training(Pair(name, **options), batch, _cross_entropy, theirs, what)


def kd_step() -> Job:
  """CE on the cls head, softened KL on the distillation head to a ResNet-18 that runs in the step."""
  teacher = Pair("resnet18_cifar", seed=1)

  def ours(taps, x, y, head, extra):
    found = jax.lax.stop_gradient(teacher.model.apply(extra, x)[0])
    ce = optax.softmax_cross_entropy_with_integer_labels(taps["logits/cls"], y).mean()
    return (ce + losses.soft_kd(taps["logits/dist"], found, temperature=4.0).mean()) / 2

  def theirs(out, images, y, head):
    with torch.no_grad():
      target = F.log_softmax(teacher.module(images) / 4, -1)
    kl = 16 * F.kl_div(F.log_softmax(out[1] / 4, -1), target, log_target=True, reduction="batchmean")
    return (F.cross_entropy(out[0], y) + kl) / 2

  what = "DeiT-Tiny from a ResNet-18 in the step, 32 px"
  return training(Pair("deit_tiny"), 64, ours, theirs, what, extra=teacher.variables)


def ss_step(banked: bool) -> Job:
  """CE and token cosine to DINOv2-S at 224 px; ours with the teacher in the step, or with its features stored."""
  batch, grid = 32, (8, 8)
  teacher = Pair("dinov2_vits14", seed=1, image_size=224, interpolation="transformers")

  def features(variables, x):
    large = jax.image.resize(x, (x.shape[0], 224, 224, 3), "bilinear")
    tokens = teacher.model.apply(variables, large)[1]["norm/tokens"][:, teacher.model.special_tokens :]
    found = losses.resize_grid(tokens.reshape(-1, 16, 16, 384), grid)
    return jax.lax.stop_gradient(found.reshape(-1, 64, 384))

  def ours(taps, x, y, head, extra):
    found = extra if banked else features(extra, x)
    tokens = taps["block11/tokens"][:, 2:] @ head
    ce = optax.softmax_cross_entropy_with_integer_labels(taps["logits/cls"], y).mean()
    return ce + losses.token_cosine(tokens, found).mean()

  def theirs(out, images, y, head):
    with torch.no_grad():
      tokens = teacher.module(F.interpolate(images, size=(224, 224), mode="bilinear"))
      maps = tokens.transpose(1, 2).reshape(-1, 384, 16, 16)
      found = F.interpolate(maps, size=grid, mode="bilinear").flatten(2).transpose(1, 2)
    return F.cross_entropy(out[0], y) + (1 - F.cosine_similarity(out[2] @ head, found, dim=-1)).mean()

  extra = jax.jit(features)(teacher.variables, pictures(batch, 32)[0]) if banked else teacher.variables
  what = "DeiT-Tiny from DINOv2-S at 224 px" + (", its features stored (PyTorch: in the step)" * banked)
  return training(Pair("deit_tiny"), batch, ours, theirs, what, extra=extra)


def torch_attention_statistics(attn: torch.Tensor, grid: tuple[int, int], special: int) -> torch.Tensor:
  """Mean distance, entropy, dispersion of cls and its attention to itself, [4 l h]: `attention_statistics` by torch."""
  y, x = torch.meshgrid(*(torch.arange(float(n)) for n in grid), indexing="ij")
  positions = torch.stack([y.flatten(), x.flatten()], 1)
  rows = attn[..., special:, special:]
  rows = rows / rows.sum(-1, keepdim=True)
  distance = (rows * torch.cdist(positions, positions)).sum(-1).mean(-1)
  entropy = -torch.xlogy(rows, rows).sum(-1).mean(-1)
  cls = attn[..., 0, special:]
  cls = cls / cls.sum(-1, keepdim=True)
  mean, square = cls @ positions, cls @ positions**2
  dispersion = (square - mean**2).sum(-1)
  return torch.stack([distance, entropy, dispersion, attn[..., 0, 0]]).mean(2)


def attention_job() -> Job:
  """Locality statistics of DeiT-Tiny's maps, with their forward pass left out on both sides."""
  grid, special, batch = (8, 8), 2, 128
  logits = np.random.default_rng(0).standard_normal((12, batch, 3, 66, 66)).astype(np.float32)
  maps = np.asarray(jax.nn.softmax(2 * logits, axis=-1))
  given, tensor = jax.device_put(maps), torch.from_numpy(maps.copy())
  names = ("mean_distance", "entropy", "cls_dispersion", "cls_self_attention")

  def ours():
    found = analysis.attention_statistics(given, grid, special)
    return np.stack(jax.device_get([found[name] for name in names]))

  def theirs():
    with torch.inference_mode():
      return torch_attention_statistics(tensor, grid, special)

  return Job(ours, theirs, None, batch, False, "attention statistics, 12 layers of 3 heads, 66 tokens")


JOBS: dict[str, Callable[[], Job]] = {
  "deit_tiny_train": deit_train,
  "deit_tiny_inference": deit_inference,
  "resnet18_train": lambda: cnn_train("resnet18_cifar", 64, "ResNet-18, 32 px, AdamW"),
  "adaptive_cnn_train": lambda: cnn_train(
    "adaptive_cnn", 32, "AdaptiveCNN (cifar), 32 px, AdamW", variant="cifar", dropout=0.0
  ),
  "convnextv2_tiny_train": lambda: cnn_train(
    "convnextv2_tiny", 32, "ConvNeXtV2-Tiny, 32 px, patch 2, AdamW", patch_size=2
  ),
  "convnextv2_tiny_inference": lambda: inference(
    Pair("convnextv2_tiny", patch_size=2), "logits", 64, 32, "ConvNeXtV2-Tiny, 32 px, patch 2"
  ),
  "dinov2_small_inference": lambda: inference(
    Pair("dinov2_vits14", image_size=224, interpolation="transformers"),
    "norm/tokens",
    8,
    224,
    "DINOv2-S/14, 224 px",
  ),
  "kd_resnet18": kd_step,
  "ss_dinov2_live": lambda: ss_step(banked=False),
  "ss_dinov2_banked": lambda: ss_step(banked=True),
  "attention_statistics": attention_job,
}


def check(job: Job) -> list[float]:
  """Relative differences of both sides' losses in two steps, or of their outputs. Raises SystemExit for large ones."""
  if not job.trains:
    a, b = np.asarray(job.ours()), job.torch().numpy()
    found, limits = [float(np.abs(a - b).max() / np.abs(b).max())], [OUTPUT]
  else:
    pairs = [(job.ours(), job.torch()) for _ in range(2)]
    found, limits = [abs(a - b) / abs(b) for a, b in pairs], [FIRST, SECOND]
  if not all(f < limit for f, limit in zip(found, limits, strict=True)):
    raise SystemExit(f"not the same work: the two sides differ by {found}, and {limits} are allowed")
  return found


def compiled(job: Job) -> Callable[[], Any] | None:
  """The torch side with its module compiled; None, said on stderr, where that does not work."""
  try:
    module = torch.compile(job.module)
    run: Callable[[], Any] = lambda: job.torch(module)  # type: ignore[call-arg]  # noqa: E731
    run()
    return run
  except Exception as e:  # whatever the compiler throws; eager stands
    print(f"torch.compile: {type(e).__name__}: {str(e).splitlines()[0][:150]}", file=sys.stderr)
    return None


def measure(name: str, *, seconds: float, compile_too: bool) -> dict[str, Any]:
  torch.manual_seed(0)
  job = JOBS[name]()
  differences = check(job)
  with FlopCounterMode(display=False) as counter:
    job.torch()
  ways = {"jaxkd": job.ours, "torch": job.torch}
  if compile_too and job.module is not None and (fast := compiled(job)):
    ways["torch.compile"] = fast
  times = interleave.interleaved({**ways, **interleave.peaks()}, seconds=seconds)
  peak, work = interleave.peak_gflops(times), counter.get_total_flops() / 1e9
  spreads = {n: interleave.spread(times[n]) for n in ways}
  return {
    "what": job.what,
    "batch": job.images,
    "threads": torch.get_num_threads(),
    "differences": differences,
    "seconds": {n: dataclasses.asdict(s) for n, s in spreads.items()},
    "images/s": {n: job.images / s.median for n, s in spreads.items()},
    "speed against": {
      n: dataclasses.asdict(interleave.ratio(times, n, "jaxkd")) for n in ways if n != "jaxkd"
    },
    "GFLOP of the torch side": work,
    "peak GFLOP/s": peak,
    "share of peak": {n: work / s.median / max(peak.values()) for n, s in spreads.items()},
    **interleave.about(),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--job", choices=JOBS, required=True)
  parser.add_argument("--seconds", type=float, default=30, help="spent in rounds, after compiling")
  parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
  args = parser.parse_args()
  print(json.dumps(measure(args.job, seconds=args.seconds, compile_too=not args.no_compile), indent=2))


if __name__ == "__main__":
  main()
