"""Random numbers of float32 in every mode of JAX."""

import jax
import jax.numpy as jnp


def uniform(
  rng: jax.Array,
  low: jax.typing.ArrayLike,
  high: jax.typing.ArrayLike,
  shape: tuple[int, ...] = (),
) -> jax.Array:
  """Draws uniform numbers on [low, high)."""
  return jax.random.uniform(rng, shape, jnp.float32, minval=low, maxval=high)


def log_uniform(
  rng: jax.Array, low: float, high: float, shape: tuple[int, ...] = ()
) -> jax.Array:
  """Draws numbers on [low, high) whose logarithms are uniform."""
  return jnp.exp(uniform(rng, jnp.log(low), jnp.log(high), shape))


def chance(
  rng: jax.Array, probability: jax.typing.ArrayLike, shape: tuple[int, ...] = ()
) -> jax.Array:
  """Draws bools that are True with a probability."""
  return jax.random.bernoulli(rng, jnp.asarray(probability, jnp.float32), shape)
