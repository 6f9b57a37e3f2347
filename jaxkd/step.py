"""The training step: a pure function (state, batch, frozen) -> (state, metrics), compiled once, state donated."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxkd import data, sharding
from jaxkd.experiment import Experiment
from jaxkd.teachers import Taps, normalize

# Streams of randomness under a run's seed.
MODEL, HEADS, STEPS = range(3)


@struct.dataclass
class TrainState:
  """All that a step changes. `ema` and `terms` are empty dicts where the run has none."""

  step: jax.Array  # int32 []
  params: dict[str, Any]  # {"model": ..., "heads": ...}
  stats: dict[str, Any]  # {"batch_stats": ...} or {}
  opt: Any
  ema: dict[str, Any]
  terms: dict[str, Any]
  skipped: jax.Array  # int32 []: updates left out because something was not finite


def init_state(experiment: Experiment) -> TrainState:
  """The state before step 0. Initial weights depend on the seed and the model only, not on terms or teachers."""
  key, objective = seed_key(experiment), experiment.objective
  variables = dict(
    _model_init(experiment.model, experiment.dataset.image_shape)(jax.random.fold_in(key, MODEL))
  )
  heads, terms = _once(lambda k: objective.init(k, *experiment.taps))(jax.random.fold_in(key, HEADS))
  params = {"model": variables.pop("params"), "heads": heads}
  ema = (
    jax.tree.map(jnp.copy, params) if experiment.uses_ema else {}
  )  # its own buffers: the step donates both
  step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
  return TrainState(step, params, variables, experiment.tx.init(params), ema, terms, skipped)


def seed_key(experiment: Experiment) -> jax.Array:
  """The key of the run. It is an input of every program, so that runs of other seeds reuse the compiled ones."""
  return jax.random.key(experiment.config.seed)


def _once(function):
  """A jitted function that runs once or rarely: on CPU it is compiled without optimisation, several times faster."""
  quickly = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
  return jax.jit(function, compiler_options=quickly)


@functools.lru_cache(maxsize=16)
def _model_init(model: nn.Module, image_shape: tuple[int, int, int]):
  return _once(lambda key: model.init(key, jnp.zeros((1, *image_shape), jnp.float32)))


def place(experiment: Experiment, state: TrainState) -> TrainState:
  """`state` on the mesh, by the path rules."""
  return sharding.put(state, sharding.state_shardings(state, experiment.mesh))


def frozen_inputs(experiment: Experiment) -> dict[str, Any]:
  """What every step reads and none changes: seed, training images on the device, teachers' variables."""
  train = experiment.dataset.train
  tree = {
    "images": train.images,
    "labels": train.labels,
    "teachers": {n: t.variables for n, t in experiment.teachers.items() if not t.is_ema},
  }
  everywhere = sharding.replicated(experiment.mesh)
  arrays = sharding.put(tree, jax.tree.map(lambda _: everywhere, tree))
  return {**arrays, "key": jax.device_put(seed_key(experiment), everywhere)}


@functools.lru_cache(maxsize=16)
def make_train_step(experiment: Experiment):
  """`step(state, index [b] int32, frozen) -> (state, metrics)`, jitted over the mesh, `state` donated.

  One compiled program serves all seeds of an experiment in this process.
  """

  def step(state: TrainState, index, frozen):
    loss_fn = loss_function(experiment, state, index, frozen)
    (total, aux), grads = jax.value_and_grad(_total(loss_fn), has_aux=True)(state.params)
    new, norm = _update(experiment, state, grads, aux)
    finite = jnp.isfinite(total) & jnp.isfinite(norm)
    keep = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
    skipped = state.skipped + (~finite).astype(jnp.int32)
    metrics = {"loss": total, **aux["logged"], "gradient_norm": norm, "lr": experiment.schedule(state.step)}
    metrics["skipped"] = skipped
    keep = keep.replace(step=state.step + 1, skipped=skipped)
    return jax.lax.with_sharding_constraint(keep, sharding.state_shardings(keep, experiment.mesh)), metrics

  return jax.jit(step, donate_argnums=0)


