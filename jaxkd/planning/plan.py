"""`plan(config, ...)`: what a training step needs and does on a chip, without training anything."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxkd import replicas, sharding, step
from jaxkd.experiment import Experiment
from jaxkd.models import parameter_table
from jaxkd.models.parameters import variable_shapes
from jaxkd.planning import compiled, cuda, lowered, shapes
from jaxkd.planning.chips import Chip, chip
from jaxkd.planning.roofline import Work, step_time, wire_bytes

SCHEMA = "jaxkd.plan/1"
COUNTED, LOWERED, COMPILED, MEASURED = "counted", "lowered", "compiled", "measured"


def plan(
  config: ConfigDict, *, chip_name: str = "h100", topology: str = "1x1x1", compiling: bool = True
) -> dict[str, Any]:
  """What `config`'s training step is on a chip, as JSON types; `basis` says how each figure was found.

  Args:
    chip_name: "h100", "a100", or "cpu": this machine.
    topology: SLICESxHOSTSxDEVICES of a CUDA chip. compiling: whether to compile for it where that can be done.

  Returns:
    `parameters` (of the model), `parameter_table`, `teachers`, `flops_per_step` and `bytes_per_step` (of all devices
    together), `memory_per_device` (bytes by use), `state_bytes` and `alias_bytes` (per device), `shardings`,
    `collectives`, `kernels`, `attention`, `float32_dots`, `step_ms` with its `parts_ms`, `images_per_s`, `hours`
    (device hours of the whole run), `steps`, `notes` (what could not be found out), `basis`.

  Raises:
    UserError: the config's parts do not fit together or to the devices; unknown chip or topology.
  """
  target = chip(chip_name)
  slices, hosts, per_host = cuda.parse_topology(topology)
  devices = jax.device_count() if target.platform == "cpu" else slices * hosts * per_host
  mesh = shapes.mesh(devices, config.sharding.fsdp)
  sharding.check_batch(config.train.batch_size, mesh)
  one = shapes.build(config, sharding.make_mesh(devices=jax.devices()[:1]))
  arguments = shapes.arguments(one)
  wanted = config.model.get("attention", "auto")
  there = shapes.for_platform(one, target.platform, wanted)
  found: dict[str, Any] = {
    "schema": SCHEMA,
    "chip": target.name,
    "devices": devices,
    "hosts": slices * hosts if target.platform == "cuda" else 1,
    "topology": topology if target.platform == "cuda" else "this machine",
    "batch_size": config.train.batch_size,
    "compute": config.precision.compute,
    "remat": config.train.remat,
    "fsdp": config.sharding.fsdp,
    "steps": one.steps,
    "notes": [],
    "basis": {},
  }
  _add(found, COUNTED, **_parameters(one, there))
  costs = step.fresh_train_step(one).lower(*arguments).cost_analysis()
  _add(found, LOWERED, flops_per_step=costs["flops"], bytes_per_step=costs["bytes accessed"])
  _add(found, LOWERED, **_lowered(there, arguments, target))
  _add(found, COUNTED, **_memory(one, arguments, mesh))
  why = _why_not_compiled(target, compiling)
  if why:
    found["notes"] += [
      f"not compiled for {target.name}: {why}",
      "bytes_per_step is an upper bound: every operation reads and writes memory, nothing is fused",
    ]
  else:
    _compile(found, config, target, topology, wanted)
  _roofline(found, target)
  return found


def _add(found: dict[str, Any], basis: str, **figures: Any) -> None:
  found |= figures
  found["basis"] |= dict.fromkeys(figures, basis)


def _why_not_compiled(target: Chip, compiling: bool) -> str:
  if target.platform != "cuda":
    return "this machine's figures are lowered and measured"
  return cuda.missing() if compiling else "it was asked not to"


# --- counted ---


def _parameters(experiment: Experiment, there: Experiment) -> dict[str, Any]:
  """Of `experiment`'s models, with the attention they have `there`."""
  table = parameter_table(experiment.model, by="module")
  teachers = {
    name: {
      "parameters": _count(variable_shapes(t.model)["params"]),
      "attention": getattr(there.teachers[name].model, "attention", "none"),
      "input_size": t.size or experiment.dataset.image_shape[0],
      "live": not t.bank,
    }
    for name, t in experiment.teachers.items()
  }
  rows = [{"name": r["name"], "count": r["count"], "share": r["share"]} for r in table]
  return {"parameters": sum(r["count"] for r in table), "parameter_table": rows, "teachers": teachers}


