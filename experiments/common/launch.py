"""Command line of an experiment: parse flags, train, evaluate, report errors."""

from collections.abc import Callable
import inspect
import os
import sys

from absl import app
from absl import flags as absl_flags
from absl import logging
import jax

from experiments.common import evaluate
from experiments.common import flags
from experiments.common import systems
from experiments.common import task as task_lib
from experiments.common import train
from experiments.common import workdir as workdir_lib
from experiments.common.config import Config
from experiments.common.errors import ConfigError
from experiments.common.errors import first_line
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
  return report(lambda: _run(config_class, task_class, arguments))


def report(program: Callable[[], None]) -> int:
  """Runs a program, and reports an error that the user can fix in one line.

  These are `UserError`, and `OSError` of a file or a disk. With `--verbosity=1`, their
  tracebacks are logged, too.

  Args:
    program: the program.

  Returns:
    The exit code: 0, or 1 after such an error.
  """
  try:
    _check_platforms()
    program()
  except (UserError, OSError) as error:
    message = str(error) if isinstance(error, UserError) else first_line(error)
    logging.error("%s", " ".join(message.split()))
    logging.debug("The error comes from:", exc_info=True)
    return 1
  return 0


def _check_platforms() -> None:
  """Raises ConfigError if JAX finds none of the platforms in its configuration."""
  try:
    jax.devices()
  except RuntimeError as error:
    platforms = os.environ.get("JAX_PLATFORMS", "")
    raise ConfigError(
      f"JAX_PLATFORMS={platforms} must name platforms of this machine, such as cpu:"
      f" {first_line(error)}"
    ) from error


def _run(
  config_class: type[Config],
  task_class: type[task_lib.Task],
  arguments: flags.Arguments,
) -> None:
  workdir, recipe, given = arguments.workdir, arguments.recipe, arguments.given
  trains = arguments.mode == "train"
  if trains:
    config = config_class.from_recipe(recipe, **given)
  else:
    config = workdir_lib.load_for_evaluation(config_class, workdir, recipe, given)
  if unused := systems.unused_options(config, given):
    flags_given = ", ".join(f"--{name}" for name in unused)
    logging.warning("%s: no effect on --model=%s", flags_given, config.model)
  # Errors in paths are found before the work.
  if trains:
    workdir_lib.check_claim(config, workdir)
    workdir_lib.make_writable(workdir, "--workdir")
  workdir_lib.make_writable(arguments.out, "--out")
  task = task_class(config)
  if trains:
    train.train(task, workdir)
  mode = "paths" if arguments.mode == "paths" else "eval"
  contents = evaluate.evaluate_workdir(task, workdir, arguments.out, mode)
  if evaluate.EVAL_FILE in contents:
    result = contents[evaluate.EVAL_FILE]
    print(
      f"{task.config.model}, step {result['step']}: {task.metric}"
      f" {result[task.metric]:.4f}, {result['tokens_fraction']:.1%} of the tokens read;"
      f" {arguments.out / evaluate.EVAL_FILE}"
    )


def main(config_class: type[Config], task_class: type[task_lib.Task]) -> None:
  """Runs an experiment with the flags of this process, and exits."""

  def leave_flags(argv: list[str]) -> list[str]:
    """Marks absl's global flags as parsed; `run` parses the experiment's own."""
    absl_flags.FLAGS(argv[:1])
    return argv

  app.run(
    lambda argv: sys.exit(run(config_class, task_class, argv)), flags_parser=leave_flags
  )
