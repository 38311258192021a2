"""Checkpoints of a run, in Orbax's format. Its API is pinned.

The name of a checkpoint is the number of completed steps. A checkpoint has the parts
"params" and "optimizer"; evaluation restores only the parameters. An exported run has
the parameters only, in a saved model of `tca_jax.save`. Arrays are restored with the
sharding of the arrays that they replace, so the number and kind of devices may change
between runs. All processes of a run save and restore together.

A checkpoint also has a file with the checksums of its other files. Damage is found
before Orbax reads anything.

The checkpoints of a bucket are copied to a temporary folder of this machine, where Orbax
works, and new ones are copied back. The checksums are copied last: a checkpoint of a
bucket that has none is incomplete, and is ignored.
"""

import contextlib
import json
import logging as python_logging
import typing

from absl import logging
from etils import epath
import jax
from orbax.checkpoint import v1 as ocp

from experiments.common import processes
from experiments.common import workdir as workdir_lib
from experiments.common.errors import CheckpointError
import tca_jax
from tca_jax import checkpoint
from tca_jax import storage
from tca_jax.checkpoint import first_line

_DIRECTORY = "checkpoints"
_CHECKSUMS = "checksums.json"
_KEEP = 3


class Checkpoints:
  """The newest `_KEEP` checkpoints of a workdir; a context manager."""

  def __init__(self, workdir: epath.PathLike, read_only: bool = False):
    self._directory = storage.absolute(epath.Path(workdir)) / _DIRECTORY
    if read_only and not self._directory.exists():
      raise CheckpointError(f"there is no checkpoint in {workdir}")
    if (epath.Path(workdir) / checkpoint.FILE).exists():
      raise CheckpointError(
        f"{workdir} is an exported model, which cannot be trained further"
      )
    self._local, self._stack = self._directory, contextlib.ExitStack()
    if storage.in_bucket(self._directory):
      self._local = self._stack.enter_context(storage.temporary_folder())
      self._download()
    # The defaults would skip saves and keep every checkpoint.
    always: typing.Any = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
    newest: typing.Any = ocp.training.preservation_policies.LatestN(_KEEP)
    # For good, because Orbax also logs in threads that end later.
    logging.get_absl_logger().addFilter(_is_shown)
    self._checkpointer = ocp.training.Checkpointer(
      self._local,
      save_decision_policy=always,
      preservation_policy=newest,
      cleanup_tmp_directories=not read_only,
    )

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: type[BaseException] | None, *_) -> None:
    with self._stack:
      try:
        self._checkpointer.close()
      except Exception:
        if kind is None:  # otherwise Orbax raises the error of a save again
          raise

  @property
  def steps(self) -> list[int]:
    """Steps of the saved checkpoints, in ascending order."""
    return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

  def save(self, step: int, **parts: typing.Any) -> None:
    """Saves named pytrees; returns when they are on disk.

    Raises:
      CheckpointError: if they cannot be saved, as on a full disk. Older checkpoints
        stay.
    """
    kept = [x for x in self.steps if x != step]
    folder = self._local / str(step)
    try:
      # Forced: after a fallback to an older checkpoint, newer steps are on disk already.
      saved = self._checkpointer.save_checkpointables(
        step, parts, force=True, overwrite=True
      )
      if not saved:
        raise ValueError("Orbax skipped it")
      if processes.is_first():
        digests = storage.file_digests(folder)
        workdir_lib.write_json(folder / _CHECKSUMS, digests)
      if self._local != self._directory:
        self._upload(step)
    except Exception as error:
      raise CheckpointError(
        f"step {step} could not be saved in {self._directory}: {first_line(error)}; the"
        f" newest checkpoint there is {kept[-1] if kept else 'none'}, the same command"
        " continues from it"
      ) from error

  def restore(self, **like: typing.Any) -> tuple[int, dict[str, typing.Any]] | None:
    """Restores the newest complete checkpoint.

    Args:
      **like: for each part to restore, a pytree with its shapes, dtypes and shardings:
        arrays or `jax.ShapeDtypeStruct`.

    Returns:
      The step and the parts by name, or None if nothing was saved yet.

    Raises:
      CheckpointError: if there are checkpoints and none can be restored.
    """
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
    )
    failures = []
    for step in reversed(self.steps):
      try:
        _check_files(self._local / str(step))
        return step, self._checkpointer.load_checkpointables(step, abstract)
      except Exception as error:
        reason = first_line(error)
        logging.warning(
          "checkpoint %d in %s cannot be restored, trying the one before: %s",
          step,
          self._directory,
          reason,
        )
        failures.append(f"{step}: {reason}")
    if failures:
      raise CheckpointError(
        f"no checkpoint in {self._directory} can be restored: {'; '.join(failures)}"
      )
    return None

  def _download(self) -> None:
    """Copies the complete checkpoints of a bucket to the local folder."""
    if self._directory.exists():
      for folder in self._directory.iterdir():
        if (folder / _CHECKSUMS).exists():
          storage.copy_files(folder, self._local / folder.name)

  def _upload(self, step: int) -> None:
    """Copies a new checkpoint to the bucket, and deletes there what is not kept."""
    name = str(step)
    storage.replace_folder(self._local / name, self._directory / name, last=_CHECKSUMS)
    for folder in self._directory.iterdir():
      if folder.name.isdecimal() and int(folder.name) not in self.steps:
        folder.rmtree()


