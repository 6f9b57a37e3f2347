"""The training step: a pure function (state, batch, frozen) -> (state, metrics), compiled once, state donated."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from jaxkd import averaging, data, losses, replicas, sam, sharding, stopping
from jaxkd import bank as bank_of
from jaxkd import parameter_groups as groups
from jaxkd.bank import Bank
from jaxkd.data.augment import sample_boxes
from jaxkd.experiment import Experiment
from jaxkd.feed import Batch
from jaxkd.models.layers import BATCH_NORM_MOMENTUM
from jaxkd.plateau import plateau_scale
from jaxkd.targets import Taps
from jaxkd.teachers import normalize

# Streams of randomness under a run's seed.
MODEL, HEADS, STEPS = range(3)
WHITENING_IMAGES = 256  # from which a teacher's space is fitted


class TrainState(struct.PyTreeNode):
  """All that a run changes. `ema`, `terms`, `average` and `watch` are empty dicts where the run has none.

  Of a run with replicas every array has a leading axis more.
  """

  step: jax.Array  # int32 []
  params: dict[str, Any]  # {"model": ..., "heads": ...}
  stats: dict[str, Any]  # {"batch_stats": ...} or {}
  opt: Any
  ema: dict[str, Any]
  terms: dict[str, Any]
  skipped: jax.Array  # int32 []: updates left out because something was not finite
  fault: dict[str, jax.Array]  # of the last one: "step" int32 [], -1 before; "terms" bool [t]
  average: dict[str, Any]  # SWA: variables to infer with, {"params": ..., "batch_stats": ...}
  watch: dict[str, jax.Array]  # early stopping: "best" float32 [], "bad" int32 []


def init_state(experiment: Experiment) -> TrainState:
  """The state before step 0. Initial weights depend on the seed and the model only, not on terms or teachers."""
  init = model_init(experiment.model, experiment.dataset.image_shape)
  heads = _once(experiment.objective.init)
  if experiment.replicas:
    return replicas.stack([_fresh(experiment, key, init, heads) for key in seed_key(experiment)])
  return _fresh(experiment, seed_key(experiment), init, heads)


def state_shapes(experiment: Experiment) -> TrainState:
  """The shapes and dtypes of `init_state`; nothing is computed."""
  init = _initializer(experiment.model, experiment.dataset.image_shape)
  count = (len(experiment.replicas),) if experiment.replicas else ()
  shapes = jax.eval_shape(lambda: _fresh(experiment, jax.random.key(0), init, experiment.objective.init))
  return jax.tree.map(lambda s: jax.ShapeDtypeStruct(count + s.shape, s.dtype), shapes)


def _fresh(experiment: Experiment, key: jax.Array, init_model, init_heads) -> TrainState:
  objective = experiment.objective
  variables = dict(init_model(jax.random.fold_in(key, MODEL)))
  heads, terms = init_heads(jax.random.fold_in(key, HEADS))
  # Copies have their own buffers: the step donates all.
  average = jax.tree.map(jnp.copy, variables) if experiment.uses_swa else {}
  params = {"model": variables.pop("params"), "heads": heads}
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    stats=variables,
    opt=experiment.tx.init(params),
    ema=jax.tree.map(jnp.copy, params) if experiment.uses_ema else {},
    terms=terms,
    skipped=jnp.zeros((), jnp.int32),
    fault={"step": jnp.full((), -1, jnp.int32), "terms": jnp.zeros(len(objective.terms), bool)},
    average=average,
    watch=stopping.fresh() if experiment.config.train.patience else {},
  )


def seed_key(experiment: Experiment) -> jax.Array:
  """The key of the run, or [k] those of replicas; an input of every program, so that other seeds reuse the compiled."""
  if experiment.replicas:
    return jnp.stack([jax.random.key(seed) for seed in experiment.replicas])
  return jax.random.key(experiment.config.seed)


def _once(function):
  """A jitted function that runs once or rarely: on CPU it is compiled without optimisation, several times faster."""
  quickly = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
  return jax.jit(function, compiler_options=quickly)


@functools.lru_cache(maxsize=16)
def model_init(model: nn.Module, image_shape: tuple[int, int, int]):
  """`init(key) -> variables` for images [h w c], one program that is compiled quickly."""
  return _once(_initializer(model, image_shape))


def _initializer(model: nn.Module, image_shape: tuple[int, int, int]):
  return lambda key: model.init(key, jnp.zeros((1, *image_shape), jnp.float32))


def place(experiment: Experiment, state: TrainState) -> TrainState:
  """`state` on the mesh, by the path rules."""
  return sharding.put(state, sharding.state_shardings(state, experiment.mesh))


def frozen_inputs(experiment: Experiment, banks: dict[str, Bank] | None = None) -> dict[str, Any]:
  """What every step reads and none changes: seed, images unless streamed, teachers or their banks, on the device."""
  train, banks = experiment.dataset.train, banks or {}
  resident = experiment.dataset.placement == "device"
  tree = {
    **({"images": train.images, "labels": train.labels} if resident else {}),
    "boxes": bank_of.fixed_boxes(experiment),
    "teachers": {n: t.variables for n, t in experiment.teachers.items() if not t.is_ema and n not in banks},
    "banks": {n: b.arrays for n, b in banks.items() if bank_of.place(experiment, b) == "device"},
    "whitening": fit_whitenings(experiment, banks),
  }
  everywhere = sharding.replicated(experiment.mesh)
  arrays = sharding.put(tree, jax.tree.map(lambda _: everywhere, tree))
  key = sharding.put(jax.random.key_data(seed_key(experiment)), everywhere)
  return {**arrays, "key": jax.random.wrap_key_data(key)}


def fit_whitenings(experiment: Experiment, banks: dict[str, Bank]) -> dict[str, Any]:
  """Whitening maps (mean, matrix) by term and layer, fitted on the first training images' teacher features."""
  found: dict[str, Any] = {}
  cache: dict[str, dict[str, np.ndarray]] = {}
  for term, layer, target in experiment.objective.whitened():
    name = target.teacher
    if name not in cache:
      cache[name] = _sample_targets(experiment, name, banks.get(name))
    rows = cache[name][target.key].astype(np.float32).reshape(-1, cache[name][target.key].shape[-1])
    space = np.asarray(losses.normalize_tokens(jnp.asarray(rows)))
    found.setdefault(term.name, {})[f"layer{layer}"] = tuple(map(np.asarray, losses.fit_whitening(space)))
  return found


