"""Images as sets of pixels (Sec. 4.2): the sampler."""

import jax
import jax.numpy as jnp

from experiments.common.batch import Batch

MAX_PIXELS = 200  # context and targets of an image together are fewer
MIN_PIXELS = 3
MAX_CONTEXT = MAX_PIXELS - MIN_PIXELS - 1


def scale(row_and_column: jax.typing.ArrayLike, height: int, width: int) -> jax.Array:
  """Scales pixel indices to coordinates in [-1, 1].

  Args:
    row_and_column: `[..., 2]` int.
    height: the number of rows of the image.
    width: the number of columns of the image.

  Returns:
    `[..., 2]` float32.

  >>> scale(jnp.array([[0, 27], [27, 0]]), 28, 28).tolist()
  [[-1.0, 1.0], [1.0, -1.0]]
  """
  last = jnp.array([height - 1, width - 1], jnp.float32)
  return 2 * jnp.asarray(row_and_column).astype(jnp.float32) / last - 1


def sample(rng: jax.Array, images: jax.Array) -> Batch:
  """Draws the context and target pixels of a batch of images (Sec. 4.2).

  For each image, num_ctx is uniform on [3, 197) and num_tar on [3, 200 - num_ctx);
  this many distinct pixels are drawn. Coordinates are scaled to [-1, 1], and values are
  pixel / 255 - 0.5. All sizes are padded to one shape. The paper draws one pair of sizes
  for a batch; the distribution of a single example is the same.

  Args:
    rng: a random key, consumed.
    images: `[B, H, W, E]` uint8, with H * W >= 200.

  Returns:
    A `Batch` with N = 196, M = 196 and C = 2.
  """
  batch, height, width, channels = images.shape
  size_rng, pixel_rng = jax.random.split(rng)
  context_rng, target_rng = jax.random.split(size_rng)
  num_context = jax.random.randint(
    context_rng, (batch, 1), MIN_PIXELS, MAX_PIXELS - MIN_PIXELS, jnp.int32
  )
  num_targets = jax.random.randint(
    target_rng, (batch, 1), MIN_PIXELS, MAX_PIXELS - num_context, jnp.int32
  )
  noise = jax.random.uniform(pixel_rng, (batch, height * width), jnp.float32)
  _, chosen = jax.lax.top_k(noise, MAX_PIXELS)
  slots = jnp.arange(MAX_CONTEXT)
  # The targets follow the context in the order in which pixels are drawn.
  target_slots = jnp.minimum(num_context + slots, MAX_PIXELS - 1)
  pixels = images.reshape(batch, height * width, channels)

  def gather(index: jax.Array) -> tuple[jax.Array, jax.Array]:
    row_and_column = jnp.stack(jnp.divmod(index, width), axis=-1)
    values = jnp.take_along_axis(pixels, index[..., None], axis=1)
    coords = scale(row_and_column, height, width)
    return coords, values.astype(jnp.float32) / 255 - 0.5

  context = chosen[:, :MAX_CONTEXT]
  targets = jnp.take_along_axis(chosen, target_slots, axis=1)
  coords, values = gather(context)
  query_coords, target_values = gather(targets)
  return Batch(
    coords=coords,
    values=values,
    mask=slots < num_context,
    query_coords=query_coords,
    targets=target_values,
    query_mask=slots < num_targets,
  )
