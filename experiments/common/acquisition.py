"""Acquisition functions of Bayesian optimisation, and the candidates that they score.

All functions minimise: a small value is good. A predicted distribution is a
`tca_jax.GaussianMixture` of one channel; a normal distribution is a mixture of one.
"""

import jax
import jax.numpy as jnp

from experiments.common.draws import log_uniform
from experiments.common.draws import uniform
import tca_jax

_RADII = (1e-3, 0.5)  # of the candidates near the best point, in sides of the cube


def expected_improvement(
  output: tca_jax.GaussianMixture, best: jax.typing.ArrayLike
) -> jax.Array:
  r"""Computes by how much a value is expected to be below the best one, E[max(best - y, 0)].

  For a mixture of normal distributions with weights $w_k$, means $m_k$ and standard
  deviations $s_k$,

  $$\sum_k w_k s_k (z_k \Phi(z_k) + \phi(z_k)), \quad z_k = (best - m_k) / s_k.$$

  Args:
    output: distributions of `[M, 1]` values.
    best: `[]`, the smallest value that was observed.

  Returns:
    `[M]` float32, at least 0.

  >>> one = jnp.ones((1, 1, 1))
  >>> normal = tca_jax.GaussianMixture(log_weights=0 * one, means=0 * one, stds=one)
  >>> round(expected_improvement(normal, 0.0).item(), 4)  # 1 / sqrt(2 pi)
  0.3989
  """
  z = (jnp.asarray(best, jnp.float32) - output.means) / output.stds
  normal = jax.scipy.stats.norm
  unit = jnp.maximum(z * normal.cdf(z) + normal.pdf(z), 0)  # rounding could be below 0
  return jnp.sum(jnp.exp(output.log_weights) * output.stds * unit, axis=(-2, -1))


def marginal_thompson(rng: jax.Array, output: tca_jax.GaussianMixture) -> jax.Array:
  """Draws a value at each candidate, and returns its negative.

  The draws are independent. Thompson sampling in the strict sense draws one function,
  whose values at near candidates are alike; a model that predicts each query by itself
  has no such joint distribution. Independent draws explore more.

  Args:
    rng: a random key, consumed.
    output: distributions of `[M, 1]` values.

  Returns:
    `[M]` float32.
  """
  component_rng, value_rng = jax.random.split(rng)
  component = jax.random.categorical(component_rng, output.log_weights)[..., None]
  mean, std = (
    jnp.take_along_axis(x, component, axis=-1)[..., 0, 0]
    for x in (output.means, output.stds)
  )
  return -mean - std * jax.random.normal(value_rng, mean.shape, jnp.float32)


def near(rng: jax.Array, centres: jax.Array, used: jax.Array) -> jax.Array:
  """Draws a point near each centre, within the unit cube.

  Its distance has a random scale, whose logarithm is uniform.

  Args:
    rng: a random key, consumed.
    centres: `[n, C]`.
    used: `[C]` bool, the axes along which points differ from their centres.

  Returns:
    `[n, C]` float32.
  """
  radius_rng, step_rng = jax.random.split(rng)
  radius = log_uniform(radius_rng, *_RADII, (len(centres), 1))
  step = jax.random.normal(step_rng, centres.shape, jnp.float32) * used
  return jnp.clip(centres + radius * step, 0, 1)


def draw_candidates(
  rng: jax.Array, best: jax.Array, used: jax.Array, size: int
) -> jax.Array:
  """Draws candidates: half uniform in the unit cube, half near the best point.

  Args:
    rng: a random key, consumed.
    best: `[C]`, the best point so far.
    used: `[C]` bool; the coordinates of the other axes are 0.
    size: M.

  Returns:
    `[M, C]` float32.
  """
  uniform_rng, near_rng = jax.random.split(rng)
  anywhere = uniform(uniform_rng, 0, 1, (size // 2, len(used)))
  centres = jnp.broadcast_to(best, (size - size // 2, len(used)))
  return jnp.concatenate([anywhere * used, near(near_rng, centres, used)])
