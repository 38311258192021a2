"""Image completion: training and evaluation data, recipes, and tree orders."""

import dataclasses

import chex
import numpy as np
import pytest

from experiments import image_completion
from experiments.common import task as task_lib
from experiments.common.errors import ConfigError
from tca_jax import tree
from tests import untrained


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  """The folder of the prepared data sets."""
  return str(tmp_path_factory.mktemp("data"))


def test_eval_batches_contain_every_held_out_digit_once(data_dir):
  config = image_completion.ImageConfig(data_dir=data_dir, batch_size=48, eval_seed=5)
  task = image_completion.ImageTask(config)
  batches = list(task.eval_batches())
  assert sum(int(np.sum(np.any(b.query_mask, axis=1))) for b in batches) == 500
  assert {b.mask.shape for b in batches} == {(48, 196)}, "one shape"
  again = next(image_completion.ImageTask(config).eval_batches())
  chex.assert_trees_all_equal(batches[0], again)
  few = image_completion.ImageTask(dataclasses.replace(config, eval_batches=2))
  assert len(list(few.eval_batches())) == 2
  rng = task_lib.batch_rng(0, 4)
  chex.assert_trees_all_equal(task.train_batch(rng, 4), few.train_batch(rng, 4))


def test_batch_size_above_the_number_of_images_raises(data_dir):
  config = image_completion.ImageConfig(data_dir=data_dir, batch_size=2001)
  message = "at most the 2,000 images to train on, got 2,001"
  with pytest.raises(ConfigError, match=message):
    image_completion.ImageTask(config)


def test_unseen_classes_are_evaluated_but_not_trained_on(data_dir):
  config = image_completion.ImageConfig(data_dir=data_dir)
  seen, unseen = (
    image_completion.ImageTask(dataclasses.replace(config, unseen=unseen))
    for unseen in (False, True)
  )
  chex.assert_trees_all_equal(seen.first_batch(), unseen.first_batch())
  digits = np.concatenate([seen.test_images, unseen.test_images])
  assert len({image.tobytes() for image in digits}) == len(digits) == 1000


@pytest.mark.parametrize("dataset", ["celeba", "photos"])
def test_config_unseen_without_classes_raises(dataset):
  message = rf"unseen needs .* one of \['mnist', 'emnist'\], got '{dataset}'"
  with pytest.raises(ConfigError, match=message):
    image_completion.ImageConfig(dataset=dataset, unseen=True)


def test_photos_have_three_channels_and_nine_nodes_are_read(data_dir):
  config = image_completion.ImageConfig(
    dataset="photos", data_dir=data_dir, batch_size=2
  )
  task = image_completion.ImageTask(config)
  assert task.first_batch().values.shape == (2, 196, 3)
  assert task.largest_read / task.max_context == 9 / 196


@pytest.fixture(scope="module")
def small(data_dir):
  """A task without an encoder, its parameters and a batch."""
  config = image_completion.ImageConfig(data_dir=data_dir, num_layers=0, batch_size=2)
  task = image_completion.ImageTask(config)
  return task, untrained.params(task), task.first_batch()


@pytest.mark.parametrize(
  "order",
  [
    order if order in ("kd", "given") else pytest.param(order, marks=pytest.mark.slow)
    for order in tree.ORDERS
  ],
)
def test_index_every_order_has_each_valid_pixel_in_one_leaf(order, small):
  trained, params, batch = small
  config = dataclasses.replace(trained.config, order=order)
  index = image_completion.ImageTask(config).index
  memory = index(params, batch.coords, batch.values, batch.mask)
  leaves, valid = np.asarray(memory.tree.leaf_index), np.asarray(memory.tree.leaf_mask)
  for i, mask in enumerate(np.asarray(batch.mask)):
    tokens = leaves[i][valid[i]]
    assert sorted(tokens) == np.flatnonzero(mask).tolist()
    if order == "given":
      assert np.all(np.diff(tokens) > 0)
    if order == "axis":
      assert np.all(np.diff(np.asarray(batch.coords[i, :, 0])[tokens]) >= 0)
  prediction = trained.read(params, memory, batch.query_coords)
  assert np.all(np.isfinite(prediction.output.mean))
  num_tokens = np.asarray(batch.mask.sum(1, keepdims=True))
  most = 1 + np.ceil(np.log2(num_tokens))
  assert np.all(np.asarray(prediction.reading.num_read) <= most)
