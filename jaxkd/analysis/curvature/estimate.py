"""A trace with its uncertainty: the values of the probes, by parameter, and what follows from them."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.special import stdtrit

BlockOf = Callable[[str], str]


@dataclass(frozen=True, eq=False)
class TraceEstimate:
  """A stochastic estimate of a trace.

  Attributes:
    mean: the estimate.
    stderr: its standard error: the noise of the probes only, not of the sample of images.
    probes: matrix-vector products used, which is what an estimate costs.
    per_block: block name -> (mean, stderr) of the trace of that diagonal block; the means add up to `mean`.
    leaf_values: parameter path -> [values] float64, what each value is made of. Two Hutchinson estimates made with
      the same key used the same probes, so their differences may be taken value by value.
    head_values: parameter path -> [values heads] float64 of the attention kernels, if heads were asked for.
  """

  mean: float
  stderr: float
  probes: int
  per_block: dict[str, tuple[float, float]]
  leaf_values: dict[str, np.ndarray] = field(repr=False)
  head_values: dict[str, np.ndarray] = field(repr=False, default_factory=dict)

  @property
  def values(self) -> np.ndarray:
    """The values whose mean is the estimate, [values] float64: one a probe (v'Hv) for Hutchinson's estimator."""
    return np.sum(list(self.leaf_values.values()), axis=0)

  @property
  def interval(self) -> tuple[float, float]:
    """95 % interval of the mean by Student's t, values - 1 degrees of freedom."""
    return t_interval(self.mean, self.stderr, len(self.values))

  @property
  def block_intervals(self) -> dict[str, tuple[float, float]]:
    """95 % t interval of every block's trace, each for itself."""
    return {name: t_interval(*pair, len(self.values)) for name, pair in self.per_block.items()}

  @property
  def per_head(self) -> dict[str, tuple[float, float]]:
    """`block07/head2` -> (mean, stderr): the traces of that head's columns of qkv and rows of proj together."""
    blocks: dict[str, np.ndarray] = {}
    for path, values in self.head_values.items():
      name = path.rsplit("/attn/", 1)[0]
      blocks[name] = blocks.get(name, 0) + values
    return {
      f"{name}/head{h}": mean_and_stderr(values[:, h])
      for name, values in blocks.items()
      for h in range(values.shape[1])
    }

  def by(self, block_of: BlockOf) -> dict[str, tuple[float, float]]:
    """The same probes grouped by another rule (`layer_type`, say): block name -> (mean, stderr)."""
    groups: dict[str, list[np.ndarray]] = {}
    for path, values in self.leaf_values.items():
      groups.setdefault(block_of(path), []).append(values)
    return {name: mean_and_stderr(np.sum(members, axis=0)) for name, members in groups.items()}


def summary(
  leaf_values: dict[str, np.ndarray],
  probes: int,
  block_of: BlockOf,
  head_values: dict[str, np.ndarray] | None = None,
) -> TraceEstimate:
  """The estimate that these values, [values] for each parameter path, make."""
  mean, stderr = mean_and_stderr(np.sum(list(leaf_values.values()), axis=0))
  bare = TraceEstimate(mean, stderr, probes, {}, leaf_values)
  return TraceEstimate(mean, stderr, probes, bare.by(block_of), leaf_values, head_values or {})


def t_interval(mean: float, stderr: float, values: int, confidence: float = 0.95) -> tuple[float, float]:
  """Student's interval of a mean of `values` independent values."""
  half = float(stdtrit(values - 1, (1 + confidence) / 2)) * stderr
  return mean - half, mean + half


def mean_and_stderr(values: np.ndarray) -> tuple[float, float]:
  return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
