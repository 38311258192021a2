"""What every experiment binary does with its flags."""

import sys

from absl import app
from absl import flags
from absl import logging
from etils import epath

from experiments.common import checkpoints
from experiments.common import config as config_lib
from experiments.common import evaluate
from experiments.common import paths
from experiments.common import task as task_lib
from experiments.common import train
from experiments.data.errors import DataError

# Errors that say all a user needs; anything else keeps its traceback.
EXPECTED = (
  config_lib.ConfigError,
  checkpoints.CheckpointError,
  train.NonFiniteLossError,
  DataError,
)


def quiet_libraries() -> None:
  """Shows warnings alone, unless --verbosity asks for more: Orbax tells much."""
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)


def start(
  config_class: type[config_lib.Config], task_class: type[task_lib.Task]
) -> None:
  """Defines the flags of the config and runs --mode on --workdir."""
  config_lib.define_flags(config_class)

  def main(argv: list[str]) -> None:
    if len(argv) > 1:
      raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    quiet_libraries()
    mode, workdir = flags.FLAGS.mode, epath.Path(flags.FLAGS.workdir)
    out = epath.Path(flags.FLAGS.out or workdir)
    try:
      if mode == "train":
        task = task_class(config_lib.from_flags(config_class))
        train.train(task, workdir)
      else:
        config = config_lib.load(config_class, workdir)
        task = task_class(config_lib.with_given_flags(config))
      out.mkdir(parents=True, exist_ok=True)
      if mode == "paths":
        paths.evaluate_paths(task, workdir, out)
        return
      result = evaluate.evaluate_workdir(task, workdir, out)
    except EXPECTED as error:
      logging.error("%s", error)
      sys.exit(1)
    read = result["tokens_fraction"]
    print(
      f"{task.config.model}, step {result['step']}: {task.metric}"
      f" {result[task.metric]:.4f}, {read:.1%} of the tokens read;"
      f" {out / evaluate.EVAL_FILE}"
    )

  app.run(main)
