"""Checkpoints of a run. The only file that imports Orbax, whose API is pinned.

A checkpoint is named by the number of steps completed and holds "params" and
"optimizer", so that evaluation restores, and an export holds, parameters alone.
Arrays are restored with the sharding of the state they replace: the number and
kind of devices may differ from those that saved.
"""

import typing

from absl import logging
from etils import epath
import jax
from orbax.checkpoint import v1 as ocp

_DIRECTORY = "checkpoints"
_KEEP = 3


class CheckpointError(RuntimeError):
  """There is no checkpoint that could be restored."""


class Checkpoints:
  """The checkpoints of a workdir, the newest `_KEEP` of them; a context manager."""

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
    """The steps saved, oldest first."""
    return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

  def save(self, step: int, **parts: typing.Any) -> None:
    """Saves pytrees by name, and returns once they are on disk."""
    # Forced: after a fallback the steps on disk are ahead of those saved now.
    saved = self._checkpointer.save_checkpointables(
      step, parts, force=True, overwrite=True
    )
    if not saved:
      raise CheckpointError(f"step {step} could not be saved in {self._directory}")

  def shapes(self, name: str) -> typing.Any:
    """The newest checkpoint's part of a name: shapes and types, on one device."""
    newest = self._checkpointer.checkpointables_metadata(self.steps[-1])
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
      newest.metadata[name],
    )

  def restore(self, **like: typing.Any) -> tuple[int, dict[str, typing.Any]] | None:
    """Restores the newest checkpoint that is whole.

    Args:
      **like: pytrees of arrays with the shapes, dtypes and shardings wanted;
        parts of the checkpoint that are not named are not read.

    Returns:
      The step and the parts by name, or None if nothing was ever saved.

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
  """The step and the parameters of a workdir's newest whole checkpoint.

  Raises:
    CheckpointError: if there is none.
  """
  with Checkpoints(workdir, read_only=True) as checkpoints:
    restored = checkpoints.restore(params=like)
  if restored is None:
    raise CheckpointError(f"there is no checkpoint in {workdir}")
  step, parts = restored
  return step, parts["params"]


def export_params(workdir: epath.PathLike, out: epath.PathLike) -> int:
  """Copies the parameters of the newest checkpoint, without the optimizer.

  Args:
    workdir: of a run.
    out: a folder without checkpoints.

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
      raise CheckpointError(f"{out} already holds the checkpoints {target.steps}")
    target.save(step, **parts)
  # Orbax notes the absolute path in the markers of a finished checkpoint; that they
  # exist is what counts, and an export is made to be moved.
  checkpoint = epath.Path(out) / _DIRECTORY / str(step)
  for folder in (checkpoint, *(checkpoint / name for name in parts)):
    (folder / "commit_success.txt").write_text("committed\n")
  return step
