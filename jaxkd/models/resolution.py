"""What a model's `auto` options mean on another machine than this one."""

from typing import Any

from jaxkd.models.attention import resolve_implementation
from jaxkd.models.convolution import resolve_convolution


def resolved_for(model: Any, platform: str, attention: str = "auto") -> Any:
  """`model` with the attention that `attention` means on `platform` ("cuda", "cpu"), and that platform's convolutions.

  For planning only: such a model cannot run on another platform, while `create` resolves for this process.
  """
  chosen: dict[str, str] = {}
  if hasattr(model, "attention"):
    head_dim = model.width // model.heads
    chosen["attention"] = resolve_implementation(attention, model.dtype, head_dim=head_dim, platform=platform)
  if hasattr(model, "convolution"):
    chosen["convolution"] = resolve_convolution("auto", platform)
  return model.clone(**chosen) if chosen else model
