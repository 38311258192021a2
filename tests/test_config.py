"""Configs: options, recipes and allowed values."""

import dataclasses

import pytest

from experiments.activity import ActivityConfig
from experiments.common import config as config_lib
from experiments.common.config import Config
from experiments.common.errors import ConfigError
from experiments.copy_task import CopyConfig
from experiments.gp_regression import GPConfig
from experiments.image_completion import ImageConfig
from experiments.terrain import TerrainConfig

CONFIGS = [CopyConfig, GPConfig, ImageConfig, ActivityConfig, TerrainConfig]


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(model="lstm"), r"model must be one of \('tca', 'ca', 'perceiver', 'rel"),
    (dict(num_steps=0), "num_steps must be at least 1, got 0"),
    (dict(num_steps=1.5), "num_steps must be int, got 1.5"),
    (dict(learning_rate=float("nan")), "learning_rate must be at least 0, got nan"),
    (dict(baseline="mean"), r"baseline must be one of \('constant', 'batch', 'leaf'\)"),
    (dict(seed=-1), "seed must be at least 0"),
    (dict(seed=2**32), "seed must be below 4294967296"),
    (dict(dropout=1.0), "dropout must be below 1, got 1.0"),
    (dict(learning_rate=float("inf")), "learning_rate must be finite, got inf"),
    (dict(dtype="float64"), r"dtype must be one of \('float32', 'bfloat16'\), got"),
    (dict(order="hilbert"), "order must be one of .*'kd'.*, got 'hilbert'"),
    (dict(tree_gradient=1), "tree_gradient must be bool, got 1"),
  ],
)
def test_config_bad_option_raises(change, message):
  with pytest.raises(ConfigError, match=message):
    Config(**change)


def test_from_recipe_paper_has_the_published_values():
  copy, gp, image = (
    config_class.from_recipe("paper")
    for config_class in (CopyConfig, GPConfig, ImageConfig)
  )
  for config in (copy, gp, image):
    assert config.learning_rate == 5e-4 and config.lambda_rl == config.lambda_ca == 1
    assert config.routing_weight == 0 and not config.tree_gradient
    assert config.share_policy
    assert (config.baseline, config.baseline_value) == ("constant", 0)
    assert config.entropy_weight == 0.01 and config.warmup_steps == 0
  assert (copy.adam_b1, copy.dropout, copy.num_layers) == (0.1, 0.1, 0)
  assert (gp.adam_b1, gp.dropout, gp.num_layers) == (0.9, 0, 6)
  assert (copy.batch_size, gp.batch_size, image.batch_size) == (128, 16, 100)
  assert copy.clip_norm == gp.clip_norm == 1 and image.clip_norm == 0
  assert copy.weight_decay == gp.weight_decay == image.weight_decay == 0
  assert copy.num_steps == gp.num_steps == 100_000
  assert (gp.sizes, gp.num_frequencies, image.num_frequencies) == ("batch", 0, 0)
  assert not (copy.position_skip or gp.position_skip or image.position_skip)
  terrain, activity = (
    config_class.from_recipe("paper")
    for config_class in (TerrainConfig, ActivityConfig)
  )
  assert (terrain.num_layers, terrain.num_frequencies) == (0, 0)
  assert terrain.baseline == "constant" and terrain.share_policy
  assert (activity.dataset, activity.split) == ("uci", "random")
  assert activity.num_frequencies == activity.routing_weight == 0
  assert activity.baseline == "constant"


def test_from_recipe_options_given_replace_those_of_the_recipe():
  config = CopyConfig.from_recipe("paper", num_steps=3, learning_rate=1e-3)
  assert (config.num_steps, config.learning_rate) == (3, 1e-3)
  assert config.batch_size == 128
  assert CopyConfig.from_recipe("default", seed=5) == CopyConfig(seed=5)


@pytest.mark.parametrize(
  "dataset, num_images, batch_size",
  [
    ("mnist", 2_000, 100),
    ("emnist", 24_000, 100),
    ("celeba", 182_637, 16),
    ("photos", 4_110, 16),
  ],
)
def test_from_recipe_paper_images_train_for_200_epochs(dataset, num_images, batch_size):
  config = ImageConfig.from_recipe("paper", dataset=dataset)
  assert config.batch_size == batch_size
  assert config.num_steps == 200 * -(-num_images // batch_size)
  fewer = ImageConfig.from_recipe("paper", dataset=dataset, num_steps=7)
  assert fewer == dataclasses.replace(config, num_steps=7)


@pytest.mark.parametrize("config_class", CONFIGS)
def test_config_every_option_has_a_complete_help_text(config_class):
  for field in dataclasses.fields(config_class):
    text = field.metadata["text"]
    assert field.metadata["group"] in config_lib.GROUPS
    assert text[0].isupper() and text.endswith(".")
    assert not text.startswith(("Of ", "Whether "))
    names = config_lib.choices(field)
    assert names is None or field.default in names


@pytest.mark.parametrize("config_class", CONFIGS)
def test_config_defaults_are_those_stated(config_class):
  """A subclass's DEFAULTS reach its fields and nobody else's."""
  for name, default in config_class.DEFAULTS.items():
    assert getattr(config_class(), name) == default
  untouched = Config()
  assert untouched.num_steps == 2000 and untouched.position_skip is False


def test_trained_options_leave_out_evaluation_and_files():
  trained = config_lib.trained_options(ImageConfig)
  assert {"model", "seed", "order", "dataset", "moved_share"} <= set(trained)
  assert not {"unseen", "num_paths", "data_dir", "save_every"} & set(trained)
