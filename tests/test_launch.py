"""Programs: from Python, and their command line in process."""

import dataclasses
import json
import pathlib
import runpy
import sys
import threading
import types

from etils import epath
import pytest

from experiments import copy_task
from experiments.common import evaluate
from experiments.common import flags
from experiments.common import workdir as workdir_lib
from experiments.common.errors import CheckpointError
from experiments.common.errors import ConfigError
from experiments.copy_task import CopyConfig
from experiments.image_completion import ImageConfig

SMALL = dict(sequence_length=8, num_steps=2, batch_size=4, eval_batches=1)


def _run(workdir, *arguments):
  return copy_task.PROGRAM.run(["copy_task", f"--workdir={workdir}", *arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """The workdir of a run of two steps with the paper's recipe."""
  workdir = epath.Path(tmp_path_factory.mktemp("launch") / "run")
  options = [f"--{name}={value}" for name, value in SMALL.items()]
  assert _run(workdir, "--recipe=paper", *options) == 0
  return workdir


@pytest.mark.parametrize(
  "kind", [str, pytest.param(pathlib.Path, marks=pytest.mark.slow)]
)
def test_train_and_evaluate_need_no_flags(kind, tmp_path, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["notebook", "--not_a_flag=of_ours"])
  workdir = kind(tmp_path / "run")
  # The module is executed a second time, as after a change in a notebook.
  module = types.SimpleNamespace(**runpy.run_path(copy_task.__file__))
  config = module.CopyConfig(**SMALL)
  module.train(config, workdir)
  contents = module.evaluate(workdir, eval_batches=2)
  assert contents["eval.json"]["step"] == 2
  written = json.loads((tmp_path / "run" / "eval.json").read_text())
  assert written["config"]["eval_batches"] == 2
  module.train(config, workdir)  # nothing is left to train
  other = kind(tmp_path / "results")
  again = module.evaluate(workdir, other, eval_batches=2)["eval.json"]
  assert again["accuracy"] == written["accuracy"]
  assert (tmp_path / "results" / "eval.json").exists()
  restored = module.PROGRAM.restore(workdir)
  assert restored.step == 2 and restored.task.config == config
  assert evaluate.evaluate(restored.task, restored.params)["num_examples"] == 4


def test_train_and_evaluate_errors_are_exceptions(tmp_path, finished):
  with pytest.raises(ConfigError, match="nothing was trained there"):
    copy_task.evaluate(tmp_path / "none")
  other = dataclasses.replace(workdir_lib.load(CopyConfig, finished), seed=4)
  with pytest.raises(ConfigError, match="has a run of another config"):
    copy_task.train(other, finished)
  with pytest.raises(ConfigError, match="--seed=4 contradicts the workdir"):
    copy_task.evaluate(finished, seed=4)
  workdir_lib.claim(other, epath.Path(tmp_path / "new"))
  with pytest.raises(CheckpointError, match="there is no checkpoint"):
    copy_task.evaluate(tmp_path / "new")


@pytest.mark.slow
def test_train_in_a_thread_succeeds(tmp_path):
  found = []

  def run():
    copy_task.train(CopyConfig(**SMALL), tmp_path)
    found.append(copy_task.evaluate(tmp_path)["eval.json"]["step"])

  thread = threading.Thread(target=run)
  thread.start()
  thread.join()
  assert found == [2]


def test_run_recipe_sets_the_options_that_are_not_given(finished):
  expected = CopyConfig.from_recipe("paper", **SMALL)
  assert workdir_lib.load(CopyConfig, finished) == expected


def test_run_eval_prints_the_metric_and_the_path(finished, tmp_path, capsys):
  assert _run(finished, "--mode=eval", f"--out={tmp_path}") == 0
  written = json.loads((tmp_path / "eval.json").read_text())
  output = capsys.readouterr().out
  assert f"tca, step 2: accuracy {written['accuracy']:.4f}, 75.0% of the" in output
  assert str(tmp_path / "eval.json") in output


@pytest.mark.parametrize(
  "arguments, message",
  [
    (("--mode=eval", "--seed=4"), "--seed=4 contradicts the workdir"),
    (
      ("--mode=eval", "--recipe=paper", "--learning_rate=1"),
      "--recipe=paper: num_steps=100000 contradicts the workdir",
    ),
    (("--num_steps=61", "--sequence_length=8", "--batch_size=4"), "2 there, 61 here"),
  ],
)
def test_run_other_training_options_fail_and_change_nothing(
  arguments, message, finished, caplog
):
  before = {p: p.read_bytes() for p in pathlib.Path(finished).rglob("*") if p.is_file()}
  assert _run(finished, *arguments) == 1
  assert message in caplog.text and "Traceback" not in caplog.text
  assert {
    p: p.read_bytes() for p in pathlib.Path(finished).rglob("*") if p.is_file()
  } == before


def test_run_eval_without_a_run_fails(tmp_path, caplog):
  assert _run(tmp_path / "none", "--mode=eval") == 1
  assert "nothing was trained there" in caplog.text


def test_run_paths_without_a_tree_fails(tmp_path, caplog):
  workdir = epath.Path(tmp_path / "run")
  workdir_lib.claim(CopyConfig(model="ca"), workdir)
  assert _run(workdir, "--mode=paths") == 1
  assert "--mode=paths needs a model with a tree" in caplog.text


@pytest.mark.parametrize(
  "arguments, code, message",
  [
    (["--colour=red"], 2, "Unknown command line flag 'colour'"),
    (["--model=lstm"], 2, "should be one of"),
    (["--num_steps=many"], 2, "many"),
    (["extra"], 2, "unknown arguments: extra"),
    (["--sequence_length=7"], 1, "sequence_length must be even, got 7"),
  ],
)
def test_run_bad_flags_fail_and_write_nothing(
  arguments, code, message, tmp_path, capsys, caplog
):
  assert _run(tmp_path / "new", *arguments) == code
  assert message in capsys.readouterr().err + caplog.text
  assert not (tmp_path / "new").exists()


def test_run_without_workdir_fails(capsys):
  assert copy_task.PROGRAM.run(["copy_task"]) == 2
  assert "--workdir must be given\n" in capsys.readouterr().err
  assert copy_task.PROGRAM.run(["copy_task", "--mode=eval"]) == 2
  error = capsys.readouterr().err
  assert "given: --mode=eval needs the folder of a trained model" in error


def test_run_help_lists_every_option_in_groups(capsys):
  assert copy_task.PROGRAM.run(["copy_task", "--help"]) == 0
  text = capsys.readouterr().out
  assert text.startswith("Copy task (Sec. 4.1)")
  headings = [
    line for line in text.splitlines() if line.endswith(":") and line[0] != " "
  ]
  titles = [
    "Files and mode:",
    "Task:",
    "Model:",
    "Training:",
    "Evaluation:",
    "Logging:",
  ]
  assert [line for line in headings if line in titles] == titles
  for name in ("workdir", "recipe", "order", "reward", "eval_seed", "save_every"):
    assert f"\n  --{name}=" in text
  assert "--tree_order" not in text and "--[no]share_policy" in text
  assert max(map(len, text.splitlines())) <= 88


def test_parse_old_flag_name_sets_the_new_option():
  parsed = flags.parse(ImageConfig, ["x", "--workdir=w", "--tree_order=random"])
  assert parsed.given == {"order": "random"}
  assert (parsed.out, parsed.workdir) == (None, epath.Path("w"))


def test_parse_gives_only_the_options_on_the_command_line():
  argv = ["x", "--workdir=w", "--nounseen", "--seed=0", "--out=o"]
  parsed = flags.parse(ImageConfig, argv)
  assert parsed.given == {"unseen": False, "seed": 0}
  assert (parsed.mode, parsed.recipe, parsed.out) == (
    "train",
    "default",
    epath.Path("o"),
  )