@functools.lru_cache(maxsize=16)
def make_gradient_shares(experiment: Experiment):
  """`shares(state, index, frozen) -> {term: norm}`: each weighted term's own gradient norm over all parameters."""

  def shares(state: TrainState, index, frozen):
    loss_fn = loss_function(experiment, state, index, frozen)
    names = [term.name for term in experiment.objective.terms]
    values, pull = jax.vjp(lambda p: jnp.stack([loss_fn(p)[0][n] for n in names]), state.params)
    norms = jax.vmap(lambda cotangent: optax.tree.norm(pull(cotangent)[0]))(
      jnp.eye(len(names), dtype=values.dtype)
    )
    return dict(zip(names, norms, strict=True))

  return _once(shares)


def _total(loss_fn):
  def total(params):
    weighted, aux = loss_fn(params)
    return sum(weighted.values()), aux

  return total


def loss_function(experiment: Experiment, state: TrainState, index, frozen):
  """`params -> ({term: weighted value}, {"logged", "stats", "terms"})` of this batch."""
  key = jax.random.fold_in(jax.random.fold_in(frozen["key"], STEPS), state.step)
  k_views, k_dropout = jax.random.split(key)
  views, labels = _views(experiment, index, frozen, k_views)
  targets = {n: t(_variables(t, state, frozen), views) for n, t in experiment.teachers.items()}

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
    )
    if taps["logits/cls"].shape[-1] == len(experiment.dataset.class_names):
      logged["accuracy"] = (taps["logits/cls"].argmax(-1) == labels).mean()
    return weighted, {"logged": logged, "stats": stats, "terms": terms}

  return loss_fn


def _views(experiment: Experiment, index, frozen, key):
  options = experiment.config.data
  # The gather reads replicated arrays; a split index splits its result over the devices.
  index = jax.lax.with_sharding_constraint(index, sharding.batch_sharding(experiment.mesh))
  images, labels = frozen["images"][index], frozen["labels"][index]
  views = data.make_views(
    images,
    key,
    mean=experiment.dataset.mean,
    augment=options.augment.to_dict(),
    views=options.views.to_dict(),
  )
  return views, jnp.tile(labels, options.views.global_count)


def _variables(teacher, state: TrainState, frozen):
  return {"params": state.ema["model"], **state.stats} if teacher.is_ema else frozen["teachers"][teacher.name]


def _student_taps(experiment: Experiment, params, stats, views, key):
  """Taps of the student's view, and of the small crops under the prefix `local/`."""
  taps: Taps = {}
  new_stats = stats
  for i, (view, prefix) in enumerate((("student", ""), ("local", "local/"))):
    if view not in views:
      continue
    x = normalize(views[view], experiment.dataset.mean, experiment.dataset.std)
    rngs = {"dropout": jax.random.fold_in(key, i)}
    (_, found), new_stats = experiment.model.apply(
      {"params": params, **new_stats}, x, train=True, rngs=rngs, mutable=list(stats)
    )
    taps |= {prefix + name: tap for name, tap in found.items()}
  return taps, dict(new_stats)


def _update(experiment: Experiment, state: TrainState, grads, aux):
  updates, opt = experiment.tx.update(grads, state.opt, state.params)
  params = optax.apply_updates(state.params, updates)
  ema = state.ema
  if experiment.uses_ema:
    ema = optax.incremental_update(params, state.ema, 1 - _ema_decay(experiment, state.step))
  new = TrainState(state.step, params, aux["stats"], opt, ema, aux["terms"], state.skipped)
  return new, optax.tree.norm(grads)


def _ema_decay(experiment: Experiment, step):
  """`train.ema`, or a cosine from it to `train.ema_end` over the run (DINO's momentum)."""
  start, end = experiment.config.train.ema, experiment.config.train.ema_end or experiment.config.train.ema
  return end - (end - start) * (jnp.cos(jnp.pi * step / experiment.steps) + 1) / 2
