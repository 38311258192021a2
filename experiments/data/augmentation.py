"""Augmentation: motions and stretches of point sets, and images of parts of two."""

import dataclasses
import math

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


def random_stretch(rng: jax.Array, batch: Batch, largest: float) -> Batch:
  """Rotates and stretches each example of a batch of two coordinates at random.

  Half of the examples are rotated by an angle that is uniform; half of the examples are
  then stretched along one axis and compressed along the other. A model learns from this
  that values can vary faster in one direction than in another, as they do if the
  coordinates of a table have different units.

  Args:
    rng: a random key, consumed.
    batch: a `Batch` with C = 2.
    largest: the largest ratio of the stretches of both axes; its logarithm is uniform.

  Returns:
    The batch with new `coords` and `query_coords`.
  """
  turn_rng, angle_rng, stretch_rng, ratio_rng = jax.random.split(rng, 4)
  shape, half = (len(batch.coords), 1), jnp.float32(0.5)
  angle = jax.random.uniform(angle_rng, shape, jnp.float32, maxval=2 * math.pi)
  angle *= jax.random.bernoulli(turn_rng, half, shape)
  limit = math.log(largest) / 2
  stretch = jax.random.uniform(
    ratio_rng, shape, jnp.float32, minval=-limit, maxval=limit
  )
  stretch = jnp.exp(stretch * jax.random.bernoulli(stretch_rng, half, shape))

  def move(coords: jax.Array) -> jax.Array:
    x, y = coords[..., 0], coords[..., 1]
    east = jnp.cos(angle) * x - jnp.sin(angle) * y
    north = jnp.sin(angle) * x + jnp.cos(angle) * y
    return jnp.stack([east * stretch, north / stretch], axis=-1)

  return dataclasses.replace(
    batch, coords=move(batch.coords), query_coords=move(batch.query_coords)
  )


def join_images(rng: jax.Array, images: jax.Array, share: float) -> jax.Array:
  """Replaces a part of some images by that of another image, along a random line.

  A model sees more shapes than a data set has, and learns less of the whole shapes that
  the data set has.

  Args:
    rng: a random key, consumed.
    images: `[B, H, W, E]`; the other image is the one before in the batch.
    share: the probability that an image gets a part of another one.

  Returns:
    `[B, H, W, E]`. The line has a random direction, and a distance from the middle of
    the image that is uniform up to 0.4 of half its size.
  """
  angle_rng, distance_rng, use_rng = jax.random.split(rng, 3)
  batch, height, width, _ = images.shape
  shape = (batch, 1, 1)
  angle = jax.random.uniform(angle_rng, shape, jnp.float32, maxval=2 * math.pi)
  distance = jax.random.uniform(
    distance_rng, shape, jnp.float32, minval=-0.4, maxval=0.4
  )
  used = jax.random.bernoulli(use_rng, jnp.float32(share), shape)
  y = jnp.linspace(-1, 1, height, dtype=jnp.float32)[None, :, None]
  x = jnp.linspace(-1, 1, width, dtype=jnp.float32)[None, None]
  beyond = jnp.cos(angle) * x + jnp.sin(angle) * y > distance
  return jnp.where((used & beyond)[..., None], jnp.roll(images, 1, axis=0), images)
