"""Runs in a bucket: everything goes there, or the flag is refused in one line."""

import json

import chex
from etils import epath
import fsspec
import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest

from experiments import copy_task
from experiments import export
from experiments.common import checkpoints as checkpoints_lib
from experiments.common import launch
from experiments.common import metrics as metrics_lib
from experiments.common.errors import ConfigError
from experiments.copy_task import CopyConfig
from experiments.data import point_tables
from experiments.figures import style
from experiments.image_completion import ImageConfig
from tests import buckets

SMALL = dict(
  model="ca",
  sequence_length=8,
  num_steps=2,
  batch_size=4,
  eval_batches=1,
  save_every=1,
  log_every=1,
)
STATE = {"params": {"w": jnp.arange(6.0)}, "optimizer": (jnp.int32(3),)}


@pytest.fixture
def objects(monkeypatch):
  return buckets.install(monkeypatch)


def _run(*arguments):
  return copy_task.PROGRAM.run(["copy_task", *arguments])


def _names(objects, folder):
  """The names of the files and folders in a folder of the bucket."""
  below = [x.removeprefix(f"{folder}/") for x in objects if x.startswith(f"{folder}/")]
  return {x.split("/")[0] for x in below}


def test_run_in_a_bucket_writes_nothing_elsewhere_and_resumes(
  objects, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  options = [f"--{name}={value}" for name, value in SMALL.items()]
  workdir = "gs://bucket/runs/copy"
  assert _run(f"--workdir={workdir}", *options) == 0
  assert "gs://bucket/runs/copy/eval.json" in capsys.readouterr().out
  assert _names(objects, "bucket/runs/copy") == {
    "config.json", "training.json", "metrics.jsonl", "tensorboard", "checkpoints",
    "eval.json",
  }  # fmt: skip
  assert _names(objects, "bucket/runs/copy/checkpoints") == {"1", "2"}
  metrics = objects["bucket/runs/copy/metrics.jsonl"].decode().splitlines()
  assert [json.loads(line)["step"] for line in metrics] == [1, 2]
  trained = copy_task.PROGRAM.restore(workdir).params

  # As after a kill between the two steps.
  for name in [x for x in objects if "checkpoints/2/" in x or x.endswith("eval.json")]:
    del objects[name]
  assert _run(f"--workdir={workdir}", *options) == 0
  assert "resuming at step 1" in capsys.readouterr().out
  metrics = objects["bucket/runs/copy/metrics.jsonl"].decode().splitlines()
  assert [json.loads(line)["step"] for line in metrics] == [1, 2]
  assert len(_names(objects, "bucket/runs/copy/tensorboard")) == 2
  chex.assert_trees_all_equal(copy_task.PROGRAM.restore(workdir).params, trained)
  assert not list(tmp_path.iterdir())

  out = "s3://other/results"
  assert _run("--mode=eval", f"--workdir={workdir}", f"--out={out}") == 0
  assert _names(objects, "other/results") == {"eval.json"}
  (tmp_path / "results").mkdir()
  export.export(workdir, "copied", tmp_path)
  exported = copy_task.PROGRAM.restore(tmp_path / "checkpoints" / "copied")
  chex.assert_trees_all_equal(exported.params, trained)


def test_run_of_another_config_in_a_bucket_fails(objects, caplog):
  objects["bucket/run/config.json"] = b"{"
  assert _run("--workdir=gs://bucket/run") == 1
  assert "gs://bucket/run/config.json cannot be read" in caplog.text
  del objects["bucket/run/config.json"]
  objects["bucket/run/thesis.tex"] = b""
  assert _run("--workdir=gs://bucket/run") == 1
  assert "has files but no config.json" in caplog.text
  assert list(objects) == ["bucket/run/thesis.tex"]


def _plus(x):
  return jax.tree.map(lambda leaf: leaf + x, STATE)


def test_checkpoints_of_a_bucket_keep_three_and_ignore_incomplete_ones(objects, caplog):
  workdir, folder = "s3://bucket/run", "bucket/run/checkpoints"
  with checkpoints_lib.Checkpoints(workdir) as checkpoints:
    for step in (1, 2, 3, 4):
      checkpoints.save(step, **_plus(step))
  assert _names(objects, folder) == {"2", "3", "4"}
  step, params = checkpoints_lib.restore_params(workdir, STATE["params"])
  assert step == 4
  chex.assert_trees_all_equal(params, _plus(4)["params"])

  # Step 4 was killed before its end, and a file of step 3 is damaged.
  del objects[f"{folder}/4/checksums.json"]
  damaged = next(x for x in objects if x.startswith(f"{folder}/3/") and "/d/" in x)
  objects[damaged] = objects[damaged][:-1]
  with checkpoints_lib.Checkpoints(workdir) as checkpoints:
    step, state = checkpoints.restore(**STATE)
    assert step == 2 and "checkpoint 3 in s3://bucket/run" in caplog.text
    chex.assert_trees_all_equal(state, _plus(2))
    for step in (3, 4):
      checkpoints.save(step, **_plus(step))
    assert checkpoints.steps == [2, 3, 4]
  step, params = checkpoints_lib.restore_params(workdir, STATE["params"])
  assert step == 4
  with pytest.raises(
    checkpoints_lib.CheckpointError, match="no checkpoint in s3://a/b"
  ):
    checkpoints_lib.restore_params("s3://a/b", STATE["params"])


def test_save_that_cannot_reach_the_bucket_keeps_the_older_checkpoint(
  objects, monkeypatch
):
  with checkpoints_lib.Checkpoints("gs://bucket/run") as checkpoints:
    checkpoints.save(1, **_plus(1))
    with monkeypatch.context() as context:
      context.setattr(buckets.Bucket, "_open", _fail)
      with pytest.raises(
        checkpoints_lib.CheckpointError, match=r"newest .* there is 1"
      ):
        checkpoints.save(2, **_plus(2))
  step, params = checkpoints_lib.restore_params("gs://bucket/run", STATE["params"])
  assert step == 1
  chex.assert_trees_all_equal(params, _plus(1)["params"])


def _fail(*_, **__):
  raise PermissionError("access is denied")


class _NetworkError(Exception):
  """As the packages of buckets raise: no OSError."""


def test_metrics_that_cannot_reach_the_bucket_are_reported_in_one_line(
  objects, monkeypatch, caplog
):
  def fail(*_, **__):
    raise _NetworkError("no route to the bucket")

  def write():
    with metrics_lib.MetricsWriter("gs://bucket/run", 0) as writer:
      monkeypatch.setattr(buckets.Bucket, "_open", fail)
      writer.write(1, {"loss": 1.0, "seconds": 1.0})

  assert launch.report(write) == 1
  (record,) = caplog.records
  assert record.message == (
    "gs://bucket/run/metrics.jsonl cannot be written: _NetworkError: no route to the"
    " bucket"
  )


@pytest.mark.parametrize("flag", ["--workdir", "--out"])
@pytest.mark.parametrize("path", ["foo://bucket/x", "s3:/bucket/x", "file:///tmp/x"])
def test_run_of_another_scheme_fails_in_one_line(flag, path, capsys, tmp_path):
  assert _run(f"--workdir={tmp_path}", f"{flag}={path}") == 2
  error = capsys.readouterr().err.splitlines()
  assert error[0] == (
    f"copy_task: {flag}: a path must be that of this machine, such as runs/name, or"
    f" gs://bucket/name or s3://bucket/name; got {path}"
  )
  assert len(error) == 2 and not list(tmp_path.iterdir())


def test_run_without_the_package_of_the_bucket_fails_in_one_line(monkeypatch, capsys):
  def missing(_):
    raise ImportError("Please install it")

  monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
  assert _run("--workdir=s3://bucket/x") == 2
  assert "--workdir: s3:// needs the package s3fs; install" in capsys.readouterr().err


def test_paths_of_a_bucket_that_cannot_be_used_raise(objects, monkeypatch, caplog):
  monkeypatch.setattr(buckets.Bucket, "_open", _fail)
  assert _run("--workdir=gs://bucket/x") == 1
  assert "--workdir=gs://bucket/x cannot be written: access is denied" in caplog.text
  monkeypatch.setattr(buckets.Bucket, "exists", _fail)
  message = r"--out=gs://bucket/x cannot be accessed: PermissionError: access is denied"
  with pytest.raises(ConfigError, match=message):
    copy_task.evaluate("runs/none", "gs://bucket/x")


@pytest.mark.parametrize("name", ["data_dir", "manual_dir"])
def test_config_with_data_in_a_bucket_raises(name):
  with pytest.raises(
    ConfigError, match=f"{name} must be a path of this machine, got g"
  ):
    ImageConfig(**{name: "gs://bucket/data"})


def test_train_in_another_scheme_raises():
  with pytest.raises(ConfigError, match="--workdir: a path must be"):
    copy_task.train(CopyConfig(**SMALL), "foo://bucket/x")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".npz", ".parquet"])
def test_tables_and_figures_of_a_bucket_are_read_and_written(suffix, objects):
  pandas = pytest.importorskip("pandas")
  frame = pandas.DataFrame(dict(x=np.arange(3) / 7, name=["a", "ä", "c"]))
  path = epath.Path(f"gs://bucket/tables/t{suffix}")
  point_tables.write(path, frame, ["x"])
  read = point_tables.read(str(path)).frame
  np.testing.assert_allclose(read["x"].astype(float), frame["x"])
  assert list(read["name"]) == list(frame["name"])
  style.save(matplotlib.figure.Figure(), path.with_suffix(".png"))
  assert objects["bucket/tables/t.png"].startswith(b"\x89PNG")
  assert len(objects) == 2