def _sample_targets(experiment: Experiment, name: str, bank: Bank | None) -> dict[str, np.ndarray]:
  """A teacher's targets for the first training images, in their first geometry where those are fixed."""
  train = experiment.dataset.train
  index = np.arange(min(WHITENING_IMAGES, len(train)))
  if bank is not None:
    return bank.rows(index, np.zeros_like(index))
  boxes, source = bank_of.fixed_boxes(experiment), jnp.asarray(train.images[index], jnp.float32) / 255
  images = source if boxes is None else sample_boxes(source, jnp.asarray(boxes[index, 0]), source.shape[1])
  teacher = experiment.teachers[name]
  variables = teacher.variables

  def make(variables, x):
    return experiment.objective.make_targets(name, teacher(variables, {teacher.view: x}))

  return jax.device_get(_once(make)(variables, images))


@functools.lru_cache(maxsize=16)
def make_train_step(experiment: Experiment):
  """`step(state, batch, frozen) -> (state, metrics)`, jitted over the mesh, `state` donated.

  One compiled program serves all seeds of an experiment in this process.
  """

  return fresh_train_step(experiment)


def fresh_train_step(experiment: Experiment):
  """`make_train_step`, never shared: for experiments that differ in more than their config says (planning)."""
  return jax.jit(_with_precision(experiment, functools.partial(_step, experiment)), donate_argnums=0)


def _with_precision(experiment: Experiment, function):
  """`function`, its matrix products and convolutions as precise as `precision.matmul` says."""
  wanted = experiment.config.precision.matmul
  if wanted == "default":
    return function

  def precise(*arguments):
    with jax.default_matmul_precision(wanted):
      return function(*arguments)

  return precise


@functools.lru_cache(maxsize=16)
def make_train_steps(experiment: Experiment):
  """`steps(state, batches, frozen) -> (state, metrics)`: one step after the other in one dispatch.

  The leaves of `batches` have a leading axis of steps; `metrics` are those of the last one. `state` is donated.
  """

  def steps(state: TrainState, batches: Batch, frozen):
    state, metrics = jax.lax.scan(lambda s, batch: _step(experiment, s, batch, frozen), state, batches)
    return state, jax.tree.map(lambda m: m[-1], metrics)

  return jax.jit(_with_precision(experiment, steps), donate_argnums=0)