def _is_shown(record: python_logging.LogRecord) -> bool:
  """Hides what Orbax logs of an error, because the error is also raised."""
  severe = record.levelno >= python_logging.WARNING
  return not (severe and "orbax" in epath.Path(record.pathname).parts)


def _check_files(folder: epath.Path) -> None:
  """Raises ValueError if a checkpoint's files are not as they were saved.

  The first process checks for all, so that all restore the same checkpoint.
  """
  problem = _damage(folder) if processes.is_first() else ""
  if processes.from_first(bool(problem)):
    raise ValueError(problem or "the first process found it damaged")


def _damage(folder: epath.Path) -> str:
  """What is wrong with a checkpoint's files; "" if nothing is."""
  try:
    digests = json.loads((folder / _CHECKSUMS).read_text())
  except (FileNotFoundError, ValueError):
    return ""  # an older one, or only this file is damaged: Orbax checks the others
  try:
    storage.check_files(folder, digests)
  except ValueError as error:
    return str(error)
  return ""


def restore_params(workdir: epath.PathLike, like: typing.Any) -> tuple[int, typing.Any]:
  """Restores the parameters of the newest complete checkpoint, or of an export.

  Args:
    workdir: folder of a run or of an exported run.
    like: shapes, dtypes and shardings of the parameters, see `Checkpoints.restore`.

  Returns:
    The step and the parameters.

  Raises:
    CheckpointError: if there is no complete checkpoint, or if an export is damaged.
  """
  if (epath.Path(workdir) / checkpoint.FILE).exists():
    return _load_exported(epath.Path(workdir), like)
  with Checkpoints(workdir, read_only=True) as checkpoints:
    restored = checkpoints.restore(params=like)
  if restored is None:
    raise CheckpointError(f"there is no checkpoint in {workdir}")
  step, parts = restored
  return step, parts["params"]


def _load_exported(workdir: epath.Path, like: typing.Any) -> tuple[int, typing.Any]:
  """The step and the parameters of an export, which is a saved model of tca_jax."""
  try:
    _, params, info = tca_jax.load(workdir)
  except (OSError, ValueError) as error:
    raise CheckpointError(str(error)) from error

  def shapes(tree: typing.Any) -> typing.Any:
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)

  if shapes(params) != shapes(like) or "step" not in info:
    raise CheckpointError(
      f"{workdir} has the parameters of another model than its config"
    )
  shardings = jax.tree.map(lambda x: x.sharding, like)
  return info["step"], jax.tree.map(processes.place, params, shardings)
