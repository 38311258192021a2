"""Export of a finished run: what is written, and which runs are refused."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import chex
from etils import epath
import pytest

from experiments import copy_task
from experiments import export
from experiments.common import checkpoints
from experiments.common import evaluate
from experiments.common import train
from experiments.common.errors import CheckpointError
from experiments.common.errors import ConfigError
import tca_jax

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = copy_task.CopyConfig(
  model="ca", sequence_length=4, num_steps=1, batch_size=2, eval_batches=1
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A run of one step with a second result file."""
  workdir = epath.Path(tmp_path_factory.mktemp("export") / "run")
  task = copy_task.CopyTask(CONFIG)
  train.train(task, workdir)
  content = evaluate.evaluate_workdir(task, workdir)[evaluate.EVAL_FILE]
  scaling = {"rows": [1, 2], "config": content["config"]}
  (workdir / "scaling.json").write_text(json.dumps(scaling))
  return workdir


def _copy(finished, tmp_path):
  shutil.copytree(finished, tmp_path / "run")
  return epath.Path(tmp_path / "run")


def _edit(path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_export_writes_parameters_config_and_all_results(finished, tmp_path):
  written = export.export(finished, "copy_x", epath.Path(tmp_path))
  results = tmp_path / "results"
  assert written == [
    tmp_path / "checkpoints" / "copy_x",
    results / "copy_x.json",
    results / "scaling_copy_x.json",
  ]
  for name, copied in (("eval", "copy_x"), ("scaling", "scaling_copy_x")):
    text = (finished / f"{name}.json").read_text()
    assert (results / f"{copied}.json").read_text() == text
  task = copy_task.CopyTask(CONFIG)
  restored = evaluate.restore(task, tmp_path / "checkpoints" / "copy_x")
  assert restored.step == 1


def test_export_is_a_model_that_loads_without_the_experiments(finished, tmp_path):
  export.export(finished, "copy_x", epath.Path(tmp_path))
  folder = tmp_path / "checkpoints" / "copy_x"
  names = {path.name for path in folder.iterdir()}
  assert names == {"config.json", "model.json", "parameters"}
  model, params, info = tca_jax.load(folder)
  task = copy_task.CopyTask(CONFIG)
  assert model == task.model
  chex.assert_trees_all_equal(params, evaluate.restore(task, finished).params)
  assert info["task"] == "copy_task" and info["step"] == 1
  assert info["coords"]["range"] == [[0, 3]]


def test_export_existing_name_raises_unless_it_is_a_part(finished, tmp_path):
  root = epath.Path(tmp_path)
  export.export(finished, "copy_x", root)
  with pytest.raises(CheckpointError, match="copy_x exists: choose another --name"):
    export.export(finished, "copy_x", root)
  config = root / "checkpoints" / "copy_x" / "config.json"
  config.unlink()  # as if the first export had been killed
  export.export(finished, "copy_x", root)
  assert config.exists()
  (root / "checkpoints" / "other").mkdir()
  (root / "checkpoints" / "other" / "notes").write_text("important")
  with pytest.raises(CheckpointError, match="other exists"):
    export.export(finished, "other", root)


@pytest.mark.parametrize(
  "name",
  ["", ".", "..", "../x", "/abs", "a/b", "a/", "a\\b", "-x", ".x", "a b", "a\n"],
)
def test_export_name_that_is_a_path_raises(name, finished, tmp_path):
  root = epath.Path(tmp_path) / "root"
  with pytest.raises(ConfigError, match="name must be a name and not a path") as error:
    export.export(finished, name, root)
  assert len(str(error.value).splitlines()) == 1
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "name", ["../x", *(pytest.param(x, marks=pytest.mark.slow) for x in ("/abs/x", ""))]
)
def test_export_command_reports_a_wrong_name_in_one_line(name, finished, tmp_path):
  command = [sys.executable, "-m", "experiments.export", f"--workdir={finished}"]
  result = subprocess.run(
    [*command, f"--name={name}"],
    capture_output=True,
    text=True,
    check=False,
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
  )
  assert result.returncode == 1
  (line,) = result.stderr.strip().splitlines()
  assert "name must be a name" in line
  assert not list(tmp_path.iterdir())


def test_find_config_of_no_task_raises(finished, tmp_path):
  run = _copy(finished, tmp_path)
  _edit(run / "config.json", unknown=1)
  with pytest.raises(ConfigError, match=r"must belong to one of the tasks .* to none"):
    export.find_config(run)
  (run / "config.json").write_text("{}")
  with pytest.raises(ConfigError, match="they belong to activity, black_box, copy_"):
    export.find_config(run)


def test_export_run_older_than_an_option_succeeds(finished, tmp_path):
  old = _copy(finished, tmp_path)
  config = json.loads((old / "config.json").read_text())
  del config["mixed_length_steps"]
  config["tree_order"] = config.pop("order")
  (old / "config.json").write_text(json.dumps(config))
  export.export(old, "copy_x", epath.Path(tmp_path))


def _change_config(path, **options):
  _edit(path, config=json.loads(path.read_text())["config"] | options)


@pytest.mark.parametrize("file", ["eval.json", "scaling.json"])
def test_export_result_of_other_training_options_raises(file, finished, tmp_path):
  run = _copy(finished, tmp_path)
  _change_config(run / file, learning_rate=0.5)
  with pytest.raises(CheckpointError, match=rf"{file} was measured .* other flags"):
    export.export(run, "copy_y", epath.Path(tmp_path))
  assert not (tmp_path / "checkpoints").exists()


def test_export_results_of_unequal_evaluations_raise(finished, tmp_path):
  run = _copy(finished, tmp_path)
  _change_config(run / "scaling.json", eval_batches=7)
  with pytest.raises(CheckpointError, match=r"with --eval_batches=7, .* with 1; eval"):
    export.export(run, "copy_y", epath.Path(tmp_path))
  assert not (tmp_path / "checkpoints").exists()


def test_export_keeps_the_options_of_the_evaluation(finished, tmp_path):
  run = _copy(finished, tmp_path)
  for file in ("eval.json", "scaling.json"):
    _change_config(run / file, eval_batches=7)
  export.export(run, "copy_y", epath.Path(tmp_path))
  folder = tmp_path / "checkpoints" / "copy_y"
  assert json.loads((folder / "config.json").read_text())["eval_batches"] == 7


def test_export_damaged_config_of_a_result_raises(finished, tmp_path):
  run = _copy(finished, tmp_path)
  _change_config(run / "scaling.json", eval_batches="many")
  with pytest.raises(
    CheckpointError, match=r"scaling.json has a damaged config: eval_"
  ):
    export.export(run, "copy_y", epath.Path(tmp_path))


def test_export_result_of_another_step_raises(finished, tmp_path):
  run = _copy(finished, tmp_path)
  _edit(run / "eval.json", step=0)
  with pytest.raises(CheckpointError, match="measured at another step"):
    export.export(run, "copy_y", epath.Path(tmp_path))


def test_export_unfinished_run_raises(finished, tmp_path):
  run = _copy(finished, tmp_path)
  (run / "eval.json").unlink()
  with pytest.raises(CheckpointError, match=r"has no eval.json: it is not a finished"):
    export.export(run, "copy_y", epath.Path(tmp_path))
  with checkpoints.Checkpoints(run, read_only=True) as kept:
    assert kept.steps == [1]
