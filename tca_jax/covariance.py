"""Covariance functions of Gaussian processes, as sums of squared exponentials.

Such a sum approximates the usual covariance functions, smooth and rough. The covariance
of averages over normally distributed locations has a closed form.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["LENGTHS", "Covariance", "limited_exp", "squared_length"]

#: The lengths of `Covariance.default`.
LENGTHS = tuple(0.6 * 2.5**i for i in range(4))

_LARGEST_CHANGE = 8.0  # of the logarithm of a variance, by the network
_DEFAULT_NOISE = -6.0  # the logarithm of the variance of the noise
_ROUGHNESS = 0.7  # the variances of the exponentials grow as length**(2 * roughness)


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["variances", "constant", "noise"],
  meta_fields=["lengths"],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Covariance:
  """A covariance function for each query.

  The covariance of the values at two locations of distance d is

    constant + sum over l of variances[l] * exp(-d**2 / (2 * lengths[l]**2)).

  Attributes:
    variances: `[..., L]` float32, positive.
    constant: `[...]` float32, not negative, the variance of an unknown constant.
    noise: `[...]` float32, positive, the variance of the noise of one observation.
    lengths: the L lengths, static.
  """

  variances: jax.Array
  constant: jax.Array
  noise: jax.Array
  lengths: tuple[float, ...] = LENGTHS

  @classmethod
  def default(cls) -> "Covariance":
    """The covariance function of a rough process, with axes `[]`."""
    variances = np.asarray(LENGTHS, np.float32) ** (2 * _ROUGHNESS)
    return cls(
      variances=jnp.asarray(variances),
      constant=jnp.float32(1),
      noise=jnp.float32(np.exp(_DEFAULT_NOISE)),
    )

  def changed(self, changes: jax.Array) -> "Covariance":
    """Multiplies the variances by `limited_exp` of changes.

    Args:
      changes: `[..., L + 2]`: of the variances, of the constant and of the noise. The
        axes of this function are broadcast to `[...]`.

    >>> Covariance.default().changed(jnp.zeros(len(LENGTHS) + 2)).constant.item()
    1.0
    """
    num, axes = len(self.lengths), changes.ndim - 1
    factors = jnp.split(limited_exp(changes), [num, num + 1], axis=-1)
    variances, constant, noise = factors[0], *(x[..., 0] for x in factors[1:])

    def expand(x: jax.Array) -> jax.Array:
      return jnp.expand_dims(x, range(axes - self.constant.ndim))

    return dataclasses.replace(
      self,
      variances=expand(self.variances) * variances,
      constant=expand(self.constant) * constant,
      noise=expand(self.noise) * noise,
    )

  @property
  def variance(self) -> jax.Array:
    """`[...]`, the variance of a value, without noise."""
    return self.constant + jnp.sum(self.variances, axis=-1)

  def between(self, square: jax.Array, spread: jax.Array, num_axes: int) -> jax.Array:
    """Computes covariances of averages over locations.

    The tokens of a node are taken as normally distributed around its centroid.

    Args:
      square: `[..., *n]`, the squared distances of pairs of centroids.
      spread: `[..., *n]`, the sums of the two variances of the tokens' locations, of one
        axis; 0 for two observations.
      num_axes: C, the number of axes.

    Returns:
      `[..., *n]`.
    """

    def expand(x: jax.Array) -> jax.Array:
      return jnp.expand_dims(x, range(x.ndim, square.ndim))

    total = expand(self.constant)
    for i, length in enumerate(self.lengths):
      shrink = 1 / (1 + spread / length**2)
      exponential = jnp.exp(square * shrink * (-0.5 / length**2))
      total += expand(self.variances[..., i]) * shrink ** (num_axes / 2) * exponential
    return total


def limited_exp(change: jax.Array) -> jax.Array:
  """Computes exp(x), where x is a change that is limited to (-8, 8), float32."""
  change = change.astype(jnp.float32) / _LARGEST_CHANGE
  return jnp.exp(_LARGEST_CHANGE * jnp.tanh(change))


def squared_length(offset: jax.Array) -> jax.Array:
  """Computes the squared length of vectors, `[..., C] -> [...]`.

  It adds up the axes one by one: a CPU is slow at sums along an axis of size two.

  >>> squared_length(jnp.array([[3.0, 4.0], [1.0, 0.0]])).tolist()
  [25.0, 1.0]
  """
  squares = [x**2 for x in jnp.unstack(offset, axis=-1)]
  return functools.reduce(jnp.add, squares)
