"""Images as sets of pixels: the sampler."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import images


def test_sample_pixels_are_distinct_and_have_true_values(rng):
  data = rng.integers(0, 256, (50, 28, 28, 3), dtype=np.uint8)
  batch = jax.jit(images.sample)(jax.random.key(0), data)
  assert batch.coords.shape == (50, 196, 2) and batch.targets.shape == (50, 196, 3)
  batch = jax.device_get(batch)

  def drawn(coords, values, mask, i):
    pixel = np.rint((coords[i][mask[i]] + 1) * 27 / 2).astype(int)
    expected = data[i][tuple(pixel.T)] / 255 - 0.5
    np.testing.assert_allclose(values[i][mask[i]], expected, atol=1e-6)
    return pixel.tolist()

  for i in range(50):
    context = drawn(batch.coords, batch.values, batch.mask, i)
    targets = drawn(batch.query_coords, batch.targets, batch.query_mask, i)
    pixels = {tuple(pixel) for pixel in context + targets}
    assert len(pixels) == len(context) + len(targets), "a target is in the context"


def test_sample_sizes_have_the_published_distribution():
  batch = jax.jit(images.sample)(
    jax.random.key(0), jnp.zeros((20_000, 15, 15, 1), jnp.uint8)
  )
  num_context = np.asarray(batch.mask.sum(1))
  num_targets = np.asarray(batch.query_mask.sum(1))
  assert (num_context.min(), num_context.max()) == (3, 196)
  assert num_targets.min() == 3 and np.all(num_context + num_targets < 200)
  # Uniform on [3, 197), and given the context uniform on [3, 200 - context).
  assert abs(num_context.mean() - 99.5) < 5 * 56 / np.sqrt(20_000)
  share = (num_targets - 3 + 0.5) / (200 - num_context - 3)
  assert abs(share.mean() - 0.5) < 5 * 0.29 / np.sqrt(20_000)
