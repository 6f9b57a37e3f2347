"""Starting from other weights: the model's parameters and statistics, nothing else, and a report of what was taken."""

from __future__ import annotations

import dataclasses
import logging
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxkd import checkpoint, files
from jaxkd.errors import UserError
from jaxkd.experiment import Experiment, create_model
from jaxkd.models.parameters import variable_shapes
from jaxkd.step import TrainState
from jaxkd.weights.opened import is_weights, open_weights
from jaxkd.weights.read import check_digest

log = logging.getLogger("jaxkd")
DECIDED = ("name", "image_size", "in_channels", "num_classes", "dtype")  # by the data set, not by the user
SHOWN = 10


@dataclasses.dataclass(frozen=True)
class WarmStart:
  """`taken`: variables by path, in the model's dtypes. The lists name what is not taken, and why."""

  source: str
  digest: str
  taken: dict[str, np.ndarray]
  missing: tuple[str, ...]  # the model has it, the source has not
  unexpected: tuple[str, ...]  # the other way round
  other_shape: tuple[str, ...]
  other_classes: tuple[str, ...]  # same shape, but the rows mean other classes
  cast: tuple[str, ...]  # taken, from another floating dtype

  def summary(self) -> dict[str, Any]:
    """What `init.json` records."""
    lists = {
      k: list(getattr(self, k)) for k in ("missing", "unexpected", "other_shape", "other_classes", "cast")
    }
    return {"source": self.source, "digest": self.digest, "taken": sorted(self.taken), **lists}

  def apply(self, state: TrainState) -> TrainState:
    """`state`, fresh, with these variables in the model, its moving average and its running statistics.

    All replicas get them.
    """

    def put(collection: str, tree):
      flat = traverse_util.flatten_dict(tree, sep="/")
      new = {k: jnp.broadcast_to(self.taken.get(f"{collection}/{k}", v), v.shape) for k, v in flat.items()}
      return traverse_util.unflatten_dict(new, sep="/")

    model = put("params", state.params["model"])
    ema = {**state.ema, "model": jax.tree.map(jnp.copy, model)} if state.ema else state.ema
    stats = {name: put(name, tree) for name, tree in state.stats.items()}
    average = jax.tree.map(jnp.copy, {"params": model, **stats}) if state.average else state.average
    return state.replace(params={**state.params, "model": model}, stats=stats, ema=ema, average=average)

  def record(self, folder: Path) -> None:
    """Writes `init.json` and says in the log what was taken."""
    files.write_json(folder / "init.json", self.summary())
    log.info("init.weights %s: %d arrays taken", self.source, len(self.taken))
    for name, paths in self.summary().items():
      if isinstance(paths, list) and paths and name != "taken":
        log.info("init.weights %s: %s", name, _some(paths))


def load(experiment: Experiment) -> WarmStart | None:
  """The weights of `config.init`, compared with the model name by name; None when it names none.

  Every difference must match one of the regular expressions `init.allow` as a whole path (`head/kernel`).

  Raises:
    UserError: no such weights, a difference that is not allowed, an expression that matches nothing, nothing in
      common, an array that is not floating point or not finite. IntegrityFailure: not the pinned digest.
  """
  options = experiment.config.init
  if not options.weights:
    return None
  variables, meta, digest = _open(experiment)
  found = {k: np.asarray(v) for k, v in traverse_util.flatten_dict(variables, sep="/").items()}
  wanted = _shapes(experiment.model_options)
  start = _compare(experiment, found, wanted, meta, digest)
  _check(start, tuple(options.allow), found, wanted)
  return start


def _open(experiment: Experiment) -> tuple[Any, dict[str, Any], str]:
  options = experiment.config.init
  if not is_weights(options.weights):
    source = checkpoint.load(options.weights)
    if options.sha256:
      check_digest(source.digest, options.sha256, options.weights)
    return source.variables, source.meta, source.digest
  own = experiment.config.model.to_dict()
  given = {k: v for k, v in own.items() if k not in DECIDED}
  opened = open_weights(options.weights, model=own["name"], options=given, sha256=options.sha256)
  return opened.conversion.variables, opened.meta(), opened.digest


def _shapes(options: dict[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
  return traverse_util.flatten_dict(dict(variable_shapes(create_model(options))), sep="/")


def _class_paths(options: dict[str, Any], wanted: dict[str, jax.ShapeDtypeStruct]) -> set[str]:
  """The arrays whose shape depends on the number of classes."""
  if not options["num_classes"]:
    return set()
  more = _shapes({**options, "num_classes": options["num_classes"] + 1})
  return {k for k, v in wanted.items() if more[k].shape != v.shape}


def _compare(experiment: Experiment, found, wanted, meta: dict[str, Any], digest: str) -> WarmStart:
  both = sorted(found.keys() & wanted.keys())
  same = [k for k in both if found[k].shape == wanted[k].shape]
  names, ours = tuple(meta["class_names"]), tuple(experiment.dataset.class_names)
  foreign = _class_paths(experiment.model_options, wanted) if names and names != ours else set()
  taken = [k for k in same if k not in foreign]
  _check_numbers({k: found[k] for k in taken})
  return WarmStart(
    source=experiment.config.init.weights,
    digest=digest,
    taken={k: found[k].astype(wanted[k].dtype) for k in taken},
    missing=tuple(sorted(wanted.keys() - found.keys())),
    unexpected=tuple(sorted(found.keys() - wanted.keys())),
    other_shape=tuple(k for k in both if k not in same),
    other_classes=tuple(k for k in same if k in foreign),
    cast=tuple(k for k in taken if found[k].dtype != wanted[k].dtype),
  )


def _check_numbers(arrays: dict[str, np.ndarray]) -> None:
  for name, x in arrays.items():
    if not jnp.issubdtype(x.dtype, jnp.floating):
      raise UserError(
        f"init.weights: '{name}' has dtype {x.dtype}, not a floating one", "use unquantised weights"
      )
    if not np.isfinite(x.astype(np.float32)).all():
      raise UserError(f"init.weights: '{name}' is not finite", "use another checkpoint")


def _check(start: WarmStart, allow: tuple[str, ...], found, wanted) -> None:
  try:
    patterns = [re.compile(p) for p in allow]
  except re.error as e:
    raise UserError(f"init.allow: {e.pattern!r} is no regular expression ({e})", "e.g. 'head/.*'") from e
  names = {k: _short(k) for k in {*found, *wanted}}
  for pattern in patterns:
    if not any(pattern.fullmatch(n) for n in names.values()):
      raise UserError(
        f"init.allow: {pattern.pattern!r} matches no array", f"there are {_some(sorted(names.values()))}"
      )
  lists = {
    k: v for k, v in start.summary().items() if k in ("missing", "unexpected", "other_shape", "other_classes")
  }
  refused = {k: [n for n in v if not any(p.fullmatch(_short(n)) for p in patterns)] for k, v in lists.items()}
  if text := "; ".join(f"{k.replace('_', ' ')}: {_some(v)}" for k, v in refused.items() if v):
    raise UserError(
      f"init.weights {start.source} does not fit the model: {text}",
      "choose fitting weights, or let these start fresh, e.g. --config.init.allow='head/.*'",
    )
  if not any(k.startswith("params/") for k in start.taken):
    raise UserError(
      f"init.weights {start.source} has nothing in common with the model", "choose other weights"
    )


def _short(path: str) -> str:
  """Parameters by their path in the model, as `optim.freeze` has them; statistics with their collection."""
  return path.removeprefix("params/")


def _some(paths: list[str]) -> str:
  more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
  return ", ".join(map(_short, paths[:SHOWN])) + more
