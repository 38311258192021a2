"""Examples moved as a whole, so that places mean nothing and neighbours all."""

import dataclasses

import jax
import jax.numpy as jnp

from experiments.common.task import Batch


def move(rng: jax.Array, batch: Batch) -> Batch:
  """Mirrors, turns by a right angle and shifts each example of a batch, at random.

  Distances stay as they are. What stands at the same place in all examples, a model
  learns by heart, and attends to nothing; what moves, it must find in the context.

  Args:
    rng: consumed.
    batch: with C = 2.

  Returns:
    The batch, each example shifted by up to 1 along both axes.
  """
  shift_rng, mirror_rng, turn_rng = jax.random.split(rng, 3)
  batch_size = batch.coords.shape[0]
  shift = jax.random.uniform(shift_rng, (batch_size, 1, 2), minval=-1, maxval=1)
  mirror = jax.random.rademacher(mirror_rng, (batch_size, 1, 2), batch.coords.dtype)
  turn = jax.random.bernoulli(turn_rng, shape=(batch_size, 1, 1))

  def place(coords: jax.Array) -> jax.Array:
    return jnp.where(turn, coords[..., ::-1], coords) * mirror + shift

  return dataclasses.replace(
    batch, coords=place(batch.coords), query_coords=place(batch.query_coords)
  )