def _step(experiment: Experiment, state: TrainState, batch: Batch, frozen):
  advance = replicas.over(experiment, functools.partial(_advance, experiment))
  new, metrics = advance(state, batch, frozen)
  return jax.lax.with_sharding_constraint(new, sharding.state_shardings(new, experiment.mesh)), metrics


def _advance(experiment: Experiment, state: TrainState, batch: Batch, frozen):
  """A step of one run, or of one replica."""
  loss_fn = loss_function(experiment, state, batch, frozen)
  total, aux, grads = _gradient(experiment, loss_fn, state.params)
  norm = _trained_norm(experiment, grads)
  finite = jnp.isfinite(total) & jnp.isfinite(norm)
  new = _update(experiment, state, grads, aux)
  keep = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
  fault = {"step": state.step, "terms": ~jnp.isfinite(jnp.stack(list(aux["weighted"].values())))}
  keep = keep.replace(
    step=state.step + 1,
    skipped=state.skipped + (~finite).astype(jnp.int32),
    fault=jax.tree.map(lambda a, b: jnp.where(finite, a, b), state.fault, fault),
  )
  metrics = {"loss": total, **aux["logged"], "gradient_norm": norm, "lr": learning_rate(experiment, state)}
  metrics["skipped"] = keep.skipped
  return keep, metrics


def learning_rate(experiment: Experiment, state: TrainState) -> jax.Array:
  """What the update of the next step is multiplied by: steps left out do not count, and plateaus do."""
  return experiment.schedule(state.step - state.skipped) * plateau_scale(state.opt)


def _gradient(experiment: Experiment, loss_fn, params):
  """Loss, what comes with it, and the gradient: at `params`, or SAM's."""

  def total(params):
    weighted, aux = loss_fn(params)
    return sum(weighted.values()), {**aux, "weighted": weighted}

  value_and_grad, optim = jax.value_and_grad(total, has_aux=True), experiment.config.optim
  (value, aux), grads = value_and_grad(params)
  if optim.sam_rho:
    trained = groups.keep_trained(grads, optim.freeze)
    grads = value_and_grad(sam.perturb(params, trained, rho=optim.sam_rho))[1]
  return value, aux, grads


def _trained_norm(experiment: Experiment, grads) -> jax.Array:
  return optax.tree.norm(groups.keep_trained(grads, experiment.config.optim.freeze))


@functools.lru_cache(maxsize=16)
def make_gradient_shares(experiment: Experiment):
  """`shares(state, batch, frozen) -> {term: norm}`: each weighted term's own gradient norm, of trained parameters."""

  def shares(state: TrainState, batch: Batch, frozen):
    loss_fn = loss_function(experiment, state, batch, frozen)
    names = [term.name for term in experiment.objective.terms]
    values, pull = jax.vjp(lambda p: jnp.stack([loss_fn(p)[0][n] for n in names]), state.params)
    norms = jax.vmap(lambda cotangent: _trained_norm(experiment, pull(cotangent)[0]))(
      jnp.eye(len(names), dtype=values.dtype)
    )
    return dict(zip(names, norms, strict=True))

  return _once(_with_precision(experiment, replicas.over(experiment, shares)))


def loss_function(experiment: Experiment, state: TrainState, batch: Batch, frozen):
  """`params -> ({term: weighted value}, {"logged", "stats", "terms"})` of this batch."""
  k_views, k_dropout = _keys(frozen, state.step)
  views, labels = _views(experiment, batch, frozen, k_views)
  targets = {n: _targets(experiment, n, state, batch, frozen, views) for n in experiment.teachers}

  def loss_fn(params):
    taps, stats = _student_taps(experiment, params["model"], state.stats, views, k_dropout)
    weighted, logged, terms = experiment.objective(
      taps,
      targets,
      labels,
      heads=params["heads"],
      ema_heads=state.ema.get("heads", {}),
      state=state.terms,
      step=state.step,
      mix=views.get("mix"),
      whitening=frozen["whitening"],
    )
    if taps["logits/cls"].shape[-1] == len(experiment.dataset.class_names):
      logged["accuracy"] = (taps["logits/cls"].argmax(-1) == labels).mean()
    return weighted, {"logged": logged, "stats": stats, "terms": terms}

  return loss_fn


