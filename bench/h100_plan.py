"""Plans every preset for 16 H100 (2 hosts of 8) into results/h100_plan.md: compiled, lowered or counted, never run.

python -m bench.h100_plan                                 # all, one to two minutes each on one core
python -m bench.h100_plan --only ss_cka vit               # some; the others keep the numbers of their own date
python -m bench.h100_plan --only deit_base_16 --topology=1x2x8

Needs the extra `aot` and JAX_PLATFORMS=cpu; data and weights need not be there.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxkd import config as configs
from jaxkd import files, run_folder
from jaxkd.planning import cuda
from jaxkd.planning.plan import plan
from jaxkd.report.plan import collectives, memory, quantity

RESULTS = Path("results")
TOPOLOGY = "1x2x8"
BFLOAT16 = {"precision.compute": "bfloat16"}


def _teacher(name: str, model: str, **options: Any) -> dict[str, str]:
  """What a preset's own teacher is, where its weights are not there to tell."""
  given = {"name": model, **options}
  return {f"teachers.{name}.model.{key}": str(value) for key, value in given.items()}


# Name -> (config file with argument, overrides besides bfloat16, topology).
RUNS: dict[str, tuple[str, dict[str, str], str]] = {
  "quickstart": ("quickstart.py", {}, TOPOLOGY),
  "vit": ("vit.py:cifar10", {}, TOPOLOGY),
  "vit_matched": ("vit.py:cifar10,matched", {}, TOPOLOGY),
  "adaptive_cnn": ("adaptive_cnn.py:cifar10", {}, TOPOLOGY),
  "resnet18": ("resnet18.py", {}, TOPOLOGY),
  "convnextv2": ("convnextv2.py", {}, TOPOLOGY),
  "deit_adaptive_cnn": (
    "deit_adaptive_cnn.py:cifar10",
    _teacher("cnn", "adaptive_cnn", variant="cifar"),
    TOPOLOGY,
  ),
  "kd_resnet18": ("kd_resnet18.py", _teacher("cnn", "resnet18_cifar"), TOPOLOGY),
  "kd_convnextv2": ("kd_convnextv2.py", _teacher("cnn", "convnextv2_tiny", patch_size=2), TOPOLOGY),
  "ss_cka": ("ss_cka.py", {}, TOPOLOGY),
  "ss_cka_live": ("ss_cka.py:views=0", {}, TOPOLOGY),
  "ss_cka_cls": ("ss_cka_cls.py", {}, TOPOLOGY),
  "ss_gram": ("ss_gram.py", {}, TOPOLOGY),
  "ss_tokens": ("ss_tokens.py", {}, TOPOLOGY),
  "ss_ce_only": ("ss_ce_only.py", {}, TOPOLOGY),
  "dino_vit": ("dino_vit.py:digits", {}, TOPOLOGY),
}
# The paper plan of docs/scaling.md: DeiT-B at 224 px on ImageNet-1k with a live DINOv2-L.
IMAGENET = {
  "data.name": "tfds:imagenet2012",
  "data.image_size": "224",
  "data.augment.crop": "0",
  "data.augment.cutout": "0",
  "data.placement": "streamed",
  "data.views.global_scale": "(0.25, 1.0)",
  "model.name": "deit_base",
  "model.patch_size": "16",
  "train.epochs": "300",
}
SCALING = {
  "deit_base_16": (
    "ss_cka.py:teacher=dinov2_vitl14,views=0",
    {**IMAGENET, "train.batch_size": "1024"},
    TOPOLOGY,
  ),
  "deit_base_16_remat": (
    "ss_cka.py:teacher=dinov2_vitl14,views=0",
    {**IMAGENET, "train.batch_size": "1024", "train.remat": "blocks"},
    TOPOLOGY,
  ),
  "deit_base_16_fsdp8": (
    "ss_cka.py:teacher=dinov2_vitl14,views=0",
    {**IMAGENET, "train.batch_size": "1024", "sharding.fsdp": "8"},
    TOPOLOGY,
  ),
  "deit_base_256": (
    "ss_cka.py:teacher=dinov2_vitl14,views=0",
    {**IMAGENET, "train.batch_size": "16384"},
    "1x32x8",
  ),
}


