"""Data that ships inside Python packages."""

import importlib.util
import pathlib

from experiments.data.errors import DataError


def find_file(package: str, path: str, requirement: str) -> pathlib.Path:
  """A file of an installed package, which is not imported.

  Args:
    package: its import name.
    path: of the file, within the package.
    requirement: what pip installs.

  Returns:
    Where the file is.

  Raises:
    DataError: if the package is not installed or lacks the file.
  """
  spec = importlib.util.find_spec(package)
  for root in (spec.submodule_search_locations or []) if spec else []:
    found = pathlib.Path(root) / path
    if found.exists():
      return found
  raise DataError(
    f"{path} comes with the package {requirement}, which"
    f" {'lacks the file' if spec else 'is not installed'}; run"
    f" `pip install {requirement}` (or `pip install 'tca-jax[data]'`) and the same"
    " command again"
  )
