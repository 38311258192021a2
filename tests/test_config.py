"""Configs and workdirs: what is refused, and what may change."""

import dataclasses
import json

from etils import epath
import pytest

from experiments.common import config as config_lib
from experiments.copy_task import CopyConfig
from experiments.gp_regression import GPConfig
from experiments.image_completion import ImageConfig


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(model="lstm"), r"model must be one of \('tca', 'ca', 'perceiver'\), got 'l"),
    (dict(num_steps=0), "num_steps must be at least 1, got 0"),
    (dict(num_steps=1.5), "num_steps must be int, got 1.5"),
    (dict(learning_rate=float("nan")), "learning_rate must be at least 0, got nan"),
    (dict(baseline="mean"), "baseline must be one of"),
    (dict(seed=-1), "seed must be at least 0"),
    (dict(dropout=1.0), "dropout must be below 1, got 1.0"),
    (dict(learning_rate=float("inf")), "learning_rate must be finite, got inf"),
  ],
)
def test_bad_options_are_named(change, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    config_lib.Config(**change)


def test_the_paper_recipe_is_the_published_one():
  copy, gp, image = CopyConfig.paper(), GPConfig.paper(), ImageConfig.paper()
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
  assert copy.num_steps == gp.num_steps == 100_000
  assert (gp.sizes, gp.num_frequencies, image.num_frequencies) == ("batch", 0, 0)
  assert not (copy.position_skip or gp.position_skip or image.position_skip)
  assert CopyConfig.paper(num_steps=3, learning_rate=1e-3).learning_rate == 1e-3


def test_a_workdir_keeps_its_recipe(tmp_path):
  workdir = epath.Path(tmp_path / "run")
  config = CopyConfig(num_steps=10)
  config_lib.claim_workdir(config, workdir)
  assert config_lib.load(CopyConfig, workdir) == config
  other = dataclasses.replace(config, log_every=7, save_every=3, eval_seed=9)
  config_lib.claim_workdir(other, workdir)
  assert config_lib.load(CopyConfig, workdir) == config
  for change in (dict(num_steps=11), dict(seed=1), dict(sequence_length=8)):
    (name,) = change
    with pytest.raises(config_lib.ConfigError, match=f"another config .*{name}: "):
      config_lib.claim_workdir(dataclasses.replace(config, **change), workdir)


def test_a_start_that_was_killed_does_not_lock_its_workdir(tmp_path):
  (tmp_path / "config.json.part").write_text("{")
  config_lib.claim_workdir(CopyConfig(), epath.Path(tmp_path))
  assert config_lib.load(CopyConfig, epath.Path(tmp_path)) == CopyConfig()


def test_options_newer_than_a_workdir_take_their_defaults(tmp_path):
  stored = dataclasses.asdict(CopyConfig(seed=5))
  del stored["baseline_value"]
  (tmp_path / "config.json").write_text(json.dumps(stored))
  assert config_lib.load(CopyConfig, epath.Path(tmp_path)) == CopyConfig(seed=5)


def test_a_folder_of_other_files_is_not_taken(tmp_path):
  (tmp_path / "thesis.tex").write_text("")
  with pytest.raises(config_lib.ConfigError, match="holds files but no config"):
    config_lib.claim_workdir(CopyConfig(), epath.Path(tmp_path))
  with pytest.raises(config_lib.ConfigError, match="nothing was trained there"):
    config_lib.load(CopyConfig, epath.Path(tmp_path))


def test_a_config_of_another_experiment_is_refused(tmp_path):
  workdir = epath.Path(tmp_path / "run")
  config_lib.claim_workdir(CopyConfig(), workdir)
  message = r"unknown options \['mixed_length_steps', 'sequence_length'\]"
  with pytest.raises(config_lib.ConfigError, match=message):
    config_lib.load(ImageConfig, workdir)


def test_every_option_survives_json(tmp_path):
  path = epath.Path(tmp_path / "x.json")
  config = ImageConfig(learning_rate=3e-4, share_policy=True)
  config_lib.write_json(path, dataclasses.asdict(config))
  assert ImageConfig(**json.loads(path.read_text())) == config
  assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
