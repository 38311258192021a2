"""Export: copy a finished run's model, config and results to this repository.

  python -m experiments.export --workdir=runs/image_tca --name=image_tca

writes checkpoints/image_tca, from which `tca_jax.load` and
--mode=eval --workdir=checkpoints/image_tca restore the model, and
results/image_tca.json, the eval.json of the run. Other result files of the run are
copied with their own name as a prefix: scaling.json becomes
results/scaling_image_tca.json. All of them must have been measured with the same
options of evaluation, which the checkpoint keeps. The data set of the run must be
available.
"""

import dataclasses
import re
import sys

from absl import app
from absl import flags
from absl import logging
from etils import epath

from experiments.common import config as config_lib
from experiments.common import evaluate
from experiments.common import launch
from experiments.common import paths
from experiments.common import provenance
from experiments.common import task as task_lib
from experiments.common import workdir as workdir_lib
from experiments.common.config import Config
from experiments.common.errors import CheckpointError
from experiments.common.errors import ConfigError
from experiments.programs import PROGRAMS
import tca_jax
from tca_jax import checkpoint


def export(
  workdir: epath.PathLike, name: str, root: epath.PathLike
) -> list[epath.Path]:
  """Writes `checkpoints/<name>` and `results/<name>.json` below a root folder.

  Args:
    workdir: folder of a finished run.
    name: name of the exported checkpoint.
    root: root folder.

  Returns:
    The paths written.

  Raises:
    ConfigError: if the name is not a plain name.
    CheckpointError: if the run is not finished, if a result was measured with other
      training options than the run's or other evaluation options than its eval.json,
      or if a checkpoint of that name exists.
  """
  workdir, root = paths.to_path(workdir, "--workdir"), epath.Path(root)
  if not re.fullmatch(r"\w[\w.-]*", name):
    raise ConfigError(
      "name must be a name and not a path, of letters, digits, '_', '-' and '.', got"
      f" {name!r}"
    )
  evaluated = workdir / evaluate.EVAL_FILE
  if not evaluated.exists():
    raise CheckpointError(
      f"{workdir} has no {evaluate.EVAL_FILE}: it is not a finished run"
    )
  task_name, config = find_config(workdir)
  others = (workdir_lib.CONFIG_FILE, provenance.TRAINING_FILE, checkpoint.FILE)
  results = {
    path: _measured_with(path, config)
    for path in sorted(workdir.iterdir(), key=lambda path: path.name)
    if path.suffix == ".json" and path.name not in others
  }
  measured = results[evaluated]
  for path, other in results.items():
    for option in config_lib.evaluation_options(type(config)):
      if getattr(other, option) != getattr(measured, option):
        raise CheckpointError(
          f"{path} was measured with --{option}={getattr(other, option)}, {evaluated}"
          f" with {getattr(measured, option)}; evaluate the run again"
        )
  exported = root / "checkpoints" / name
  _save_model(workdir, exported, PROGRAMS[task_name].task_class(measured), task_name)
  (root / "results").mkdir(exist_ok=True)
  written = [exported]
  for path in results:
    prefix = "" if path == evaluated else f"{path.stem}_"
    written.append(root / "results" / f"{prefix}{name}.json")
    path.copy(written[-1], overwrite=True)
  return written


def _measured_with(path: epath.Path, config: Config) -> Config:
  """The config with which a result of a run was measured."""
  content = workdir_lib.read_json(path)
  if not isinstance(content.get("config"), dict):
    raise CheckpointError(f"{path} has no config: it is not a result of this run")
  options = workdir_lib.with_new_names(content["config"])
  try:
    measured = type(config)(**options)  # options that are newer have their default
  except (ConfigError, TypeError) as error:
    raise CheckpointError(f"{path} has a damaged config: {error}") from error
  same = all(
    getattr(measured, name) == getattr(config, name)
    for name in config_lib.trained_options(type(config))
  )
  if not same or content.get("step", config.num_steps) != config.num_steps:
    raise CheckpointError(
      f"{path} was measured at another step or with other flags than the run's; run"
      " its command again"
    )
  return measured


def _save_model(
  workdir: epath.Path, exported: epath.Path, task: task_lib.Task, name: str
) -> None:
  """Saves the model of a run with its parameters, and the config."""
  restored = evaluate.restore(task, workdir)
  if restored.step != task.config.num_steps:
    raise CheckpointError(
      f"{workdir}: the newest checkpoint that can be restored is step {restored.step},"
      f" the results are of step {task.config.num_steps}; run the training command again"
    )
  config = exported / workdir_lib.CONFIG_FILE
  try:
    tca_jax.save(
      exported,
      task.model,
      restored.params,
      overwrite=not config.exists(),  # an export that was killed has no config
      **restored.describe(name),
    )
  except FileExistsError as error:
    raise CheckpointError(f"{exported} exists: choose another --name") from error
  except ValueError as error:
    raise CheckpointError(str(error)) from error
  workdir_lib.write_json(config, dataclasses.asdict(task.config))


def find_config(workdir: epath.PathLike) -> tuple[str, Config]:
  """Reads the config of a run of any task, the only one that has all its options.

  Args:
    workdir: folder of a run.

  Returns:
    The name of the task's program, and the config.

  Raises:
    ConfigError: if no task or several tasks have the options.
  """
  workdir = epath.Path(workdir)
  workdir_lib.read_config(workdir)  # raises an error that names the damage
  found = {}
  for name, program in PROGRAMS.items():
    try:
      found[name] = workdir_lib.load(program.config_class, workdir)
    except ConfigError:
      continue
  if len(found) != 1:
    raise ConfigError(
      f"the options in {workdir / workdir_lib.CONFIG_FILE} must belong to one of the"
      f" tasks {', '.join(PROGRAMS)}; they belong to {', '.join(found) or 'none'}"
    )
  ((name, config),) = found.items()
  return name, config


def main(argv: list[str]) -> None:
  """Exports the run that the flags name."""
  del argv
  logging.set_verbosity(logging.WARNING)
  values = flags.FLAGS

  def program() -> None:
    written = export(values.workdir, values.name, epath.Path())
    print(", ".join(map(str, written)))

  sys.exit(launch.report(program))


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "Folder of a finished run.", required=True)
  flags.DEFINE_string("name", None, "Name of the exported checkpoint.", required=True)
  app.run(main)
