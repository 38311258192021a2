"""Heads, and the distributions that they predict."""

import math

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from tca_jax import objectives
from tca_jax.checks import as_array
from tca_jax.checks import check_sizes
from tca_jax.modules.interface import Units
from tca_jax.modules.layers import Dtype
from tca_jax.modules.layers import MLP

__all__ = [
  "Categorical",
  "ClassificationHead",
  "Gaussian",
  "GaussianHead",
  "GaussianMixture",
  "MixtureHead",
  "Regression",
]

_BISECTIONS = 30


@chex.dataclass(frozen=True)
class Gaussian:
  """Independent normal distributions of E channels.

  Attributes:
    mean: `[..., E]` float32.
    std: `[..., E]` float32, positive.
  """

  mean: jax.Array
  std: jax.Array

  def in_units(self, units: Units) -> "Gaussian":
    """Returns the distributions that these mean in the units of a relative read-out.

    >>> one = jnp.ones(1)
    >>> units = Units(origin=5 * one, scale=2 * one, std_scale=3 * one)
    >>> there = Gaussian(mean=one, std=one).in_units(units)
    >>> there.mean.item(), there.std.item()
    (7.0, 3.0)
    """
    return Gaussian(
      mean=units.origin + units.scale * self.mean, std=units.std_scale * self.std
    )

  def log_prob(self, targets: jax.Array) -> jax.Array:
    """Computes the log density in nats, summed over channels.

    Args:
      targets: `[..., E]`.

    Returns:
      `[...]` float32.

    >>> round(Gaussian(mean=jnp.zeros(1), std=jnp.ones(1)).log_prob(jnp.zeros(1)).item(), 4)
    -0.9189
    """
    return objectives.gaussian_log_likelihood(self.mean, self.std, targets)

  def interval_coverage(self, targets: jax.Array, level: float) -> jax.Array:
    """Computes the fraction of channels whose target is in the central interval.

    Args:
      targets: `[..., E]`.
      level: the probability of the interval, in (0, 1). The coverage of a calibrated
        model is equal to it on average.

    Returns:
      `[...]` float32 in [0, 1].

    >>> normal = Gaussian(mean=jnp.zeros(2), std=jnp.ones(2))
    >>> normal.interval_coverage(jnp.array([0.6, 0.7]), 0.5).item()
    0.5
    """
    std, targets = as_array("std", self.std), as_array("targets", targets)
    quantile = jax.scipy.stats.norm.ppf((1 + level) / 2)
    half_width = std * quantile.astype(std.dtype)
    return jnp.mean(
      jnp.abs(targets - as_array("mean", self.mean)) <= half_width, axis=-1
    )

  def quantile(self, level: float) -> jax.Array:
    """Computes the value below which a target is with a probability, for each channel.

    Args:
      level: the probability, in (0, 1).

    Returns:
      `[..., E]` float32.

    >>> round(Gaussian(mean=jnp.ones(1), std=jnp.ones(1)).quantile(0.95).item(), 3)
    2.645
    """
    standard = jax.scipy.stats.norm.ppf(level)
    return self.mean + self.std * standard.astype(self.std.dtype)


@chex.dataclass(frozen=True)
class GaussianMixture:
  """Independent mixtures of K normal distributions, of E channels.

  Where errors are small most of the time and large now and then, a mixture is
  calibrated at all levels, and a normal distribution is not.

  Attributes:
    log_weights: `[..., E, K]` float32, the logarithms of weights whose sum is 1.
    means: `[..., E, K]` float32.
    stds: `[..., E, K]` float32, positive.
  """

  log_weights: jax.Array
  means: jax.Array
  stds: jax.Array

  @property
  def mean(self) -> jax.Array:
    """`[..., E]` float32, the mean of the mixture."""
    return jnp.sum(jnp.exp(self.log_weights) * self.means, axis=-1)

  @property
  def std(self) -> jax.Array:
    """`[..., E]` float32, the standard deviation of the mixture."""
    square = self.stds**2 + (self.means - self.mean[..., None]) ** 2
    return jnp.sqrt(jnp.sum(jnp.exp(self.log_weights) * square, axis=-1))

  def in_units(self, units: Units) -> "GaussianMixture":
    """Returns the distributions that these mean in the units of a relative read-out."""
    units = jax.tree.map(lambda x: x[..., None], units)
    return GaussianMixture(
      log_weights=self.log_weights,
      means=units.origin + units.scale * self.means,
      stds=units.std_scale * self.stds,
    )

  def log_prob(self, targets: jax.Array) -> jax.Array:
    """Computes the log density in nats, `[..., E] -> [...]`, summed over channels.

    >>> same = GaussianMixture(
    ...   log_weights=jnp.log(jnp.full((1, 2), 0.5)),
    ...   means=jnp.zeros((1, 2)),
    ...   stds=jnp.ones((1, 2)),
    ... )
    >>> round(same.log_prob(jnp.zeros(1)).item(), 4)
    -0.9189
    """
    targets = as_array("targets", targets)
    density = jax.scipy.stats.norm.logpdf(targets[..., None], self.means, self.stds)
    by_channel = jax.nn.logsumexp(self.log_weights + density, axis=-1)
    return jnp.sum(by_channel, axis=-1)

  def interval_coverage(self, targets: jax.Array, level: float) -> jax.Array:
    """Computes the fraction of channels whose target is in the central interval.

    The interval has equal probability on both sides of the median.

    Args:
      targets: `[..., E]`.
      level: the probability of the interval, in (0, 1).

    Returns:
      `[...]` float32 in [0, 1].
    """
    targets = as_array("targets", targets)
    return jnp.mean(jnp.abs(2 * self._below(targets) - 1) <= level, axis=-1)

  def quantile(self, level: float) -> jax.Array:
    """Computes the value below which a target is with a probability, for each channel.

    The quantile of a mixture is between those of its components, and is found there by
    bisection.

    Args:
      level: the probability, in (0, 1).

    Returns:
      `[..., E]` float32.
    """
    standard = jax.scipy.stats.norm.ppf(level)
    ends = self.means + self.stds * standard.astype(self.stds.dtype)

    def halve(_, ends):
      low, high = ends
      middle = (low + high) / 2
      right = self._below(middle) < level
      return jnp.where(right, middle, low), jnp.where(right, high, middle)

    bounds = jnp.min(ends, axis=-1), jnp.max(ends, axis=-1)
    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, bounds)
    return (low + high) / 2

  def _below(self, values: jax.Array) -> jax.Array:
    """The probability of a channel below `[..., E]` values."""
    below = jax.scipy.stats.norm.cdf(values[..., None], self.means, self.stds)
    return jnp.sum(jnp.exp(self.log_weights) * below, axis=-1)


