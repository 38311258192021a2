"""Covariance functions that fit the values of a context.

How well a value can be predicted from others depends on how smooth the values are, over
which length they vary, and how much. Kriging estimates these hyper-parameters by the
likelihood of the observations. Here the likelihoods of a fixed list of candidates are
compared: smooth functions (squared exponentials) and rough ones (Matern-3/2), of several
lengths and scales, for locations and values of order 1. Kriging then uses their average,
in which a candidate weighs as much as it is probable.

The likelihood is the approximation of Vecchia (1988): the product of the probability
densities of each value given those of a few tokens before it. In the order of the leaves
of a tree, these are near. A part of the tokens of a large context suffices. Queries only
see the K likelihoods.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from tca_jax.covariance import Covariance
from tca_jax.covariance import squared_length

__all__ = ["LENGTHS", "NUM_CANDIDATES", "average", "last_tokens", "log_likelihoods"]

_RATIO = 1.6
#: The lengths of the squared exponentials of `average`.
LENGTHS = tuple(0.06 * _RATIO**i for i in range(9))
_CANDIDATE_LENGTHS = LENGTHS[1:-1]
_SCALES = 0.1 * 1.75 ** np.arange(6)  # standard deviations of the values
_CONSTANT = 1e-3  # the variance of a constant, in the average
_ROUGH = 1.5  # the smoothness of the rough candidates
_WINDOW = (6, 3, 2, 1, 0)  # a density is conditioned on the tokens so many before
_MOST_TOKENS = 4096

#: K, the number of candidates.
NUM_CANDIDATES = 2 * len(_CANDIDATE_LENGTHS) * len(_SCALES)


@functools.cache
def _variances() -> np.ndarray:
  """`[K, L]`, the variances of the squared exponentials of each candidate."""
  smooth = np.eye(len(LENGTHS))[1:-1]
  # A Matern function is an average of squared exponentials. Their squared lengths, in
  # units of that of the function, have a gamma distribution. Each is split between the
  # two nearest of the lengths.
  log_square = np.linspace(-9, 3, 4001)
  density = np.exp(_ROUGH * (log_square - np.exp(log_square)))
  log_length = np.log(_CANDIDATE_LENGTHS)[:, None] + log_square / 2
  position = (log_length - np.log(LENGTHS[0])) / np.log(_RATIO)
  position = np.clip(position, 0, len(LENGTHS) - 1)
  share = np.maximum(0, 1 - np.abs(position[..., None] - np.arange(len(LENGTHS))))
  rough = density @ share / np.sum(density)
  unit = np.stack([smooth, rough])[:, :, None]  # [2, lengths, 1, L]
  variances = unit * _SCALES[:, None] ** 2
  return variances.reshape(NUM_CANDIDATES, -1).astype(np.float32)


def average(weights: jax.Array, noise: jax.Array) -> Covariance:
  """Averages the candidates.

  Args:
    weights: `[..., K]` float32, with sum 1.
    noise: `[...]`, the variance of the noise; it is broadcast to these axes.

  Returns:
    A `Covariance` with axes `[...]`.

  >>> weights = jax.nn.softmax(jnp.zeros(NUM_CANDIDATES))
  >>> round(average(weights, jnp.float32(0.01)).variance.item(), 2)
  0.67
  """
  shape = weights.shape[:-1]
  return Covariance(
    variances=jnp.matmul(weights, _variances(), precision="highest"),
    constant=jnp.full(shape, _CONSTANT, jnp.float32),
    noise=jnp.broadcast_to(noise, shape),
    lengths=LENGTHS,
  )


def log_likelihoods(
  location: jax.Array,
  value: jax.Array,
  valid: jax.Array,
  noise: jax.Array,
  before: tuple[jax.Array, jax.Array, jax.Array] | None = None,
) -> jax.Array:
  """Computes the logarithm of the likelihood of each candidate, up to a constant.

  Channels have the same covariance function and are independent. Their mean is 0.

  Args:
    location: `[n, C]` float32, in an order in which near tokens follow each other, such
      as that of leaves. Of more than 4,096, some are left out, evenly spaced.
    value: `[n, E]` float32.
    valid: `[n]` bool, True at valid tokens.
    noise: `[]` float32, positive, the variance of the noise.
    before: location, value and valid of tokens before the first, on which the others
      are conditioned.

  Returns:
    `[K]` float32.

  >>> x = jnp.linspace(0, 1, 50)[:, None]
  >>> found = log_likelihoods(x, jnp.sin(3 * x), jnp.ones(50, bool), jnp.float32(1e-4))
  >>> smooth, rough = found.reshape(2, -1).max(axis=1)
  >>> bool(smooth > rough)
  True
  """
  counted = valid
  if before is not None:
    counted = jnp.concatenate([jnp.zeros_like(before[2]), counted])
    location, value, valid = (
      jnp.concatenate(parts)
      for parts in zip(before, (location, value, valid), strict=True)
    )
  order = jnp.argsort(~valid, stable=True)[:: -(-len(valid) // _MOST_TOKENS)]
  location, value, counted = location[order], value[order], counted[order]
  number = jnp.arange(len(order))[:, None]

  def covariance(distance: int) -> jax.Array:
    """`[n, K]`, of each token and that which is `distance` before."""
    offset = location - jnp.roll(location, distance, axis=0)
    square = squared_length(offset)[..., None]
    rates = np.asarray(-0.5 / np.square(LENGTHS), np.float32)[None]
    exponentials = jnp.exp(square * rates)
    return jnp.matmul(exponentials, _variances().T, precision="highest")

  distances = {first - second for first, second in itertools.combinations(_WINDOW, 2)}
  covariances = {distance: covariance(distance) for distance in sorted(distances)}

  # The tokens of a window, of which the last is that whose density is computed. By
  # Gaussian elimination, one after the other is taken as given: `among[p, q]` are the
  # covariances of tokens p and q, `[n, K]`, and `errors[p]` is `[n, K, E]`.
  tokens = range(len(_WINDOW))
  among = {(p, p): jnp.sum(_variances(), axis=-1)[None] + noise for p in tokens}
  for p, q in itertools.combinations(tokens, 2):
    pair = jnp.roll(covariances[_WINDOW[p] - _WINDOW[q]], _WINDOW[q], axis=0)
    among[q, p] = jnp.where(number >= _WINDOW[p], pair, 0)
  errors = [
    jnp.where(number >= distance, jnp.roll(value, distance, axis=0), 0)[:, None]
    for distance in _WINDOW
  ]
  for given in tokens[:-1]:
    for p in tokens[given + 1 :]:
      weight = among[p, given] / among[given, given]
      errors[p] -= weight[..., None] * errors[given]
      for q in tokens[given + 1 : p + 1]:
        among[p, q] -= weight * among[q, given]
      # Rounding does not make it smaller than the noise.
      among[p, p] = jnp.maximum(among[p, p], noise)
  variance = among[tokens[-1], tokens[-1]]
  square = squared_length(errors[-1])
  log_density = -0.5 * (square / variance + value.shape[-1] * jnp.log(variance))
  return jnp.sum(jnp.where(counted[:, None], log_density, 0), axis=0)


def last_tokens(
  location: jax.Array, value: jax.Array, valid: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns the last valid tokens: what `log_likelihoods` takes as `before`.

  Args:
    location: `[n, C]`.
    value: `[n, E]`.
    valid: `[n]` bool.
  """
  last = jnp.argsort(valid, stable=True)[-_WINDOW[0] :]
  return location[last], value[last], valid[last]
