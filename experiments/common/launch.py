"""A program: one task, run from Python or from its command line.

From Python, a program neither parses flags nor ends the process; errors are exceptions:

  gp_regression.train(gp_regression.GPConfig(num_steps=100), "runs/gp")
  results = gp_regression.evaluate("runs/gp")
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import inspect
import os
import sys
import traceback
import typing

from absl import app
from absl import flags as absl_flags
from absl import logging
from etils import epath
import jax

from experiments.common import evaluate as evaluate_lib
from experiments.common import flags
from experiments.common import metrics as metrics_lib
from experiments.common import paths
from experiments.common import processes
from experiments.common import systems
from experiments.common import task as task_lib
from experiments.common import train as train_lib
from experiments.common import workdir as workdir_lib
from experiments.common.config import Config
from experiments.common.errors import ConfigError
from experiments.common.errors import UserError
from tca_jax.checkpoint import first_line


@dataclasses.dataclass(frozen=True)
class Program(typing.Generic[task_lib.TaskType]):
  """A task with its config.

  Attributes:
    config_class: class of the config.
    task_class: class of the task.
    actions: modes that only this program has, by name: a help text, and a function of
      the parsed arguments, whose workdir may be None.
  """

  config_class: type[Config]
  task_class: type[task_lib.TaskType]
  actions: Mapping[str, tuple[str, Callable[[flags.Arguments], None]]] = (
    dataclasses.field(default_factory=dict)
  )

  def train(self, config: Config, workdir: epath.PathLike) -> None:
    """Trains from the newest checkpoint in a workdir, or from the start.

    Args:
      config: the options.
      workdir: folder of the run; it is created, or has a run of the same config.

    Raises:
      UserError: if the config, the workdir, the data or the loss do not allow training;
        see `train.train` for the kinds.
    """
    workdir = paths.to_path(workdir, "--workdir")
    train_lib.train(self._task(config), workdir)

  def evaluate(
    self,
    workdir: epath.PathLike,
    out: epath.PathLike | None = None,
    **options: typing.Any,
  ) -> dict[str, dict[str, typing.Any]]:
    """Evaluates the newest checkpoint of a workdir, and writes the result files.

    Args:
      workdir: folder of a run, or of an exported run.
      out: folder for results; None: the workdir.
      **options: options of the evaluation that replace those of the run, such as
        eval_batches.

    Returns:
      The contents of the JSON files, by file name, such as "eval.json".

    Raises:
      UserError: if there is no run or no checkpoint, or if an option contradicts it.
    """
    workdir = paths.to_path(workdir, "--workdir")
    out = paths.to_path(out, "--out") if out else None
    config = workdir_lib.load_for_evaluation(self.config_class, workdir, given=options)
    if unused := systems.unused_options(config, options, "eval"):
      logging.warning("%s", unused)
    return evaluate_lib.evaluate_workdir(self._task(config), workdir, out)

  def restore(self, workdir: epath.PathLike) -> task_lib.Restored[task_lib.TaskType]:
    """Restores the task and the parameters of a workdir's newest checkpoint.

    Raises:
      UserError: if there is no run or no checkpoint.
    """
    workdir = paths.to_path(workdir, "--workdir")
    config = workdir_lib.load(self.config_class, workdir)
    return evaluate_lib.restore(self._task(config), workdir)

  def run(self, argv: list[str]) -> int:
    """Runs the program as its command line does.

    Args:
      argv: the program's name and its arguments.

    Returns:
      The exit code: 0; 1 after an error that the user can fix, which is logged in one
      line; 2 after a command line that cannot be parsed; 143 after SIGTERM, once a
      checkpoint is saved.
    """
    try:
      arguments = flags.parse(self.config_class, argv, self._modes, self.actions)
    except absl_flags.Error as error:
      print(f"{argv[0]}: {error}\nSee --help for all flags.", file=sys.stderr)
      return 2
    if arguments is None:
      documentation = inspect.getdoc(sys.modules[self.task_class.__module__]) or ""
      text = flags.help_text(
        self.config_class, documentation, self._modes, self.actions
      )
      print(text, end="")
      return 0
    logging.set_verbosity(arguments.verbosity)
    return report(lambda: self._run(arguments), arguments.cluster)

  def main(self) -> None:
    """Runs the program with the flags of this process, and exits."""

    def leave_flags(argv: list[str]) -> list[str]:
      """Marks absl's global flags as parsed; `run` parses the program's own."""
      absl_flags.FLAGS(argv[:1])
      return argv

    def run(argv: list[str]) -> None:
      try:
        code = self.run(argv)
      except BaseException:  # also Ctrl-C
        if processes.is_alone():
          raise
        traceback.print_exc()
        code = 1
      processes.leave(code)

    app.run(run, flags_parser=leave_flags)

  def _task(self, config: Config) -> task_lib.TaskType:
    build: Callable[[typing.Any], task_lib.TaskType] = self.task_class
    return build(config)

  @property
  def _modes(self) -> dict[str, str]:
    return {**flags.MODES, **{name: text for name, (text, _) in self.actions.items()}}

  def _run(self, arguments: flags.Arguments) -> None:
    """Runs the mode of a command line."""
    mode, workdir, out = arguments.mode, arguments.workdir, arguments.out
    if workdir is None or mode in self.actions:
      self.actions[mode][1](arguments)
      return
    recipe, given = arguments.recipe, arguments.given
    trains = mode == "train"
    if trains:
      config = self.config_class.from_recipe(recipe, **given)
    else:
      config = workdir_lib.load_for_evaluation(
        self.config_class, workdir, recipe, given
      )
    if unused := systems.unused_options(config, given, mode):
      logging.warning("%s", unused)
    # Errors in paths are found before the work.
    first = processes.is_first()
    if trains and first:
      workdir_lib.check_claim(config, workdir)
      workdir_lib.make_writable(workdir, "--workdir")
    if first:
      workdir_lib.make_writable(out or workdir, "--out")
    task = self._task(config)
    if trains:
      if not (workdir / metrics_lib.METRICS_FILE).exists():
        task.report_early()
      train_lib.train(task, workdir)
    contents = evaluate_lib.evaluate_workdir(
      task, workdir, out, "eval" if trains else mode
    )
    if evaluate_lib.EVAL_FILE in contents:
      result = contents[evaluate_lib.EVAL_FILE]
      print(
        f"{task.config.model}, step {result['step']}: {task.metric}"
        f" {result[task.metric]:.4f}, {result['tokens_fraction']:.1%} of the tokens"
        f" read; {(out or workdir) / evaluate_lib.EVAL_FILE}"
      )


def report(
  program: Callable[[], None], cluster: processes.Cluster | None = None
) -> int:
  """Runs a program, and reports an error that the user can fix in one line.

  These are `UserError`, and `OSError` of a file or a disk. With `--verbosity=1`, their
  tracebacks are logged, too.

  Args:
    program: the program.
    cluster: the processes that run it together; None: this one.

  Returns:
    The exit code: 0, or that of the error.
  """
  try:
    if cluster is not None:
      cluster.join()
    _check_platforms()
    with processes.first_prints():
      program()
  except (UserError, OSError) as error:
    expected = isinstance(error, UserError)
    message = str(error) if expected else first_line(error)
    level = error.log_level if expected else logging.ERROR
    logging.log(level, "%s", " ".join(message.split()))
    logging.debug("The error comes from:", exc_info=True)
    return error.exit_code if expected else 1
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
