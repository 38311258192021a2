"""The checkpoints that the repository ships: small, whole, and worth restoring."""

import dataclasses
import json
import pathlib

from etils import epath
import pytest

from experiments import activity
from experiments import copy_task
from experiments import gp_regression
from experiments import image_completion
from experiments import terrain
from experiments.common import config as config_lib
from experiments.common import evaluate

ROOT = pathlib.Path(__file__).parent.parent
SHIPPED = sorted(path.name for path in (ROOT / "checkpoints").iterdir())
# The excerpt is not shipped; test_activity restores what was trained on it.
EVALUATED = [name for name in SHIPPED if not name.startswith("activity_excerpt")]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_checkpoint_is_small_and_says_how_it_was_made(name):
  files = [p for p in (ROOT / "checkpoints" / name).rglob("*") if p.is_file()]
  assert sum(path.stat().st_size for path in files) < 2 * 2**20
  assert not [path for path in files if "optimizer" in path.parts]
  result = json.loads((ROOT / "results" / f"{name}.json").read_text())
  assert result["step"] == result["config"]["num_steps"]
  assert result["commit"] and result["command"] and result["train_seconds"] > 0


@pytest.mark.parametrize("name", EVALUATED)
def test_a_checkpoint_restores_and_predicts(name, tmp_path):
  """A part of the evaluation that the kept result is the mean of comes close to it."""
  config_class, task_class, options, tolerance = {
    "copy": (copy_task.CopyConfig, copy_task.CopyTask, dict(eval_batches=1), 0.01),
    "gp": (gp_regression.GPConfig, gp_regression.GPTask, dict(eval_batches=12), 0.5),
    "image": (
      image_completion.ImageConfig,
      image_completion.ImageTask,
      dict(eval_batches=8, data_dir=str(tmp_path / "data")),
      0.15,
    ),
    "activity": (
      activity.ActivityConfig,
      activity.ActivityTask,
      dict(eval_batches=6, data_dir=str(tmp_path / "data")),
      0.15,
    ),
    "terrain": (
      terrain.TerrainConfig,
      terrain.TerrainTask,
      dict(eval_batches=12, context_sizes="200", num_targets=64, map_side=4),
      0.4,
    ),
  }[name.split("_")[0]]
  workdir = epath.Path(ROOT / "checkpoints" / name)
  config = config_lib.load(config_class, workdir)
  task = task_class(dataclasses.replace(config, **options))
  result = evaluate.evaluate_workdir(task, workdir, epath.Path(tmp_path))
  expected = json.loads((ROOT / "results" / f"{name}.json").read_text())
  assert result["num_examples"] == options["eval_batches"] * config.batch_size
  assert result[task.metric] == pytest.approx(expected[task.metric], abs=tolerance)
