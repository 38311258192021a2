"""Human Activity: evaluation batches, recipes, and the checkpoints of the excerpt."""

import dataclasses

from etils import epath
import numpy as np
import pytest

from experiments import activity
from experiments.common import evaluate
from experiments.common import train
from experiments.common import workdir as workdir_lib
from experiments.common.errors import ConfigError
from experiments.data import human_activity
from tests import activity_files
from tests import untrained

EVERY_SPLIT = [
  (name, split)
  for name, source in human_activity.DATASETS.items()
  for split in source.SPLITS
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """The folder of both source files and of all prepared data sets."""
  path = tmp_path_factory.mktemp("activity")
  activity_files.write_small_data_sets(path)
  return path


def _task(folder, **options):
  config = activity.ActivityConfig(
    data_dir=str(folder / "data"), manual_dir=str(folder), **options
  )
  return activity.ActivityTask(config)


@pytest.mark.parametrize("dataset, split", EVERY_SPLIT)
def test_eval_batches_contain_every_segment_once(dataset, split, folder):
  config = _task(folder, dataset=dataset, split=split, batch_size=3).config
  parts = human_activity.load_segments(
    dataset, split, config.data_dir, config.manual_dir
  )
  for name in ("validation", "test"):
    task = activity.ActivityTask(dataclasses.replace(config, eval_split=name))
    batches = list(task.eval_batches())
    assert {batch.values.shape[:2] for batch in batches} == {(3, 50)}, "one shape"
    kept = [np.asarray(batch.values)[np.any(batch.query_mask, 1)] for batch in batches]
    np.testing.assert_array_equal(np.concatenate(kept), parts[name].values)
  few = activity.ActivityTask(dataclasses.replace(config, eval_batches=1))
  assert len(list(few.eval_batches())) == 1


def test_batch_size_above_the_number_of_segments_raises(folder):
  assert _task(folder, dataset="uci", batch_size=66).config.batch_size == 66
  with pytest.raises(ConfigError, match="at most the 66 segments to train on, got 67"):
    _task(folder, dataset="uci", batch_size=67)


@pytest.mark.parametrize("model, share", [("tca", 7 / 50), ("ca", 1)])
def test_largest_read_is_a_share_of_the_segment(model, share, folder):
  task = _task(folder, model=model)
  assert task.largest_read / task.max_context == share


def test_run_on_the_published_layout_without_a_tree(folder, tmp_path):
  task = _task(
    folder,
    dataset="uci",
    model="ca",
    num_layers=0,
    num_steps=3,
    batch_size=4,
    eval_batches=2,
  )
  workdir = epath.Path(tmp_path / "run")
  train.train(task, workdir)
  contents = evaluate.evaluate_workdir(task, workdir)
  result = contents["eval.json"]
  assert result["step"] == 3 and result["num_examples"] == 8
  assert 0 <= result["accuracy"] <= 1 and np.isfinite(result["log_likelihood"])
  assert result["tokens_fraction_largest"] == 1
  assert not (workdir / "activity.png").exists()


@pytest.mark.parametrize("model", ["tca", "ca", "perceiver"])
def test_evaluate_excerpt_checkpoint_is_restored(model, folder):
  workdir = epath.Path(__file__).parent.parent / "checkpoints"
  workdir = workdir / f"activity_excerpt_{model}"
  config = workdir_lib.load(activity.ActivityConfig, workdir)
  here = dict(
    data_dir=str(folder / "data"), manual_dir=str(folder), batch_size=8, eval_batches=1
  )
  task = activity.ActivityTask(dataclasses.replace(config, **here))
  restored = evaluate.restore(task, workdir)
  result = evaluate.evaluate(task, restored.params)
  assert restored.step == 1000 and result["num_examples"] > 0
  assert 0 <= result["calibration_error"] <= 1


def test_label_predicts_all_rows_of_the_segments_that_change_most(folder):
  task = _task(folder, dataset="uci", num_layers=0, batch_size=8)
  chosen = task.changing_segments()
  changes = np.sum(np.diff(task.evaluated.labels, axis=1) != 0, axis=1)
  assert len(chosen) == 2 and changes.max() in changes[np.array(chosen)]
  labelled = activity.label(task, untrained.params(task), chosen)
  for number, segment in zip(chosen, labelled, strict=True):
    np.testing.assert_array_equal(segment.truth, task.evaluated.labels[number])
    assert set(segment.predicted) <= set(range(7))
    assert segment.channels.shape == (50, 12) and np.isnan(segment.channels).any()
    times = np.concatenate([times for _, times in segment.nodes])
    np.testing.assert_array_equal(np.sort(times), segment.time)
