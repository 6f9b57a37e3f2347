"""The model card written beside an export: what it is, what it was trained on, how, how well, and its digests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jaxkd
from jaxkd import models
from jaxkd.checkpoint import Checkpoint
from jaxkd.errors import one_line
from jaxkd.models.vit import ViT
from jaxkd.weights.read import sha256_file

LOADING = {
  "transformers": """from transformers import {architecture}

model = {architecture}.from_pretrained("{folder}")""",
  "jax": """import jax
from pathlib import Path

program = jax.export.deserialize(bytearray(Path("{file}").read_bytes()))
logits = program.call(images)  # [b {h} {w} {c}] float32, normalised""",
  "onnx": """import onnxruntime

session = onnxruntime.InferenceSession("{file}")
logits = session.run(None, {{session.get_inputs()[0].name: images}})[0]  # [b {h} {w} {c}] float32, normalised""",
  "timm": """from safetensors.torch import load_file
from timm.models.{module} import {kind}

model = {kind}({arguments})
model.load_state_dict(load_file("{file}"))""",
  "": """from safetensors.torch import load_file

model.load_state_dict(load_file("{file}"))  # names of style {style}""",
}


def model_card(found: Checkpoint, style: str, written: list[Path]) -> str:
  """Markdown about `found` exported as `written`."""
  meta, model = found.meta, models.create(**found.model_options)
  parameters = sum(row["count"] for row in models.parameter_table(model))
  name = found.model_options["name"]
  lines = [f"# {name}, {parameters:,} parameters", "", _origin(found), ""]
  lines += ["## Use", "", "```python", _loading(found, style, written), "```", ""]
  lines += ["Images are RGB or grey in [0, 1], normalised by channel:", ""]
  lines += _table(("mean", _numbers(meta["mean"])), ("std", _numbers(meta["std"])))
  lines += ["", f"Classes: {_classes(meta)}."]
  metrics = {k: v for k, v in meta.get("metrics", {}).items() if k.startswith("validation/")}
  if metrics:
    lines += ["", "## Metrics", "", *_table(*((k, f"{v:.4f}") for k, v in metrics.items()))]
  lines += ["", "## Files", "", "| file | bytes | sha256 |", "|---|---|---|"]
  lines += [f"| {p.name} | {p.stat().st_size:,} | `{sha256_file(p)}` |" for p in written]
  lines += ["", "## Model options", "", "```json", json.dumps(found.model_options, indent=2), "```"]
  if "source" not in meta:
    lines += ["", "## Training config", "", "```json", json.dumps(found.config, indent=2), "```"]
  return "\n".join([*lines, ""])


def _origin(found: Checkpoint) -> str:
  meta = found.meta
  if source := meta.get("source"):
    return (
      f"Converted by jaxkd {jaxkd.__version__} from `{one_line(source['weights'])}` "
      f"(style {source['style']}, sha256 `{source['sha256']}`)."
    )
  data, teachers = found.config["data"]["name"], meta.get("teachers") or {}
  taught = ", ".join(f"{one_line(n)} (`{d[:16]}`)" for n, d in teachers.items()) or "none"
  return (
    f"Trained by jaxkd {jaxkd.__version__} on `{one_line(str(data))}` (digest `{meta['data_digest'][:16]}`), "
    f"step {found.step}; teachers: {taught}; checkpoint digest `{found.digest}`."
  )


def _loading(found: Checkpoint, style: str, written: list[Path]) -> str:
  h, w, c = found.meta["image_shape"]
  facts: dict[str, Any] = {"file": written[0].name, "folder": written[0].parent.name, "style": style}
  facts |= {"h": h, "w": w, "c": c, "architecture": ""}
  kind = "transformers" if style.startswith("transformers") else style if style in LOADING else ""
  if kind == "transformers":
    facts["architecture"] = json.loads(written[1].read_text())["architectures"][0]
    return LOADING[kind].format(**facts)
  built = models.create(**found.model_options)
  if (
    style == "timm" and isinstance(built, ViT) and not (built.registers or built.layer_scale or built.swiglu)
  ):
    return LOADING["timm"].format(**facts, **_timm(built))
  return LOADING[kind].format(**facts)


def _timm(model: ViT) -> dict[str, str]:
  """timm's class and arguments of the same model."""
  arguments = {
    "img_size": model.image_size if model.image_size[0] != model.image_size[1] else model.image_size[0],
    "patch_size": model.patch_size,
    "in_chans": model.in_channels,
    "num_classes": model.num_classes,
    "embed_dim": model.width,
    "depth": model.depth,
    "num_heads": model.heads,
    "mlp_ratio": model.mlp_ratio,
  }
  kind = "VisionTransformerDistilled" if model.distilled else "VisionTransformer"
  return {
    "module": "deit" if model.distilled else "vision_transformer",
    "kind": kind,
    "arguments": ", ".join(f"{k}={v}" for k, v in arguments.items()),
  }


def _classes(meta: dict[str, Any]) -> str:
  names = [one_line(str(n)) for n in meta["class_names"]]
  if not meta["num_classes"]:
    return "none (a backbone; its logits are the normalised features)"
  return ", ".join(names) if 0 < len(names) <= 100 else f"{meta['num_classes']}"


def _numbers(values: list[float]) -> str:
  return ", ".join(f"{v:.4f}" for v in values)


def _table(*rows: tuple[str, str]) -> list[str]:
  return ["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows)]
