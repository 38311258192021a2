"""The folder of a run: its config, and files that a kill cannot leave half-written."""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import dataclasses
import fcntl
import json
import os
import secrets
import socket
import time
import typing

from etils import epath

from experiments.common import config as config_lib
from experiments.common import paths
from experiments.common import processes
from experiments.common.config import Config
from experiments.common.config import ConfigType
from experiments.common.errors import ConfigError
from tca_jax import checkpoint
from tca_jax import storage

CONFIG_FILE = "config.json"
LOCK_FILE = "lock"
_PART = ".part"


def load(config_class: type[ConfigType], workdir: epath.PathLike) -> ConfigType:
  """Reads the config of a workdir; options newer than it take their defaults.

  Raises:
    ConfigError: if there is none, if it is damaged, or if it belongs to another
      experiment.
  """
  stored = read_config(workdir)
  path = epath.Path(workdir) / CONFIG_FILE
  names = {field.name for field in dataclasses.fields(config_class)}
  if set(stored) - names:
    raise ConfigError(
      f"{path} belongs to another experiment or version: it has the unknown options"
      f" {sorted(set(stored) - names)}"
    )
  try:
    return config_class(**stored)
  except ConfigError as error:
    raise ConfigError(f"{path} is damaged or of another version: {error}") from error


def read_config(workdir: epath.PathLike) -> dict[str, typing.Any]:
  """Reads the options of a workdir, by their present names.

  Raises:
    ConfigError: if there is no config, or if it is damaged.
  """
  path = epath.Path(workdir) / CONFIG_FILE
  if not path.exists():
    raise ConfigError(f"{workdir} has no {CONFIG_FILE}: nothing was trained there")
  return with_new_names(read_json(path))


def read_json(path: epath.Path) -> dict[str, typing.Any]:
  """Reads a JSON object from a file.

  Raises:
    ConfigError: if the file cannot be read or contains something else.
  """
  try:
    content = json.loads(path.read_text())
  except (OSError, ValueError, RecursionError) as error:
    raise ConfigError(f"{path} cannot be read: {error}") from error
  if not isinstance(content, dict):
    raise ConfigError(
      f"{path} must contain a JSON object, got {type(content).__name__}"
    )
  return content


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


def check_shared(workdir: epath.Path) -> None:
  """Checks that several processes can save and restore together in a workdir.

  Raises:
    ConfigError: if they cannot, because it is in a bucket.
  """
  if storage.in_bucket(workdir) and not processes.is_alone():
    raise ConfigError(
      f"--workdir={workdir}: several processes need a folder that they share, such as a"
      " bucket that is mounted as a folder"
    )


@contextlib.contextmanager
def claimed(config: Config, workdir: epath.Path) -> Iterator[None]:
  """Claims a workdir, and keeps other processes from it until this one leaves or dies.

  The first process of a run claims it for all.

  Args:
    config: config of the run.
    workdir: folder of the run.

  Raises:
    ConfigError: as `claim`; if the processes of another run train in the workdir; and if
      the processes of this run do not share it.
  """
  if not processes.is_first():
    processes.barrier(LOCK_FILE)
    if not (workdir / CONFIG_FILE).exists():
      raise ConfigError(f"--workdir={workdir} must be a folder of all processes")
    check_claim(config, workdir)
    yield
    return
  check_claim(config, workdir)  # a workdir that is refused is not changed
  make_writable(workdir, "--workdir")
  with locked(workdir):
    claim(config, workdir)
    processes.barrier(LOCK_FILE)
    yield


def claim(config: Config, workdir: epath.Path) -> None:
  """Writes the config into a new workdir, or checks it against an existing one's.

  Raises:
    ConfigError: if the workdir was trained with other options, if it has files but no
      config, or if it cannot be written.
  """
  check_claim(config, workdir)
  if not (workdir / CONFIG_FILE).exists():
    make_writable(workdir, "--workdir")
    write_json(workdir / CONFIG_FILE, dataclasses.asdict(config))


def check_claim(config: Config, workdir: epath.Path) -> None:
  """Checks that a workdir is new or has a run of the same training options.

  Raises:
    ConfigError: if it is not, or if its path has characters that Orbax takes for a
      pattern.
  """
  try:
    checkpoint.check_path(storage.absolute(workdir))
  except ValueError as error:
    raise ConfigError(f"--workdir={workdir}: {error}") from error
  if (workdir / CONFIG_FILE).exists():
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
  check_new(workdir)


def check_new(workdir: epath.Path) -> None:
  """Checks that a workdir without a config has no files of something else.

  Raises:
    ConfigError: if it has.
  """
  ours = (CONFIG_FILE + _PART, LOCK_FILE)  # all that a killed start can leave
  if workdir.is_dir() and any(x.name not in ours for x in workdir.iterdir()):
    raise ConfigError(
      f"{workdir} has files but no {CONFIG_FILE}; choose an empty --workdir"
    )


def make_writable(folder: epath.Path, flag: str) -> None:
  """Creates a folder if it does not exist, and checks that files can be created there.

  Args:
    folder: the folder.
    flag: the command-line flag that names the folder, for the message.

  Raises:
    ConfigError: if the folder cannot be created or written.
  """
  probe = folder / f"probe-{secrets.token_hex(4)}{_PART}"
  try:
    storage.make_folder(folder)
    probe.write_text("")
    probe.unlink()
  except Exception as error:  # the packages for buckets have errors of their own
    raise ConfigError(f"{flag}={folder} cannot be written: {error}") from error


def writable_file(path: epath.PathLike, flag: str) -> epath.Path:
  """Converts the path of a file to write; its folder is created if it does not exist.

  Args:
    path: the path, of this machine or of a bucket.
    flag: the command-line flag that has the path, for the message.

  Raises:
    ConfigError: if the path cannot be used, or if the folder cannot be written.
  """
  file = paths.to_path(path, flag)
  make_writable(file.parent, flag)
  return file


@contextlib.contextmanager
def locked(workdir: epath.Path) -> Iterator[None]:
  """Holds the lock of a workdir. The system releases it when the process ends.

  Args:
    workdir: a folder that exists.

  Raises:
    ConfigError: if another process holds it.
  """
  if storage.in_bucket(workdir):  # buckets have no locks
    yield
    return
  with open(workdir / LOCK_FILE, "a+", encoding="utf-8") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      holder = file.read().strip() or "another process"
      raise ConfigError(
        f"{workdir} is in use by {holder}; choose another --workdir, or wait until"
        " that process ends"
      ) from None
    except OSError:
      pass  # a file system without locks
    file.truncate(0)
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {started}\n")
    file.flush()
    yield


def write_json(path: epath.PathLike, content: typing.Any) -> None:
  """Writes JSON as `replace_text` does."""
  replace_text(path, json.dumps(content, indent=2) + "\n")


def replace_text(path: epath.PathLike, text: str) -> None:
  """Writes a file so that a kill leaves the old text or the new text, never a part.

  The first process of a run writes for all.
  """
  if not processes.is_first():
    return
  path = epath.Path(path)
  part = path.with_name(path.name + _PART)
  try:
    part.write_text(text, encoding="utf-8")
    part.replace(path)
  except BaseException:
    part.unlink(missing_ok=True)
    raise
