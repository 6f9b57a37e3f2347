"""transformers' own models beside ours, part by part by forward hooks. Needs torch and transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from jaxkd.weights.transformers_config import transformers_config


def build(options: Mapping[str, Any], state_dict: Mapping[str, Any]) -> torch.nn.Module:
  """The transformers model of `models.create(**options)`, holding `state_dict` in the names of its files or modules."""
  import transformers

  transformers.utils.logging.disable_progress_bar()
  config = transformers_config(dict(options))
  kind = getattr(transformers, config["architectures"][0])
  state = {
    k: torch.from_numpy(np.array(v)) if isinstance(v, np.ndarray) else v for k, v in state_dict.items()
  }
  settings = kind.config_class(**{k: v for k, v in config.items() if k != "architectures"})
  return kind.from_pretrained(None, config=settings, state_dict=state).eval()


def run(module: torch.nn.Module, images: np.ndarray) -> dict[str, np.ndarray]:
  """All parts for images [b h w c] float32, as numpy."""
  pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
  with torch.no_grad():
    parts = (_convnext if "convnext" in str(module.base_model_prefix) else _transformer)(module, pixels)
  return {name: part.numpy() for name, part in parts.items()}


def _transformer(module: Any, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
  body = getattr(module, module.base_model_prefix, module)
  layers = body.layers if hasattr(body, "layers") else body.encoder.layer
  parts: dict[str, torch.Tensor] = {}

  def keep(name: str) -> Callable:
    return lambda m, args, out: parts.__setitem__(name, out[0] if isinstance(out, tuple) else out)

  hooks = [body.embeddings.register_forward_hook(keep("embed/tokens"))]
  hooks += [m.register_forward_hook(keep(f"block{i:02d}/tokens")) for i, m in enumerate(layers)]
  hooks += [body.layernorm.register_forward_hook(keep("norm/tokens"))]
  resized = {} if "dinov2" in module.base_model_prefix else {"interpolate_pos_encoding": True}
  out = module(pixels, **resized)
  for hook in hooks:
    hook.remove()
  heads = {"cls_logits": "logits/cls", "distillation_logits": "logits/dist"}
  parts |= {tap: out[key] for key, tap in heads.items() if key in out}
  if "logits" in out and "logits/dist" not in parts:
    parts["logits/cls"] = out["logits"]
  parts.setdefault("logits/cls", parts["norm/tokens"][:, 0])  # a backbone's answer here
  return parts


def _convnext(module: Any, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
  body = getattr(module, module.base_model_prefix, module)
  out = module(pixels, output_hidden_states=True)
  maps = {"stem": body.embeddings(pixels)}
  maps |= {f"stage{i}": m for i, m in enumerate(out.hidden_states[1:])}
  logits = out["logits"] if "logits" in out else out["pooler_output"]
  return {k: m.permute(0, 2, 3, 1) for k, m in maps.items()} | {"logits/cls": logits}
