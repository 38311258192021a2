"""Command line of an experiment: parse flags, train, evaluate, report errors."""

import inspect
import sys

from absl import app
from absl import flags as absl_flags
from absl import logging

from experiments.common import evaluate
from experiments.common import flags
from experiments.common import task as task_lib
from experiments.common import train
from experiments.common import workdir as workdir_lib
from experiments.common.config import Config
from experiments.common.errors import UserError


def run(
  config_class: type[Config], task_class: type[task_lib.Task], argv: list[str]
) -> int:
  """Runs an experiment as its command line does.

  Args:
    config_class: class of the experiment's config.
    task_class: class of the experiment's task.
    argv: the program's name and its arguments.

  Returns:
    The exit code: 0; 1 after an error that the user can fix, which is logged in one
    line; 2 after a command line that cannot be parsed.

  Raises:
    SystemExit: with code 143 after SIGTERM, once a checkpoint is saved.
  """
  try:
    arguments = flags.parse(config_class, argv)
  except absl_flags.Error as error:
    print(f"{argv[0]}: {error}\nSee --help for all flags.", file=sys.stderr)
    return 2
  if arguments is None:
    documentation = inspect.getdoc(sys.modules[task_class.__module__]) or ""
    print(flags.help_text(config_class, documentation), end="")
    return 0
  logging.set_verbosity(arguments.verbosity)
  try:
    return _run(config_class, task_class, arguments)
  except UserError as error:
    logging.error("%s", error)
    return 1


def _run(
  config_class: type[Config],
  task_class: type[task_lib.Task],
  arguments: flags.Arguments,
) -> int:
  workdir, recipe, given = arguments.workdir, arguments.recipe, arguments.given
  if arguments.mode == "train":
    task = task_class(config_class.from_recipe(recipe, **given))
    train.train(task, workdir)
  else:
    config = workdir_lib.load_for_evaluation(config_class, workdir, recipe, given)
    task = task_class(config)
  mode = "paths" if arguments.mode == "paths" else "eval"
  contents = evaluate.evaluate_workdir(task, workdir, arguments.out, mode)
  if evaluate.EVAL_FILE in contents:
    result = contents[evaluate.EVAL_FILE]
    print(
      f"{task.config.model}, step {result['step']}: {task.metric}"
      f" {result[task.metric]:.4f}, {result['tokens_fraction']:.1%} of the tokens read;"
      f" {arguments.out / evaluate.EVAL_FILE}"
    )
  return 0


def main(config_class: type[Config], task_class: type[task_lib.Task]) -> None:
  """Runs an experiment with the flags of this process, and exits."""

  def leave_flags(argv: list[str]) -> list[str]:
    """Marks absl's global flags as parsed; `run` parses the experiment's own."""
    absl_flags.FLAGS(argv[:1])
    return argv

  app.run(
    lambda argv: sys.exit(run(config_class, task_class, argv)), flags_parser=leave_flags
  )
