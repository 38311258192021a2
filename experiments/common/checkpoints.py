"""Checkpoints of a run. Only this file imports Orbax, whose API is pinned.

The name of a checkpoint is the number of completed steps. A checkpoint has the parts
"params" and "optimizer": evaluation restores only the parameters, and an export
contains only the parameters. Arrays are restored with the sharding of the arrays that
they replace, so the number and kind of devices may change between runs.
"""

import typing

from absl import logging
from etils import epath
import jax
from orbax.checkpoint import v1 as ocp

from experiments.common.errors import CheckpointError

_DIRECTORY = "checkpoints"
_KEEP = 3


class Checkpoints:
  """The newest `_KEEP` checkpoints of a workdir; a context manager."""

  def __init__(self, workdir: epath.PathLike, read_only: bool = False):
    self._directory = epath.Path(workdir).resolve() / _DIRECTORY
    if read_only and not self._directory.exists():
      raise CheckpointError(f"there is no checkpoint in {workdir}")
    # The defaults would skip saves and keep every checkpoint.
    always: typing.Any = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
    newest: typing.Any = ocp.training.preservation_policies.LatestN(_KEEP)
    self._checkpointer = ocp.training.Checkpointer(
      self._directory,
      save_decision_policy=always,
      preservation_policy=newest,
      cleanup_tmp_directories=not read_only,
    )

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_) -> None:
    self._checkpointer.close()

  @property
  def steps(self) -> list[int]:
    """Steps of the saved checkpoints, in ascending order."""
    return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

  def save(self, step: int, **parts: typing.Any) -> None:
    """Saves named pytrees; returns when they are on disk."""
    # Forced: after a fallback to an older checkpoint, newer steps are on disk already.
    saved = self._checkpointer.save_checkpointables(
      step, parts, force=True, overwrite=True
    )
    if not saved:
      raise CheckpointError(f"step {step} could not be saved in {self._directory}")

  def shapes(self, name: str) -> typing.Any:
    """Shapes and dtypes of a part of the newest checkpoint, on one device."""
    newest = self._checkpointer.checkpointables_metadata(self.steps[-1])
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
      newest.metadata[name],
    )

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
        return step, self._checkpointer.load_checkpointables(step, abstract)
      except Exception as error:
        cause = error
        while cause.__cause__ is not None:
          cause = cause.__cause__
        reason = (str(cause) or repr(cause)).splitlines()[0][:300]
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


def restore_params(workdir: epath.PathLike, like: typing.Any) -> tuple[int, typing.Any]:
  """Restores the parameters of the newest complete checkpoint.

  Args:
    workdir: folder of a run.
    like: shapes, dtypes and shardings of the parameters, see `Checkpoints.restore`.

  Returns:
    The step and the parameters.

  Raises:
    CheckpointError: if there is no complete checkpoint.
  """
  with Checkpoints(workdir, read_only=True) as checkpoints:
    restored = checkpoints.restore(params=like)
  if restored is None:
    raise CheckpointError(f"there is no checkpoint in {workdir}")
  step, parts = restored
  return step, parts["params"]


def export_params(workdir: epath.PathLike, out: epath.PathLike) -> int:
  """Copies the parameters of the newest checkpoint, without the optimiser's state.

  Args:
    workdir: folder of a run.
    out: folder without checkpoints.

  Returns:
    The step.

  Raises:
    CheckpointError: if there is no checkpoint in workdir, or one in out.
  """
  with Checkpoints(workdir, read_only=True) as source:
    if not source.steps:
      raise CheckpointError(f"there is no checkpoint in {workdir}")
    restored = source.restore(params=source.shapes("params"))
  if restored is None:
    raise CheckpointError(f"there is no checkpoint in {workdir}")
  step, parts = restored
  parts = {"params": parts["params"]}
  with Checkpoints(out) as target:
    if target.steps:
      raise CheckpointError(f"{out} already has the checkpoints {target.steps}")
    target.save(step, **parts)
  # Orbax writes the absolute path into the files that mark a complete checkpoint. It
  # only checks that they exist, and an export may be moved.
  checkpoint = epath.Path(out) / _DIRECTORY / str(step)
  for folder in (checkpoint, *(checkpoint / name for name in parts)):
    (folder / "commit_success.txt").write_text("committed\n")
  return step
