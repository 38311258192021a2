"""Heads, and the distributions that they predict."""

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from tca_jax import objectives
from tca_jax.modules.layers import Dtype
from tca_jax.modules.layers import MLP

__all__ = ["Categorical", "ClassificationHead", "Gaussian", "GaussianHead"]


@chex.dataclass(frozen=True)
class Gaussian:
  """Independent normal distributions of E channels.

  Attributes:
    mean: `[..., E]` float32.
    std: `[..., E]` float32, positive.
  """

  mean: jax.Array
  std: jax.Array

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
    quantile = jax.scipy.stats.norm.ppf((1 + level) / 2)
    half_width = self.std * quantile.astype(self.std.dtype)
    return jnp.mean(jnp.abs(targets - self.mean) <= half_width, axis=-1)


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
    mlp = MLP([self.hidden, 2 * self.num_outputs], nn.relu, self.dtype)
    mean, raw = jnp.split(mlp(x).astype(jnp.float32), 2, axis=-1)
    if self.min_std is None:
      return Gaussian(mean=mean, std=jnp.exp(raw))
    std = self.min_std + (1 - self.min_std) * nn.softplus(raw)
    return Gaussian(mean=mean, std=std)
