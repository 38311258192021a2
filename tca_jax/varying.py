"""The devices over which an array varies under `jax.shard_map`.

The carry of a `jax.lax.scan` keeps its type. If the loop mixes it with an array that
varies over devices, its first value must vary over them, too.
"""

import jax
import jax.numpy as jnp

__all__ = ["vary_like"]


def vary_like(x: jax.Array, *others: jax.typing.ArrayLike) -> jax.Array:
  """Makes an array vary over the devices over which other arrays vary.

  It adds a zero that depends on the other arrays, which XLA removes. The functions of
  JAX for this purpose have other names in each version.

  Args:
    x: the array.
    *others: the other arrays.

  Returns:
    An array with the values of x.

  >>> vary_like(jnp.int32(7), jnp.array([jnp.inf])).item()
  7
  """
  for other in others:
    first = jnp.ravel(other)[:1]
    zero = first.astype(bool).astype(x.dtype) * 0  # of NaN, too
    x += jnp.sum(zero, dtype=x.dtype)
  return x