def _keys(frozen, step) -> jax.Array:
  """Keys of the views and of dropout at this step: [2]."""
  return jax.random.split(jax.random.fold_in(jax.random.fold_in(frozen["key"], STEPS), step))


@functools.lru_cache(maxsize=16)
def make_batch_statistics(experiment: Experiment):
  """`statistics(params, batch, frozen, step)`: what a batch adds to BatchNorm's statistics, as `TrainState.stats`.

  Mean and biased variance of the model's activations in training mode, `params` being the model's. With small crops
  both sizes of views count, by their weights in a running average.
  """

  def statistics(params, batch: Batch, frozen, step):
    k_views, k_dropout = _keys(frozen, step)
    views, _ = _views(experiment, batch, frozen, k_views)
    shapes = jax.eval_shape(experiment.model.init, k_dropout, views["student"][:1])
    zeros = {k: jax.tree.map(jnp.zeros_like, v) for k, v in shapes.items() if k != "params"}
    _, found = _student_taps(experiment, params, zeros, views, k_dropout)
    zeros_share = BATCH_NORM_MOMENTUM ** (2 if "local" in views else 1)
    return jax.tree.map(lambda s: s / (1 - zeros_share), found)

  return _once(_with_precision(experiment, statistics))


def _views(experiment: Experiment, batch: Batch, frozen, key):
  options = experiment.config.data
  # The gather reads replicated arrays; a split index splits its result over the devices.
  split = sharding.batch_sharding(experiment.mesh)
  index = jax.lax.with_sharding_constraint(batch["index"], split)
  if "images" in batch:
    images, labels = jax.lax.with_sharding_constraint((batch["images"], batch["labels"]), split)
  else:
    images, labels = frozen["images"][index], frozen["labels"][index]
  count = options.views.global_count
  fixed = {}
  if options.augment.geometries:
    fixed = {"boxes": frozen["boxes"][jnp.tile(index, count), batch["geometry"]]}
  views = data.make_views(
    images,
    key,
    mean=experiment.dataset.mean,
    augment=options.augment.to_dict(),
    views=options.views.to_dict(),
    **fixed,
  )
  # Several views of an image lie one batch apart: left to itself, XLA computes all of them on every device.
  shown = {name: view for name, view in views.items() if name != "mix"}
  return views | jax.lax.with_sharding_constraint(shown, split), jnp.tile(labels, count)


def _targets(experiment: Experiment, name: str, state: TrainState, batch: Batch, frozen, views) -> Taps:
  """What the terms take from teacher `name`: from its bank, or computed from its view."""
  if name in batch.get("features", {}):
    return batch["features"][name]
  if name in frozen["banks"]:
    index = jnp.tile(batch["index"], experiment.config.data.views.global_count)
    bank = frozen["banks"][name]
    clean = experiment.teachers[name].view == "clean"
    return {key: a[index, 0 if clean else batch["geometry"]] for key, a in bank.items()}
  teacher = experiment.teachers[name]
  return experiment.objective.make_targets(name, teacher(_variables(teacher, state, frozen), views))


def _variables(teacher, state: TrainState, frozen):
  return {"params": state.ema["model"], **state.stats} if teacher.is_ema else frozen["teachers"][teacher.name]


def _student_taps(experiment: Experiment, params, stats, views, key):
  """Taps of the student's view, and of the small crops under the prefix `local/`."""
  taps: Taps = {}
  new_stats, want = stats, experiment.objective.wanted()
  for i, (view, prefix) in enumerate((("student", ""), ("local", "local/"))):
    if view not in views:
      continue
    x = normalize(views[view], experiment.dataset.mean, experiment.dataset.std)
    rngs = {"dropout": jax.random.fold_in(key, i)}
    (_, found), new_stats = experiment.model.apply(
      {"params": params, **new_stats}, x, train=True, rngs=rngs, mutable=list(stats), want=want
    )
    taps |= {prefix + name: tap for name, tap in found.items()}
  return taps, dict(new_stats)


def _update(experiment: Experiment, state: TrainState, grads, aux) -> TrainState:
  updates, opt = experiment.tx.update(grads, state.opt, state.params)
  params = optax.apply_updates(state.params, updates)
  ema = averaging.move_ema(experiment, state, params) if experiment.uses_ema else state.ema
  return state.replace(params=params, stats=aux["stats"], opt=opt, ema=ema, terms=aux["terms"])
