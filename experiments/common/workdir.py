"""The folder of a run: its config, and files that a kill cannot leave half-written."""

from collections.abc import Mapping
import dataclasses
import json
import pathlib
import typing

from etils import epath

from experiments.common import config as config_lib
from experiments.common.config import Config
from experiments.common.config import ConfigType
from experiments.common.errors import ConfigError

CONFIG_FILE = "config.json"
_PART = ".part"


def load(config_class: type[ConfigType], workdir: epath.PathLike) -> ConfigType:
  """Reads the config of a workdir; options newer than it take their defaults.

  Raises:
    ConfigError: if there is none, or if it belongs to another experiment.
  """
  path = epath.Path(workdir) / CONFIG_FILE
  if not path.exists():
    raise ConfigError(f"{workdir} has no {CONFIG_FILE}: nothing was trained there")
  stored = with_new_names(json.loads(path.read_text()))
  names = {field.name for field in dataclasses.fields(config_class)}
  if set(stored) - names:
    raise ConfigError(
      f"{path} belongs to another experiment or version: it has the unknown options"
      f" {sorted(set(stored) - names)}"
    )
  return config_class(**stored)


def with_new_names(options: Mapping[str, typing.Any]) -> dict[str, typing.Any]:
  """Stored options, by their present names.

  >>> with_new_names({"tree_order": "kd"})
  {'order': 'kd'}
  """
  return {config_lib.RENAMED.get(name, name): x for name, x in options.items()}


def load_for_evaluation(
  config_class: type[ConfigType],
  workdir: epath.PathLike,
  recipe: config_lib.Recipe = "default",
  given: Mapping[str, typing.Any] | None = None,
) -> ConfigType:
  """Reads the config of a workdir, with other options of evaluation or logging.

  Args:
    config_class: class of the config.
    workdir: folder of a run.
    recipe: recipe that the caller asked for.
    given: options that the caller asked for.

  Raises:
    ConfigError: as `load`; and if the caller asked for a value of a training option
      that is not the workdir's.
  """
  config, given = load(config_class, workdir), given or {}
  asked = config_class.recipe_options(recipe, given)
  for name in config_lib.trained_options(config_class):
    trained = getattr(config, name)
    if asked.get(name, trained) != trained:
      source = f"--{name}" if name in given else f"--recipe={recipe}: {name}"
      raise ConfigError(
        f"{source}={asked[name]} contradicts the workdir, which was trained with"
        f" {trained!r}; leave it out"
      )
  return dataclasses.replace(config, **asked)


def claim(config: Config, workdir: epath.Path) -> None:
  """Writes the config into a new workdir, or checks it against an existing one's.

  Raises:
    ConfigError: if the workdir was trained with other options, or if it has files but
      no config.
  """
  path = workdir / CONFIG_FILE
  if path.exists():
    stored = load(type(config), workdir)
    different = [
      f"{name}: {getattr(stored, name)!r} there, {getattr(config, name)!r} here"
      for name in config_lib.trained_options(type(config))
      if getattr(stored, name) != getattr(config, name)
    ]
    if different:
      raise ConfigError(
        f"{workdir} has a run of another config ({'; '.join(different)});"
        " choose another --workdir, or give the same flags to resume"
      )
    return
  part = CONFIG_FILE + _PART  # the only file of a start that was killed
  if workdir.exists() and any(x.name != part for x in workdir.iterdir()):
    raise ConfigError(
      f"{workdir} has files but no {CONFIG_FILE}; choose an empty --workdir"
    )
  workdir.mkdir(parents=True, exist_ok=True)
  write_json(path, dataclasses.asdict(config))


def write_json(path: epath.PathLike, content: typing.Any) -> None:
  """Writes JSON as `replace_text` does."""
  replace_text(path, json.dumps(content, indent=2) + "\n")


def replace_text(path: epath.PathLike, text: str) -> None:
  """Writes a file so that a kill leaves the old text or the new text, never a part."""
  path = pathlib.Path(path)
  part = path.with_name(path.name + _PART)
  part.write_text(text, encoding="utf-8")
  part.replace(path)
