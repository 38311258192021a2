"""A streaming map: no point is lost at a stop, and what is measured on the way."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import chex
from etils import epath
import jax
import numpy as np
import pytest

from experiments import stream
from experiments import stream_map
from experiments.common import growing as growing_lib
from experiments.common import systems
from experiments.common import workdir as workdir_lib
from experiments.common.errors import CheckpointError
from experiments.common.errors import ConfigError
from experiments.common.errors import PreemptedError
from experiments.data import elevation
from experiments.data import windows
from tca_jax import serving
from tests import models

ROOT = pathlib.Path(__file__).parent.parent
SMALL = stream.Stream(sizes=(16, 28), batch_size=8)


def _points(rng, n):
  coords = rng.uniform(-0.5, 0.5, size=(n, 2)).astype(np.float32)
  return windows.Points(coords=coords, values=np.sin(9 * coords[:, :1]))


@pytest.fixture(scope="module")
def restored():
  """A small model that was not trained, and a map of random points."""
  return _restored("tca")


def _restored(name):
  rng, model = np.random.default_rng(0), models.model(name)
  whole = elevation.ValueMap(
    train=_points(rng, 40),
    held_out=_points(rng, 9),
    unit="m",
    mean=3.0,
    std=2.0,
    asinh_scale=None,
    pixel=0.1,
  )
  task = types.SimpleNamespace(
    model=model,
    map=whole,
    system=systems.SYSTEMS[name],
    config=types.SimpleNamespace(dataset="small"),
  )
  return types.SimpleNamespace(
    task=task, params=models.params(model), step=7, workdir=epath.Path("folder/model")
  )


@pytest.fixture
def unmeasured(monkeypatch):
  """Replaces the predictions by nothing."""
  scores = dict(rmse=1.0, num_targets=9)
  monkeypatch.setattr(stream_map.StreamMap, "measure", lambda *_: dict(scores))
  monkeypatch.setattr(stream_map.StreamMap, "draw", lambda *_: None)


def _stopped(monkeypatch, calls, stop):
  """Calls `stop` before the batch of a number is inserted."""
  insert, count = growing_lib.GrowingContext.insert, iter(range(1, 100))

  def counted(self, *points):
    if next(count) == calls:
      stop()
    insert(self, *points)

  monkeypatch.setattr(growing_lib.GrowingContext, "insert", counted)


def _sorted(coords):
  coords = np.asarray(coords)
  return coords[np.lexsort(coords.T)]


def _stored(workdir):
  """The points in the memory of a workdir, sorted."""
  growing, _ = serving.load_memory(workdir / stream.MEMORY_FILE)
  return _sorted(growing.coords[growing.mask])


def _arriving(restored, count):
  """The first points of the stream of seed 0, sorted."""
  coords = np.asarray(restored.task.map.train.coords)
  return _sorted(coords[np.random.default_rng(0).permutation(len(coords))[:count]])


def test_growing_context_contains_every_point_once_and_doubles_when_crowded():
  model, rng = models.model("tca"), np.random.default_rng(0)
  context = growing_lib.GrowingContext(model, models.params(model), batch_size=8)
  coords = rng.normal(size=(28, 2)).astype(np.float32)
  coords[10:16] = coords[10]  # at one location
  for start, stop in ((0, 8), (8, 16), (16, 21), (21, 28)):
    context.insert(coords[start:stop], coords[start:stop, :1])
    growing = context.growing
    assert context.num_points == stop
    np.testing.assert_array_equal(
      _sorted(growing.coords[growing.mask]), _sorted(coords[:stop])
    )
  assert growing.capacity == 32 and context.num_rebuilds > 0


def test_follow_killed_run_resumes_with_the_same_memory_and_every_point(
  restored, unmeasured, monkeypatch, tmp_path
):
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  content = stream.follow(restored, whole, SMALL, save_every=16)
  assert [row["num_points"] for row in content["rows"]] == [16, 28]
  np.testing.assert_array_equal(_stored(whole), _arriving(restored, 28))

  class Killed(BaseException):
    pass

  def kill():
    raise Killed

  with monkeypatch.context() as patch:
    _stopped(patch, 4, kill)  # 24 points are inserted, 16 of them are saved
    with pytest.raises(Killed):
      stream.follow(restored, killed, SMALL, save_every=16)
  np.testing.assert_array_equal(_stored(killed), _arriving(restored, 16))
  resumed = stream.follow(restored, killed, SMALL, save_every=16)
  memories = [serving.load_memory(x / stream.MEMORY_FILE)[0] for x in (whole, killed)]
  chex.assert_trees_all_equal(*memories)
  assert [row["num_points"] for row in resumed["rows"]] == [16, 28]
  assert [x["first_step"] for x in resumed["sessions"]] == [0, 16]
  again = stream.follow(restored, killed, SMALL, save_every=16)  # has nothing to do
  assert again["rows"] == resumed["rows"] and len(again["sessions"]) == 2


def test_follow_sigterm_saves_the_batch_and_stops(
  restored, unmeasured, monkeypatch, tmp_path
):
  _stopped(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
  with pytest.raises(PreemptedError, match="SIGTERM: saved 24 points in"):
    stream.follow(restored, tmp_path, SMALL, save_every=1000)
  np.testing.assert_array_equal(_stored(tmp_path), _arriving(restored, 24))


def test_follow_killed_before_a_row_is_written_measures_after_the_restart(
  restored, unmeasured, tmp_path
):
  small = dataclasses.replace(SMALL, sizes=(16,))
  stream.follow(restored, tmp_path, small)
  (tmp_path / "metrics.jsonl").write_text("")
  content = stream.follow(restored, tmp_path, small)
  assert [row["num_points"] for row in content["rows"]] == [16]


@pytest.mark.slow
def test_follow_measures_the_grown_memory_beside_a_new_one(tmp_path):
  restored = _restored("relative_tca")
  content = stream.follow(restored, tmp_path, SMALL)
  whole, task = restored.task.map, restored.task
  order = np.random.default_rng(0).permutation(40)[:28]
  known, held_out = (
    jax.tree.map(lambda x: x[order], whole.train.take_first(None)),
    whole.held_out,
  )
  output = task.model.apply(
    restored.params, known.coords[None], known.values[None], held_out.coords[None]
  ).output
  error = 2.0 * (np.asarray(output.mean)[0] - held_out.values)
  row = content["rows"][-1]
  np.testing.assert_allclose(
    row["new_rmse"], np.sqrt(np.mean(error**2)), **models.ROUNDED
  )
  assert row["rmse"] == pytest.approx(row["new_rmse"], rel=0.5)
  assert row["num_targets"] == 9 and row["linear_rmse"] < 2
  assert content["settings"]["model"] == "model" and content["unit"] == "m"
  assert json.loads((tmp_path / "stream.json").read_text()) == content
  assert (tmp_path / "stream.png").stat().st_size > 10_000
  assert "28" in stream_map.table_of(content)


# --- Bad input.


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(sizes=()), "sizes must be ascending integers of at least 16, got"),
    (dict(sizes=(15, 30)), "sizes must be ascending integers of at least 16"),
    (dict(sizes=(30, 20)), "sizes must be ascending"),
    (dict(sizes=(30, 30)), "sizes must be ascending"),
    (dict(batch_size=0), "batch_size must be at least 1, got 0"),
    (dict(num_targets=-1), "num_targets must be at least 0, got -1"),
  ],
)
def test_stream_options_that_are_not_allowed_raise(options, message):
  with pytest.raises(ConfigError, match=message):
    stream.Stream(**options)


def test_follow_workdir_of_something_else_raises_and_stays_as_it_is(
  restored, unmeasured, tmp_path
):
  (tmp_path / "notes.txt").write_text("mine")
  with pytest.raises(ConfigError, match=r"has files but no config.json"):
    stream.follow(restored, tmp_path, SMALL)
  assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
  workdir = tmp_path / "run"
  small = dataclasses.replace(SMALL, sizes=(16,))
  stream.follow(restored, workdir, small)
  with pytest.raises(ConfigError, match="stream of other settings"):
    stream.follow(restored, workdir, dataclasses.replace(small, seed=1))
  with (
    workdir_lib.locked(epath.Path(workdir)),
    pytest.raises(ConfigError, match="is in use by process"),
  ):
    stream.follow(restored, workdir, small)
  memory = workdir / stream.MEMORY_FILE
  memory.write_bytes(memory.read_bytes()[:-100])
  with pytest.raises(CheckpointError, match=r"memory.npz is damaged"):
    stream.follow(restored, workdir, small)


def test_follow_model_without_tree_raises(tmp_path):
  with pytest.raises(CheckpointError, match=r"folder/model: read_out must have a tree"):
    stream.follow(_restored("ca"), tmp_path / "run", SMALL)
  assert not (tmp_path / "run").exists()


# --- The command line.


def _command(workdir, *arguments):
  sizes = ["--sizes=100,300", "--batch_size=20", "--save_every=20"]
  limits = ["--num_targets=50", "--num_drawn=50"]
  module = [sys.executable, "-m", "experiments.stream", f"--workdir={workdir}"]
  return [*module, *sizes, *limits, *arguments]


@pytest.mark.slow
def test_command_killed_while_points_arrive_loses_none(tmp_path):
  workdir, output = tmp_path / "run", tmp_path / "output.txt"
  with output.open("w") as file:
    process = subprocess.Popen(_command(workdir), cwd=ROOT, stdout=file, stderr=file)
  memory = workdir / stream.MEMORY_FILE
  while not memory.exists():
    assert process.poll() is None, output.read_text()
    time.sleep(0.05)
  process.kill()
  process.wait()
  saved = _stored(workdir)
  assert 20 <= len(saved) < 300
  for _ in range(2):
    subprocess.run(_command(workdir), cwd=ROOT, check=True, capture_output=True)
    points = elevation.load("fault").train
    order = np.random.default_rng(0).permutation(len(points.coords))[:300]
    np.testing.assert_array_equal(
      _stored(workdir), _sorted(np.asarray(points.coords)[order])
    )
  assert {x.tobytes() for x in saved} <= {x.tobytes() for x in _stored(workdir)}


@pytest.mark.slow
@pytest.mark.parametrize(
  "argument, code, message",
  [
    ("--sizes=1e3", 1, "sizes must be integers of at least 16"),
    ("--model=none", 1, "none has no config.json"),
    ("--model=checkpoints/terrain_ca", 1, "read_out must have a tree"),
    ("--model=checkpoints/gp_tca", 1, "belongs to another experiment"),
    ("--batch_size=0", 1, "--batch_size"),
  ],
)
def test_command_reports_bad_input_in_one_line(argument, code, message, tmp_path):
  found = subprocess.run(
    _command(tmp_path / "run", argument),
    cwd=ROOT,
    check=False,
    capture_output=True,
    text=True,
  )
  assert found.returncode == code and message in found.stderr
  assert "Traceback" not in found.stderr
  assert not (tmp_path / "run").exists()
