"""The origin of a result: command, commit, hardware and versions."""

import pathlib
import platform
import subprocess
import sys
import typing

import flax
import jax

from experiments.common import timing
import tca_jax


def provenance() -> dict[str, typing.Any]:
  """Describes the origin of a result, for its JSON file.

  Returns:
    "command": the program and its arguments; "commit": see `git_commit`; "device": the
    number and kind of the local devices; "cores": the CPU cores that the process may
    use; "versions": the versions of "python", "jax", "flax" and "tca_jax".
  """
  return {
    "command": " ".join([pathlib.Path(sys.argv[0]).stem, *sys.argv[1:]]),
    "commit": git_commit(),
    "device": f"{jax.local_device_count()} x {jax.devices()[0].device_kind}",
    "cores": timing.num_cores(),
    "versions": {
      "python": platform.python_version(),
      "jax": jax.__version__,
      "flax": flax.__version__,
      "tca_jax": tca_jax.__version__,
    },
  }


def git_commit() -> str | None:
  """Returns the commit of this code.

  Returns:
    The full hash, followed by "-dirty" if files differ from the commit; None outside a
    git repository.
  """
  folder = pathlib.Path(__file__).parent

  def git(*arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout

  try:
    changed = git("status", "--porcelain").strip()
    return git("rev-parse", "HEAD").strip() + ("-dirty" if changed else "")
  except (OSError, subprocess.CalledProcessError):
    return None