def _count(tree: Any) -> int:
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def _bytes(tree: Any) -> int:
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _memory(experiment: Experiment, arguments: Any, mesh: Any) -> dict[str, Any]:
  """State, inputs and activations of one device, counted from shapes."""
  state, batch, frozen = arguments
  rows = _shardings(state, mesh)
  own = sum(r["bytes_per_device"] for r in rows)
  memory = {
    "state": own,
    "images, banks and teachers": _bytes(frozen),
    "batch": _bytes(batch) // mesh.size,
    "activations": _residuals(experiment, *arguments) // mesh.size,
  }
  memory["total"] = sum(memory.values())
  return {"shardings": rows, "state_bytes": own, "memory_per_device": memory}


def _shardings(state: Any, mesh: Any) -> list[dict[str, Any]]:
  """Bytes of the state by group and by how its arrays are split."""
  rows: dict[tuple[str, str], dict[str, Any]] = {}
  splits = jax.tree.leaves(sharding.state_shardings(state, mesh))
  for (path, leaf), split in zip(jax.tree_util.tree_leaves_with_path(state), splits, strict=True):
    name = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
    group = "/".join(name[:2]) if name[0] == "params" else name[0]
    spec = str(split.spec).removeprefix("PartitionSpec") if any(split.spec) else "replicated"
    empty = {"group": group, "sharding": spec, "arrays": 0, "bytes": 0, "bytes_per_device": 0}
    row = rows.setdefault((group, spec), empty)
    row["arrays"] += 1
    row["bytes"] += _bytes(leaf)
    row["bytes_per_device"] += math.prod(split.shard_shape(leaf.shape)) * leaf.dtype.itemsize
  return list(rows.values())


def _residuals(experiment: Experiment, state: Any, batch: Any, frozen: Any) -> int:
  """Bytes that the backward pass keeps of the forward pass, before XLA fuses or recomputes anything."""

  def kept(state, batch, frozen):
    loss = step.loss_function(experiment, state, batch, frozen)
    return jax.vjp(lambda p: sum(loss(p)[0].values()), state.params)[1]

  return _bytes(jax.eval_shape(replicas.over(experiment, kept), state, batch, frozen))


# --- lowered ---


def flops(function: Callable, *arguments: Any) -> float:
  """FLOPs of a function at these shapes, by XLA's count of the program lowered for CPU; a loop's body counts once."""
  jitted = function if hasattr(function, "lower") else jax.jit(function)
  return jitted.lower(*arguments).cost_analysis()["flops"]


def _lowered(experiment: Experiment, arguments: Any, target: Chip) -> dict[str, Any]:
  """Attention and float32 products of the step as it is handed to XLA for one device."""
  function = step.fresh_train_step(experiment)
  made = cuda.lower(function, *arguments) if target.platform == "cuda" else function.lower(*arguments)
  text = made.as_text(debug_info=True)
  forward, backward = lowered.attention_calls(text)
  attention = {
    "implementation": getattr(experiment.model, "attention", "none"),
    "fmha_forward": forward,
    "fmha_backward": backward,
  }
  dots = [{**vars(p), "reason": p.reason} for p in lowered.float32_products(text)]
  return {"attention": attention, "float32_dots": dots}


# --- compiled ---


