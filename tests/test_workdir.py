"""Workdirs: what is stored, what may change between runs, and what is refused."""

import dataclasses
import json

from etils import epath
import pytest

from experiments.common import workdir as workdir_lib
from experiments.common.errors import ConfigError
from experiments.copy_task import CopyConfig
from experiments.image_completion import ImageConfig


def test_claim_keeps_the_training_options(tmp_path):
  workdir = epath.Path(tmp_path / "run")
  config = CopyConfig(num_steps=10)
  workdir_lib.claim(config, workdir)
  assert workdir_lib.load(CopyConfig, workdir) == config
  other = dataclasses.replace(config, log_every=7, save_every=3, eval_seed=9)
  workdir_lib.claim(other, workdir)
  assert workdir_lib.load(CopyConfig, workdir) == config
  for change in (dict(num_steps=11), dict(seed=1), dict(sequence_length=8)):
    (name,) = change
    with pytest.raises(ConfigError, match=f"another config .*{name}: "):
      workdir_lib.claim(dataclasses.replace(config, **change), workdir)


def test_claim_after_a_killed_start_succeeds(tmp_path):
  (tmp_path / "config.json.part").write_text("{")
  workdir_lib.claim(CopyConfig(), epath.Path(tmp_path))
  assert workdir_lib.load(CopyConfig, epath.Path(tmp_path)) == CopyConfig()


def test_load_options_newer_than_the_workdir_have_their_defaults(tmp_path):
  stored = dataclasses.asdict(CopyConfig(seed=5))
  del stored["baseline_value"]
  (tmp_path / "config.json").write_text(json.dumps(stored))
  assert workdir_lib.load(CopyConfig, epath.Path(tmp_path)) == CopyConfig(seed=5)


def test_load_reads_options_by_their_old_names(tmp_path):
  stored = dataclasses.asdict(CopyConfig(order="random"))
  stored["tree_order"] = stored.pop("order")
  (tmp_path / "config.json").write_text(json.dumps(stored))
  assert workdir_lib.load(CopyConfig, tmp_path) == CopyConfig(order="random")


def test_claim_folder_of_other_files_raises(tmp_path):
  (tmp_path / "thesis.tex").write_text("")
  with pytest.raises(ConfigError, match="has files but no config"):
    workdir_lib.claim(CopyConfig(), epath.Path(tmp_path))
  with pytest.raises(ConfigError, match="nothing was trained there"):
    workdir_lib.load(CopyConfig, epath.Path(tmp_path))


def test_load_config_of_another_experiment_raises(tmp_path):
  workdir = epath.Path(tmp_path / "run")
  workdir_lib.claim(CopyConfig(), workdir)
  message = r"unknown options \['mixed_length_steps', 'sequence_length'\]"
  with pytest.raises(ConfigError, match=message):
    workdir_lib.load(ImageConfig, workdir)


def test_claim_unseen_is_no_training_option(tmp_path):
  workdir = epath.Path(tmp_path / "run")
  config = ImageConfig(dataset="emnist")
  workdir_lib.claim(config, workdir)
  workdir_lib.claim(dataclasses.replace(config, unseen=True), workdir)
  with pytest.raises(ConfigError, match=r"another config .*dataset: 'emnist'"):
    workdir_lib.claim(ImageConfig(), workdir)


def test_load_for_evaluation_takes_evaluation_options_only(tmp_path):
  config = CopyConfig(num_steps=10)
  workdir_lib.claim(config, epath.Path(tmp_path))
  found = workdir_lib.load_for_evaluation(
    CopyConfig, tmp_path, given=dict(eval_batches=3, num_steps=10)
  )
  assert found == dataclasses.replace(config, eval_batches=3)
  with pytest.raises(
    ConfigError, match=r"--seed=4 contradicts .* trained with 0; leave"
  ):
    workdir_lib.load_for_evaluation(CopyConfig, tmp_path, given=dict(seed=4))
  message = "--recipe=paper: position_skip=False contradicts the workdir"
  with pytest.raises(ConfigError, match=message):
    workdir_lib.load_for_evaluation(CopyConfig, tmp_path, "paper")


def test_write_json_round_trips_every_option(tmp_path):
  path = epath.Path(tmp_path / "x.json")
  config = ImageConfig(learning_rate=3e-4, share_policy=True)
  workdir_lib.write_json(path, dataclasses.asdict(config))
  assert ImageConfig(**json.loads(path.read_text())) == config
  assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
