"""Rigid-motion augmentation of point sets."""

import dataclasses

import jax
import jax.numpy as jnp

from experiments.common.batch import Batch


def random_rigid_motion(rng: jax.Array, batch: Batch, swaps: bool = True) -> Batch:
  """Reflects, rotates by 90 degrees and shifts each example of a batch at random.

  Each axis is reflected, and the axes are swapped, with probability 1/2; the shift is uniform
  on [-1, 1) along each axis. All distances within an example stay the same. Without
  this augmentation, a model memorises structure that depends on absolute position
  instead of attending to the context.

  Args:
    rng: a random key, consumed.
    batch: a `Batch`.
    swaps: whether the order of the axes is reversed. Axes with different units or
      periods must not be swapped; without swaps, an example is reflected and shifted,
      but not rotated by 90 degrees.

  Returns:
    The batch with new `coords` and `query_coords`.
  """
  shift_rng, reflection_rng, swap_rng = jax.random.split(rng, 3)
  shape = batch.coords.shape[0], 1, batch.coords.shape[-1]
  shift = jax.random.uniform(shift_rng, shape, jnp.float32, minval=-1, maxval=1)
  half = jnp.float32(0.5)  # a number without a data type would draw in the default one
  reflected = jax.random.bernoulli(reflection_rng, half, shape)
  sign = 2 * reflected.astype(batch.coords.dtype) - 1
  swap = jax.random.bernoulli(swap_rng, half, (shape[0], 1, 1))

  def move(coords: jax.Array) -> jax.Array:
    turned = jnp.where(swap, coords[..., ::-1], coords) if swaps else coords
    return turned * sign + shift

  return dataclasses.replace(
    batch, coords=move(batch.coords), query_coords=move(batch.query_coords)
  )
