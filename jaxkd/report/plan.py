"""A plan (`jaxkd.planning.plan.plan`) as console tables and as Markdown rows."""

from __future__ import annotations

from typing import Any

from rich.table import Column, Table
from rich.text import Text


def tables(plan: dict[str, Any]) -> list[Any]:
  """The whole plan: summary first, then what it is made of."""
  return [_summary(plan), _parameters(plan), _memory(plan), _shardings(plan), *_programs(plan), *_notes(plan)]


def quantity(value: float, unit: str = "", *, binary: bool = False) -> str:
  """A number with three digits and a prefix: 2.29 G, or 1.50 Gi with `binary`."""
  base, prefixes = (
    (1024, ("", "Ki", "Mi", "Gi", "Ti", "Pi")) if binary else (1000, ("", "k", "M", "G", "T", "P"))
  )
  for prefix in prefixes:
    if abs(value) < base or prefix == prefixes[-1]:
      break
    value /= base
  return f"{value:.3g} {prefix}{unit}".strip() if value < 999.5 else f"{value:,.0f} {prefix}{unit}".strip()


def collectives(plan: dict[str, Any]) -> list[dict[str, Any]]:
  """Those of one kind, size of group and purpose together: their `count` and the sum of their `bytes`."""
  rows: dict[tuple, dict[str, Any]] = {}
  for c in plan["collectives"]:
    key = (c["kind"], c["group"], c["purpose"])
    row = rows.setdefault(key, {**c, "count": 0, "bytes": 0})
    row["count"] += 1
    row["bytes"] += c["bytes"]
  return sorted(rows.values(), key=lambda row: -row["bytes"])


def memory(value: float) -> str:
  return quantity(value, "B", binary=True)


def _table(title: str, *columns: str) -> Table:
  named = [Column(c, justify="left" if i == 0 else "right", overflow="fold") for i, c in enumerate(columns)]
  return Table(*named, title=title, title_justify="left")


def _summary(p: dict[str, Any]) -> Table:
  hosts = f" on {p['hosts']} hosts" if p["hosts"] > 1 else ""
  table = _table(
    f"planned for {p['devices']} x {p['chip']}{hosts}; nothing was run", "per step", "value", "basis"
  )
  basis, parts = p["basis"], p["parts_ms"]
  attention = p["attention"]
  rows = [
    ("batch, compute", f"{p['batch_size']} images, {p['compute']}", "config"),
    ("parameters", f"{p['parameters']:,}", basis["parameters"]),
    ("FLOPs", quantity(p["flops_per_step"], "FLOP"), basis["flops_per_step"]),
    ("FLOPs per image", quantity(p["flops_per_step"] / p["batch_size"], "FLOP"), basis["flops_per_step"]),
    ("memory traffic", quantity(p["bytes_per_step"], "B"), basis["bytes_per_step"]),
    ("memory per device", memory(p["memory_per_device"]["total"]), basis["memory_per_device"]),
    ("attention", attention["implementation"], basis["attention"]),
    (
      "flash attention kernels",
      f"{attention['fmha_forward']} forward, {attention['fmha_backward']} backward",
      basis["attention"],
    ),
    ("arithmetic", f"{parts['arithmetic']:.3f} ms", f"{basis['chip']} rate"),
    ("memory", f"{parts['memory']:.3f} ms", f"{basis['chip']} rate"),
    ("communication", f"{parts['communication']:.3f} ms", f"{basis['chip']} rate"),
    ("step, at least", f"{p['step_ms']:.3f} ms", "planned"),
    ("images/s, at most", f"{p['images_per_s']:,.0f}", "planned"),
    (f"{p['chip']} hours of {p['steps']:,} steps, at least", f"{p['hours']:.3g}", "planned"),
  ]
  for row in rows:
    table.add_row(*row)
  return table


def _parameters(p: dict[str, Any]) -> Table:
  table = _table("parameters of the model", "module", "count", "share")
  for r in p["parameter_table"]:
    table.add_row(r["name"], f"{r['count']:,}", f"{r['share']:.1%}")
  for name, t in p["teachers"].items():
    kind = "live" if t["live"] else "from its bank"
    table.add_row(
      f"teacher {name} ({kind}, {t['input_size']} px, {t['attention']})", f"{t['parameters']:,}", ""
    )
  return table


def _memory(p: dict[str, Any]) -> Table:
  table = _table(f"memory of one device ({p['basis']['memory_per_device']})", "what", "bytes")
  for name, size in p["memory_per_device"].items():
    table.add_row(name, memory(size))
  return table


def _shardings(p: dict[str, Any]) -> Table:
  table = _table("state by sharding", "group", "sharding", "arrays", "bytes", "per device")
  for r in p["shardings"]:
    size, own = memory(r["bytes"]), memory(r["bytes_per_device"])
    table.add_row(r["group"], r["sharding"], str(r["arrays"]), size, own)
  return table


def _programs(p: dict[str, Any]) -> list[Table]:
  dots = _table(
    f"float32 matrix products ({p['basis']['float32_dots']})", "from", "count", "FLOPs", "precision", "reason"
  )
  for d in p["float32_dots"]:
    precision = "float32" if d["highest"] else "default"
    reason = d["reason"] or ("computes in float32" if p["compute"] == "float32" else "NOT EXPECTED")
    dots.add_row(f"{d['file']} {d['function']}", str(d["count"]), quantity(d["flops"]), precision, reason)
  made = _table(f"collectives ({p['basis']['collectives']})", "kind", "count", "bytes", "devices", "purpose")
  for c in collectives(p):
    made.add_row(c["kind"], str(c["count"]), memory(c["bytes"]), str(c["group"]), c["purpose"])
  kernels = _table("kernels (compiled)", "kind", "count")
  for kind, count in sorted(p.get("kernels", {}).items(), key=lambda item: -item[1]):
    kernels.add_row(kind, str(count))
  return [t for t in (dots, made, kernels) if t.rows]


def _notes(p: dict[str, Any]) -> list[Text]:
  return [Text(f"note: {text}") for text in p["notes"]]
