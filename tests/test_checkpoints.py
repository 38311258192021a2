"""Checkpoints: saved, restored and exported, complete or truncated."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import checkpoints as checkpoints_lib

STATE = {
  "params": {"w": jnp.arange(6.0), "b": jnp.ones(2)},
  "optimizer": (jnp.int32(3),),
}


def _plus(x):
  return jax.tree.map(lambda leaf: leaf + x, STATE)


def _break(workdir, step):
  """Truncates every data file of a checkpoint to half its size."""
  files = [
    path
    for path in (workdir / "checkpoints" / str(step)).rglob("*")
    if path.is_file() and path.parent.name == "d"
  ]
  assert files
  for path in files:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _save(workdir, steps):
  with checkpoints_lib.Checkpoints(workdir) as checkpoints:
    for step in steps:
      checkpoints.save(step, **_plus(step))
    return checkpoints.steps


def test_restore_returns_the_newest_of_the_three_kept(tmp_path):
  assert _save(tmp_path, [1, 2, 3, 4]) == [2, 3, 4]
  with checkpoints_lib.Checkpoints(tmp_path) as checkpoints:
    step, state = checkpoints.restore(**STATE)
  assert step == 4
  chex.assert_trees_all_equal(state, _plus(4))
  step, params = checkpoints_lib.restore_params(tmp_path, STATE["params"])
  chex.assert_trees_all_equal(params, _plus(4)["params"])


def test_restore_truncated_checkpoint_falls_back_with_a_warning(tmp_path, caplog):
  _save(tmp_path, [1, 2])
  _break(tmp_path, 2)
  with checkpoints_lib.Checkpoints(tmp_path) as checkpoints:
    step, state = checkpoints.restore(**STATE)
    assert step == 1 and "checkpoint 2" in caplog.text
    chex.assert_trees_all_equal(state, _plus(1))
    checkpoints.save(2, **_plus(5))
    step, state = checkpoints.restore(**STATE)
  assert step == 2
  chex.assert_trees_all_equal(state, _plus(5))


def test_save_before_a_truncated_step_succeeds(tmp_path):
  _save(tmp_path, [2, 4])
  _break(tmp_path, 4)
  with checkpoints_lib.Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.restore(**STATE)[0] == 2
    checkpoints.save(3, **_plus(9))
  with checkpoints_lib.Checkpoints(tmp_path) as checkpoints:
    step, state = checkpoints.restore(**STATE)
  assert step == 3
  chex.assert_trees_all_equal(state, _plus(9))


def test_restore_nothing_returns_none_and_nothing_complete_raises(tmp_path):
  with checkpoints_lib.Checkpoints(tmp_path / "new") as checkpoints:
    assert checkpoints.restore(**STATE) is None
  with pytest.raises(checkpoints_lib.CheckpointError, match="no checkpoint in"):
    checkpoints_lib.restore_params(tmp_path / "none", STATE["params"])
  _save(tmp_path, [1])
  _break(tmp_path, 1)
  with pytest.raises(checkpoints_lib.CheckpointError, match="can be restored: 1: "):
    checkpoints_lib.restore_params(tmp_path, STATE["params"])


def test_export_params_writes_only_parameters(tmp_path):
  _save(tmp_path / "run", [7])
  assert checkpoints_lib.export_params(tmp_path / "run", tmp_path / "out") == 7
  step, params = checkpoints_lib.restore_params(tmp_path / "out", STATE["params"])
  assert step == 7
  np.testing.assert_array_equal(params["w"], STATE["params"]["w"] + 7)
  names = {path.name for path in (tmp_path / "out" / "checkpoints" / "7").iterdir()}
  assert "params" in names and "optimizer" not in names
  with pytest.raises(checkpoints_lib.CheckpointError, match="already has"):
    checkpoints_lib.export_params(tmp_path / "run", tmp_path / "out")