def planned(name: str) -> dict[str, Any]:
  """The plan of one entry of `RUNS` or `SCALING`, with its command and date."""
  file, overrides, topology = {**RUNS, **SCALING}[name]
  given = {**BFLOAT16, **overrides}
  found = plan(configs.load(f"configs/{file}", given), topology=topology)
  flags = " ".join(f"--config.{k}='{v}'" if "(" in v else f"--config.{k}={v}" for k, v in given.items())
  command = f"python -m jaxkd.main plan --config=configs/{file} {flags} --topology={topology}"
  today = datetime.date.today().isoformat()
  return {"name": name, "command": command, "date": today, "hardware": run_folder.hardware(), **found}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--only", nargs="*", default=[*RUNS, *SCALING], choices=[*RUNS, *SCALING])
  args = parser.parse_args()
  if why := cuda.missing():
    raise SystemExit(f"error: nothing can be compiled for H100 here: {why}")
  store = RESULTS / "h100_plan.json"
  for name in args.only:
    known = files.read_json(store) if store.is_file() else {}
    files.write_json(store, {**known, name: planned(name)})
    print(f"planned: {name}", flush=True)
  (RESULTS / "h100_plan.md").write_text(page(files.read_json(store)))


PAGE = """# Plans for H100: compiled, lowered and counted, never run

Written by `python -m bench.h100_plan`; every number is in [h100_plan.json](h100_plan.json). No GPU was there: the
training step of each preset was **lowered** for one CUDA device and **compiled** by XLA for the devices named. FLOPs
are those of the program lowered for CPU. Times are the least that data-sheet rates allow (989 TFLOP/s bfloat16, 67
TFLOP/s float32, 3.35 TB/s, 50 GB/s of network for each GPU): no kernel reaches them, launching kernels costs more, and
nothing was timed. cuDNN's attention stays an opaque call, whose workspace is in no figure.

{summary}
FLOPs and attention: lowered. Traffic, memory, donation and kernels: compiled. State: counted. Step, images/s and hours:
planned, from these. `donated` is the part of the state whose memory the step reuses.

## Collectives

Of the compiled programs, those of one purpose together; bytes are of the whole arrays, on one device.

{collectives}
## float32 matrix products

Of the programs lowered for one CUDA device; everything else multiplies in bfloat16.

{products}
## Commands

{commands}
"""
COLUMNS = (
  "run",
  "devices",
  "batch",
  "FLOPs per image",
  "traffic per device",
  "memory per device",
  "state",
  "donated",
)
MORE = ("fmha fwd + bwd", "kernels", "step ≥ ms", "images/s ≤", "H100 hours ≥")


def page(plans: dict[str, Any]) -> str:
  """The Markdown page of all plans, in the order of `RUNS`."""
  known = [plans[name] for name in (*RUNS, *SCALING) if name in plans]
  return PAGE.format(
    summary=_table([*COLUMNS, *MORE], map(_row, known)),
    collectives=_table(
      ["run", "kind", "count", "bytes", "devices", "purpose"], (r for p in known for r in _collectives(p))
    ),
    products=_table(["run", "from", "count", "FLOPs", "reason"], (r for p in known for r in _dots(p))),
    commands="\n".join(
      f"- {p['name']} ({p['date']}, compiled on {p['hardware']}): `{p['command']}`" for p in known
    ),
  )


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _row(p: dict[str, Any]) -> list[str]:
  attention = p["attention"]
  return [
    p["name"],
    f"{p['devices']}",
    f"{p['batch_size']:,}",
    quantity(p["flops_per_step"] / p["batch_size"]),
    quantity(p["bytes_per_step"] / p["devices"], "B"),
    memory(p["memory_per_device"]["total"]),
    memory(p["state_bytes"]),
    f"{p['alias_bytes'] / p['state_bytes']:.1%}",
    f"{attention['fmha_forward']} + {attention['fmha_backward']}",
    f"{sum(p['kernels'].values()):,}",
    f"{p['step_ms']:.2f}",
    f"{p['images_per_s']:,.0f}",
    f"{p['hours']:.3g}",
  ]


def _collectives(p: dict[str, Any]) -> list[list[str]]:
  return [
    [p["name"], c["kind"], str(c["count"]), memory(c["bytes"]), str(c["group"]), c["purpose"]]
    for c in collectives(p)
  ]


def _dots(p: dict[str, Any]) -> list[list[str]]:
  return [
    [
      p["name"],
      f"{d['file']} `{d['function']}`",
      str(d["count"]),
      quantity(d["flops"]),
      d["reason"] or "**unexpected**",
    ]
    for d in p["float32_dots"]
  ]


if __name__ == "__main__":
  main()
