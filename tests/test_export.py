"""Export of a finished run: what is written, and which runs are refused."""

import json
import shutil

from etils import epath
import pytest

from experiments import copy_task
from experiments import export
from experiments.common import checkpoints
from experiments.common import evaluate
from experiments.common import train
from experiments.common.errors import CheckpointError

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
  folder = epath.Path(tmp_path) / "checkpoints" / "copy_x" / "checkpoints"
  folder.rmtree()
  export.export(finished, "copy_x", epath.Path(tmp_path))  # after a partial export
  assert folder.exists()


def test_export_run_older_than_an_option_succeeds(finished, tmp_path):
  old = _copy(finished, tmp_path)
  config = json.loads((old / "config.json").read_text())
  del config["mixed_length_steps"]
  config["tree_order"] = config.pop("order")
  (old / "config.json").write_text(json.dumps(config))
  export.export(old, "copy_x", epath.Path(tmp_path))


@pytest.mark.parametrize("file", ["eval.json", "scaling.json"])
def test_export_result_of_other_options_raises(file, finished, tmp_path):
  run = _copy(finished, tmp_path)
  config = json.loads((run / file).read_text())["config"]
  _edit(run / file, config=config | {"eval_batches": 7})
  with pytest.raises(CheckpointError, match=rf"{file} was measured .* other flags"):
    export.export(run, "copy_y", epath.Path(tmp_path))
  assert not (tmp_path / "checkpoints").exists()


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
