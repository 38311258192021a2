"""The origin of a result: command, commit, hardware and versions.

A run may be trained on one machine and evaluated on another, or be resumed on a third.
A workdir therefore records where its training ran, and a result repeats that record.
"""

import pathlib
import platform
import subprocess
import sys
import typing

from etils import epath
import flax
import jax

from experiments.common import timing
from experiments.common import workdir as workdir_lib
from experiments.common.errors import ConfigError
import tca_jax

TRAINING_FILE = "training.json"


def provenance() -> dict[str, typing.Any]:
  """Describes the origin of a result, for its JSON file.

  Returns:
    "command": the program and its arguments; "commit": see `git_commit`; "device": the
    number and kind of the devices; "processes": the number of processes that they
    belong to; "cores": the CPU cores that this process may use; "versions": the
    versions of "python", "jax", "flax" and "tca_jax".
  """
  return {
    "command": " ".join([pathlib.Path(sys.argv[0]).stem, *sys.argv[1:]]),
    "commit": git_commit(),
    "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "processes": jax.process_count(),
    "cores": timing.num_cores(),
    "versions": {
      "python": platform.python_version(),
      "jax": jax.__version__,
      "flax": flax.__version__,
      "tca_jax": tca_jax.__version__,
    },
  }


def record_training(workdir: epath.Path, first_step: int) -> None:
  """Adds this start to the record of a run's training.

  Args:
    workdir: folder of the run.
    first_step: number of steps that were completed before.

  Raises:
    ConfigError: if the record is damaged.
  """
  sessions = [
    session
    for session in training_sessions(workdir)
    if session["first_step"] < first_step
  ]
  sessions.append({"first_step": first_step} | provenance())
  workdir_lib.write_json(workdir / TRAINING_FILE, {"sessions": sessions})


def training_sessions(workdir: epath.Path) -> list[dict[str, typing.Any]]:
  """Reads where a run was trained; empty for a run that has no record.

  Returns:
    For each start, in order: "first_step", the number of steps that
    were completed before it, and the entries of `provenance`.

  Raises:
    ConfigError: if the record is damaged.
  """
  path = workdir / TRAINING_FILE
  if not path.exists():
    return []
  sessions = workdir_lib.read_json(path).get("sessions")
  if not isinstance(sessions, list) or not all(
    isinstance(x, dict) and isinstance(x.get("first_step"), int) for x in sessions
  ):
    raise ConfigError(f"{path} is damaged: it must list sessions, each with first_step")
  return sessions


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