def _compile(found: dict[str, Any], config: ConfigDict, target: Chip, topology: str, wanted: str) -> None:
  """Replaces what was counted by what the compiler says of one device's program."""
  mesh = sharding.make_mesh(fsdp=config.sharding.fsdp, devices=cuda.devices(target.name, topology))
  experiment = shapes.build(config, mesh)
  arguments = shapes.arguments(experiment)
  function = step.fresh_train_step(shapes.for_platform(experiment, target.platform, wanted))
  made = cuda.compile_for(function, *arguments)
  program, sizes = compiled.parse(made.as_text()), made.memory_analysis()
  inputs = sum(found["memory_per_device"][k] for k in ("images, banks and teachers", "batch"))
  memory = {
    "state": found["state_bytes"],
    "images, banks and teachers, batch": inputs,
    "activations and temporaries": sizes.temp_size_in_bytes,
    "code": sizes.generated_code_size_in_bytes,
  }
  memory["total"] = (
    sizes.argument_size_in_bytes
    + sizes.output_size_in_bytes
    - sizes.alias_size_in_bytes
    + sizes.temp_size_in_bytes
    + sizes.generated_code_size_in_bytes
  )
  _add(
    found,
    COMPILED,
    memory_per_device=memory,
    alias_bytes=sizes.alias_size_in_bytes,
    bytes_per_step=program.bytes * found["devices"],
    collectives=[vars(c) for c in program.collectives],
    kernels=program.kernels,
    compiled_attention=dict(zip(("fmha_forward", "fmha_backward"), program.attention, strict=True)),
  )


# --- roofline ---


def _roofline(found: dict[str, Any], target: Chip) -> None:
  if "collectives" not in found:
    _add(found, COUNTED, collectives=_expected(found))
  precise = sum(d["flops"] for d in found["float32_dots"] if d["highest"])
  fast = sum(d["flops"] for d in found["float32_dots"] if not d["highest"])
  if found["compute"] == "float32":
    fast = 0.0  # the rest is computed at that rate already
  work = Work(found["flops_per_step"], found["bytes_per_step"], precise, fast)
  sent = sum(wire_bytes(c["kind"], c["bytes"], c["group"]) for c in found["collectives"])
  time = step_time(
    work, target, dtype=found["compute"], devices=found["devices"], hosts=found["hosts"], sent=sent
  )
  _add(
    found,
    COUNTED,
    parts_ms={**vars(time)},
    step_ms=time.step,
    images_per_s=1e3 * found["batch_size"] / time.step,
    hours=time.step * found["steps"] * found["devices"] / 3.6e6,
  )
  found["basis"]["chip"] = target.basis
  need = found["memory_per_device"]["total"]
  if target.memory and need > target.memory:
    found["notes"].append(
      f"does not fit: {need / 1e9:.1f} GB of the {target.memory / 1e9:.0f} GB of each device; use more devices, "
      "a smaller train.batch_size with optim.accumulate, train.remat=blocks or sharding.fsdp"
    )


def _expected(found: dict[str, Any]) -> list[dict[str, Any]]:
  """The collectives of the gradients, where nothing was compiled: all other ones are small."""
  devices, fsdp = found["devices"], found["fsdp"]
  if devices == 1:
    return []
  params = [r for r in found["shardings"] if r["group"].startswith("params")]
  split = sum(r["bytes"] for r in params if r["sharding"] != "replicated")
  whole = sum(r["bytes"] for r in params if r["sharding"] == "replicated")
  made = [_collective("all-reduce", whole + split // fsdp, devices, "gradients")]
  if split:
    made += [
      _collective("all-gather", split, fsdp, "parameters"),
      _collective("reduce-scatter", split, fsdp, "gradients"),
    ]
  return made


def _collective(kind: str, size: int, group: int, why: str) -> dict[str, Any]:
  return {"kind": kind, "bytes": size, "group": group, "arrays": 0, "purpose": why}