@chex.dataclass(frozen=True)
class Categorical:
  """Categorical distributions over K classes.

  Attributes:
    logits: `[..., K]`.
  """

  logits: jax.Array

  def log_prob(self, labels: jax.Array) -> jax.Array:
    """Computes the log-probability of labels in nats.

    Args:
      labels: `[...]` int in [0, K).

    Returns:
      `[...]` float32.

    >>> round(Categorical(logits=jnp.zeros((1, 4))).log_prob(jnp.array([2])).item(), 4)
    -1.3863
    """
    return objectives.categorical_log_likelihood(self.logits, labels)

  def accuracy(self, labels: jax.Array) -> jax.Array:
    """Returns 1 where the most probable class is the label, else 0.

    Args:
      labels: `[...]` int in [0, K).

    Returns:
      `[...]` float32.

    >>> Categorical(logits=jnp.eye(2)).accuracy(jnp.array([0, 0])).tolist()
    [1.0, 0.0]
    """
    return objectives.accuracy(self.logits, labels)


#: A distribution of continuous values.
Regression = Gaussian | GaussianMixture


class ClassificationHead(nn.Module):
  """Predicts class logits, `[..., D] -> [..., num_classes]` float32.

  Attributes:
    num_classes: K.
    hidden: the width of the hidden layer.
    dtype: the data type of activations.
  """

  num_classes: int
  hidden: int = 128
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    check_sizes(num_classes=self.num_classes, hidden=self.hidden)
    mlp = MLP([self.hidden, self.num_classes], nn.relu, self.dtype)
    return mlp(x).astype(jnp.float32)


class GaussianHead(nn.Module):
  """Predicts a `Gaussian` of E channels from `[..., D]`.

  Attributes:
    num_outputs: E.
    min_std: the lower bound of the standard deviation, which is min_std + (1 -
      min_std) * softplus(raw). None means exp(raw), without a lower bound.
    hidden: the width of the hidden layer.
    dtype: the data type of activations.
  """

  num_outputs: int
  min_std: float | None = 0.05
  hidden: int = 128
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> Gaussian:
    check_sizes(num_outputs=self.num_outputs, hidden=self.hidden)
    _check_min_std(self.min_std)
    mlp = MLP([self.hidden, 2 * self.num_outputs], nn.relu, self.dtype)
    mean, raw = jnp.split(mlp(x).astype(jnp.float32), 2, axis=-1)
    if self.min_std is None:
      return Gaussian(mean=mean, std=jnp.exp(raw))
    std = self.min_std + (1 - self.min_std) * nn.softplus(raw)
    return Gaussian(mean=mean, std=std)


class MixtureHead(nn.Module):
  """Predicts a `GaussianMixture` of E channels from `[..., D]`.

  Attributes:
    num_outputs: E.
    num_components: K.
    min_std: the lower bound of standard deviations, as in `GaussianHead`.
    hidden: the width of the hidden layer.
    dtype: the data type of activations.
  """

  num_outputs: int
  num_components: int = 3
  min_std: float = 0.01
  hidden: int = 128
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> GaussianMixture:
    components = self.num_components
    check_sizes(
      num_outputs=self.num_outputs, num_components=components, hidden=self.hidden
    )
    _check_min_std(self.min_std)
    shape = (self.num_outputs, 3, self.num_components)
    mlp = MLP([self.hidden, math.prod(shape)], nn.relu, self.dtype)
    raw = mlp(x).astype(jnp.float32).reshape(*x.shape[:-1], *shape)
    logits, means, stds = (raw[..., i, :] for i in range(3))
    # Components start with different widths; otherwise they stay alike for long.
    spread = jnp.linspace(-1, 1, self.num_components, dtype=jnp.float32)
    stds += jnp.expand_dims(spread, range(stds.ndim - 1))
    return GaussianMixture(
      log_weights=jax.nn.log_softmax(logits),
      means=means,
      stds=self.min_std + (1 - self.min_std) * nn.softplus(stds),
    )


def _check_min_std(min_std: float | None) -> None:
  if min_std is not None and not 0 <= min_std < 1:
    raise ValueError(f"min_std must be in [0, 1) or None, got {min_std}")
