"""Checkpoints: saved and restored, complete or truncated; and exports."""

import chex
import jax
import jax.numpy as jnp
import pytest

from experiments.common import checkpoints as checkpoints_lib
import tca_jax

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


def _exported(folder, params, **info):
  tca_jax.save(folder, tca_jax.GaussianHead(1), params, **info)
  return folder


def test_restore_params_of_an_export_returns_its_step(tmp_path):
  params = STATE["params"]
  folder = _exported(tmp_path / "out", params, step=7)
  step, restored = checkpoints_lib.restore_params(folder, params)
  assert step == 7
  chex.assert_trees_all_equal(restored, params)
  assert restored["w"].sharding == params["w"].sharding


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda x: {"w": x["w"]}, "parameters of another model than its config"),
    (lambda x: x | {"w": x["w"][:2]}, "parameters of another model than its config"),
    (lambda x: x | {"w": x["w"].astype(int)}, "of another model than its config"),
  ],
)
def test_restore_params_of_another_export_raises(change, message, tmp_path):
  folder = _exported(tmp_path / "out", change(STATE["params"]), step=7)
  with pytest.raises(checkpoints_lib.CheckpointError, match=message):
    checkpoints_lib.restore_params(folder, STATE["params"])


def test_restore_params_of_a_damaged_export_raises(tmp_path):
  params = STATE["params"]
  without_step = _exported(tmp_path / "a", params)
  with pytest.raises(checkpoints_lib.CheckpointError, match="of another model"):
    checkpoints_lib.restore_params(without_step, params)
  damaged = _exported(tmp_path / "b", params, step=7)
  (damaged / "parameters" / "params" / "manifest.ocdbt").unlink()
  with pytest.raises(
    checkpoints_lib.CheckpointError, match=r"manifest.ocdbt is missing"
  ):
    checkpoints_lib.restore_params(damaged, params)


def test_checkpoints_of_an_export_raise(tmp_path):
  folder = _exported(tmp_path / "out", STATE["params"], step=7)
  with pytest.raises(
    checkpoints_lib.CheckpointError, match="cannot be trained further"
  ):
    checkpoints_lib.Checkpoints(folder)
