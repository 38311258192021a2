"""Image completion: the pixel sampler, what is evaluated, and runs end to end."""

import dataclasses

import chex
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from experiments import image_completion
from experiments.common import config as config_lib
from experiments.common import evaluate
from experiments.common import task as task_lib
from experiments.common import train
from experiments.data import image_sets
from experiments.data import images
from tca_jax import tree


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  """Holds the prepared data sets."""
  return str(tmp_path_factory.mktemp("data"))


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
  config = image_completion.ImageConfig(data_dir=data_dir, batch_size=48, eval_seed=5)
  task = image_completion.ImageTask(config)
  batches = list(task.eval_batches())
  assert sum(int(b.query_mask.any(1).sum()) for b in batches) == 500
  assert {b.mask.shape for b in batches} == {(48, 196)}, "one shape"
  again = next(image_completion.ImageTask(config).eval_batches())
  chex.assert_trees_all_equal(batches[0], again)
  few = image_completion.ImageTask(dataclasses.replace(config, eval_batches=2))
  assert len(list(few.eval_batches())) == 2
  chex.assert_trees_all_equal(task.train_batch(4), few.train_batch(4))


def test_more_than_there_is_to_train_on_is_refused(data_dir):
  config = image_completion.ImageConfig(data_dir=data_dir, batch_size=2001)
  message = "at most the 2,000 images to train on, got 2,001"
  with pytest.raises(config_lib.ConfigError, match=message):
    image_completion.ImageTask(config)


def test_unseen_classes_are_evaluated_and_never_trained_on(data_dir):
  config = image_completion.ImageConfig(data_dir=data_dir)
  seen, unseen = (
    image_completion.ImageTask(dataclasses.replace(config, unseen=unseen))
    for unseen in (False, True)
  )
  chex.assert_trees_all_equal(seen.train_batch(0), unseen.train_batch(0))
  digits = np.concatenate([seen.test_images, unseen.test_images])
  assert len({image.tobytes() for image in digits}) == len(digits) == 1000


def test_unseen_classes_are_an_option_of_the_evaluation_alone(tmp_path):
  workdir = epath.Path(tmp_path / "run")
  config = image_completion.ImageConfig(dataset="emnist")
  config_lib.claim_workdir(config, workdir)
  config_lib.claim_workdir(dataclasses.replace(config, unseen=True), workdir)
  with pytest.raises(
    config_lib.ConfigError, match=r"another config .*dataset: 'emnist'"
  ):
    config_lib.claim_workdir(image_completion.ImageConfig(), workdir)


@pytest.mark.parametrize("dataset", ["celeba", "photos"])
def test_without_classes_none_is_unseen(dataset):
  message = rf"unseen needs .* one of \['mnist', 'emnist'\], got '{dataset}'"
  with pytest.raises(config_lib.ConfigError, match=message):
    image_completion.ImageConfig(dataset=dataset, unseen=True)


@pytest.mark.parametrize(
  "dataset, num_images, batch_size",
  [
    ("mnist", 2_000, 100),
    ("emnist", 24_000, 100),
    ("celeba", 182_637, 16),
    ("photos", 4_110, 16),
  ],
)
def test_the_paper_recipe_is_200_epochs(dataset, num_images, batch_size):
  config = image_completion.ImageConfig.paper(dataset=dataset)
  assert config.batch_size == batch_size
  assert config.num_steps == 200 * -(-num_images // batch_size)
  fewer = image_completion.ImageConfig.paper(dataset=dataset, num_steps=7)
  assert fewer == dataclasses.replace(config, num_steps=7)


@pytest.mark.parametrize(
  "dataset, shape, min_std",
  [
    ("mnist", (28, 28, 1), 0.05),
    ("emnist", (28, 28, 1), 0.05),
    ("celeba", (32, 32, 3), None),
    ("photos", (32, 32, 3), 0.05),
  ],
)
def test_the_std_is_bounded_as_published(dataset, shape, min_std, monkeypatch):
  data = np.zeros((9, *shape), np.uint8)
  monkeypatch.setattr(image_sets, "load", lambda *_: data)
  config = image_completion.ImageConfig(dataset=dataset, batch_size=8)
  task = image_completion.ImageTask(config)
  head = task.model.head
  assert (head.num_outputs, head.min_std) == (shape[-1], min_std)
  assert task.train_batch(0).targets.shape == (8, 196, shape[-1])


def test_end_to_end_in_colour(tmp_path, data_dir):
  config = image_completion.ImageConfig(
    dataset="photos",
    data_dir=data_dir,
    num_layers=0,
    num_steps=2,
    batch_size=2,
    eval_batches=2,
  )
  task = image_completion.ImageTask(config)
  assert task.train_batch(0).values.shape == (2, 196, 3)
  workdir = epath.Path(tmp_path / "run")
  train.train(task, workdir)
  stored = config_lib.load(image_completion.ImageConfig, workdir)
  assert stored == config
  result = evaluate.evaluate_workdir(image_completion.ImageTask(stored), workdir)
  assert np.isfinite(result["log_likelihood"])
  assert result["num_examples"] == 4 and result["step"] == 2
  assert result["tokens_fraction_largest"] == 9 / 196
  assert Image.open(workdir / image_completion.FIGURE).size[0] > 500


@pytest.fixture(scope="module")
def reader(data_dir):
  """A batch, parameters, and a compiled reading of memories of any tree."""
  config = image_completion.ImageConfig(data_dir=data_dir, num_layers=0, batch_size=2)
  task = image_completion.ImageTask(config)
  params, batch = train.init_params(task), task.train_batch(0)
  read = task_lib.jitted(task, "read")
  return config, batch, params, lambda memory: read(params, memory, batch.query_coords)


@pytest.mark.parametrize("order", tree.ORDERS)
def test_every_tree_order_holds_each_pixel_once(order, reader):
  config, batch, params, read = reader
  task = image_completion.ImageTask(dataclasses.replace(config, tree_order=order))
  index = task_lib.jitted(task, "index")
  memory = index(params, batch.coords, batch.values, batch.mask)
  leaves, valid = np.asarray(memory.tree.leaf_index), np.asarray(memory.tree.leaf_mask)
  for i, mask in enumerate(np.asarray(batch.mask)):
    tokens = leaves[i][valid[i]]
    assert sorted(tokens) == np.flatnonzero(mask).tolist()
    if order == "given":
      assert np.all(np.diff(tokens) > 0)
    if order == "axis":
      assert np.all(np.diff(np.asarray(batch.coords[i, :, 0])[tokens]) >= 0)
  prediction = read(memory)
  assert np.all(np.isfinite(prediction.output.mean))
  num_tokens = np.asarray(batch.mask.sum(1, keepdims=True))
  most = 1 + np.ceil(np.log2(num_tokens))
  assert np.all(np.asarray(prediction.reading.num_read) <= most)


def test_the_first_steps_show_moved_images(data_dir):
  config = image_completion.ImageConfig(data_dir=data_dir, batch_size=2, num_steps=4)
  task = image_completion.ImageTask(config)
  still = image_completion.ImageTask(dataclasses.replace(config, moved_share=0.0))
  for step in range(4):
    found, expected = task.train_batch(step), still.train_batch(step)
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.targets, expected.targets)
    assert np.array_equal(found.coords, expected.coords) == (step >= 2)
