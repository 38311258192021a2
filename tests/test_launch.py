"""The command line, in process: flags, help, errors, and several runs in one process."""

import json
import pathlib

from etils import epath
import pytest

from experiments.common import flags
from experiments.common import launch
from experiments.common import workdir as workdir_lib
from experiments.copy_task import CopyConfig
from experiments.copy_task import CopyTask
from experiments.image_completion import ImageConfig

SMALL = dict(sequence_length=8, num_steps=2, batch_size=4, eval_batches=1)


def _run(workdir, *arguments):
  return launch.run(
    CopyConfig, CopyTask, ["copy_task", f"--workdir={workdir}", *arguments]
  )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """The workdir of a run of two steps with the paper's recipe."""
  workdir = epath.Path(tmp_path_factory.mktemp("launch") / "run")
  options = [f"--{name}={value}" for name, value in SMALL.items()]
  assert _run(workdir, "--recipe=paper", *options) == 0
  return workdir


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
  assert launch.run(CopyConfig, CopyTask, ["copy_task"]) == 2
  assert "--workdir must be given" in capsys.readouterr().err


def test_run_help_lists_every_option_in_groups(capsys):
  assert launch.run(CopyConfig, CopyTask, ["copy_task", "--help"]) == 0
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
  assert parsed.out == parsed.workdir == epath.Path("w")


def test_parse_gives_only_the_options_on_the_command_line():
  argv = ["x", "--workdir=w", "--nounseen", "--seed=0", "--out=o"]
  parsed = flags.parse(ImageConfig, argv)
  assert parsed.given == {"unseen": False, "seed": 0}
  assert (parsed.mode, parsed.recipe, parsed.out) == (
    "train",
    "default",
    epath.Path("o"),
  )
