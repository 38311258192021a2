"""The checkpoints that the repository ships: small, whole, and worth restoring."""

import dataclasses
import json
import pathlib

from etils import epath
import pytest

from experiments import image_completion
from experiments.common import config as config_lib
from experiments.common import evaluate

ROOT = pathlib.Path(__file__).parent.parent
SHIPPED = sorted(path.name for path in (ROOT / "checkpoints").iterdir())


@pytest.mark.parametrize("name", SHIPPED)
def test_a_checkpoint_is_small_and_says_how_it_was_made(name):
  files = [p for p in (ROOT / "checkpoints" / name).rglob("*") if p.is_file()]
  assert sum(path.stat().st_size for path in files) < 2 * 2**20
  assert not [path for path in files if "optimizer" in path.parts]
  result = json.loads((ROOT / "results" / f"{name}.json").read_text())
  assert result["step"] == result["config"]["num_steps"]
  assert result["commit"] and result["command"] and result["train_seconds"] > 0


@pytest.mark.parametrize("name", [n for n in SHIPPED if n.startswith("image_")])
def test_an_image_checkpoint_restores_and_predicts(name, tmp_path):
  workdir = epath.Path(ROOT / "checkpoints" / name)
  config = dataclasses.replace(
    config_lib.load(image_completion.ImageConfig, workdir),
    data_dir=str(tmp_path / "data"),
    eval_batches=8,
  )
  task = image_completion.ImageTask(config)
  result = evaluate.evaluate_workdir(task, workdir, epath.Path(tmp_path))
  expected = json.loads((ROOT / "results" / f"{name}.json").read_text())
  # 64 of the 500 digits that the kept result is the mean of.
  assert result["num_examples"] == 64
  assert result["log_likelihood"] == pytest.approx(expected["log_likelihood"], abs=0.15)
