"""Paths that a user gives: of this machine, or of a bucket."""

from etils import epath

from experiments.common.errors import ConfigError
from tca_jax import storage
from tca_jax.checkpoint import first_line


def to_path(path: epath.PathLike, name: str) -> epath.Path:
  """Converts a path of this machine or of a bucket.

  Args:
    path: the path.
    name: the flag that has the path, for the message.

  Raises:
    ConfigError: if the path has another scheme, if a package is missing, or if the
      bucket cannot be accessed.
  """
  try:
    found = storage.to_path(path)
  except (ImportError, ValueError) as error:
    raise ConfigError(f"{name}: {error}") from error
  if storage.in_bucket(found):
    try:
      found.exists()
    except Exception as error:  # the packages for buckets have errors of their own
      reason = f"{type(error).__name__}: {first_line(error)}"
      raise ConfigError(f"{name}={path} cannot be accessed: {reason}") from error
  return found


def check_local(path: epath.PathLike, name: str) -> None:
  """Raises ConfigError if a path is not one of this machine.

  Args:
    path: the path.
    name: the option that has the path, for the message.
  """
  if storage.scheme(path) is not None:
    raise ConfigError(f"{name} must be a path of this machine, got {path}")
