"""Several processes: flags, shardings, and runs of two processes on this machine."""

import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

from absl import flags as absl_flags
from etils import epath
import jax
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from experiments import copy_task
from experiments.common import evaluate
from experiments.common import flags as flags_lib
from experiments.common import metrics
from experiments.common import processes
from experiments.common import provenance
from experiments.common import train
from experiments.common.errors import ConfigError
from experiments.common.errors import PreemptedError
import tca_jax

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = copy_task.CopyConfig(
  sequence_length=8,
  batch_size=8,
  num_steps=4,
  warmup_steps=2,
  save_every=5,
  log_every=1,
  eval_batches=2,
)
# Without walks, which are sampled, rounding changes the losses of many steps little.
LONG = dataclasses.replace(CONFIG, model="ca", num_steps=20)
TOGETHER = ("--distributed", "--coordinator_address=localhost:1234")
# The copy task, in which a process may send a signal to itself before a step.
_PROGRAM = """
import os
from experiments import copy_task
from experiments.common import launch

class Task(copy_task.CopyTask):
  def train_batch(self, rng, step):
    if step == int(os.environ.get("STEP", -1)):
      os.kill(os.getpid(), int(os.environ["SIGNAL"]))
    return super().train_batch(rng, step)

launch.Program(copy_task.CopyConfig, Task).main()
"""


def _options(config):
  return [f"--{name}={value}" for name, value in dataclasses.asdict(config).items()]


def _start(
  *flags,
  program=("-c", _PROGRAM),
  count=2,
  devices=1,
  sent=None,
  victim=1,
  step=0,
  last_flags=(),
):
  """Starts processes together; one sends itself a signal before a step."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  xla_flags = os.environ["XLA_FLAGS"]
  xla_flags += f" --xla_force_host_platform_device_count={devices}"
  started = []
  for i in range(count):
    environment = os.environ | {"XLA_FLAGS": xla_flags}
    if sent is not None and i == victim:
      environment |= {"STEP": str(step), "SIGNAL": str(int(sent))}
    command = [sys.executable, *program, *flags, "--distributed"]
    command += [f"--coordinator_address={address}"]
    command += [f"--num_processes={count}", f"--process_id={i}"]
    command += last_flags if i == count - 1 else ()
    started.append(
      subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
  return started


def _finish(started, codes=None):
  """The outputs and the errors of processes."""
  texts = [process.communicate(timeout=500) for process in started]
  found = [process.returncode for process in started]
  everything = "\n".join(output + errors for output, errors in texts)
  assert found == (codes or [0] * len(started)), everything
  return texts


def _losses(workdir):
  return {record["step"]: record["loss"] for record in metrics.read_metrics(workdir)}


def _assert_same_losses(workdir, expected):
  found, losses = _losses(workdir), _losses(expected)
  assert found.keys() == losses.keys()
  np.testing.assert_allclose([*found.values()], [*losses.values()], rtol=1e-5)


def _assert_same_metrics(found, expected):
  names = {"accuracy", "log_likelihood", "tokens_fraction", "num_examples"}
  names |= expected.keys() & {"full_accuracy", "full_log_likelihood"}
  for name in names:
    assert found[name] == pytest.approx(expected[name], rel=1e-5), name


def _trained(folder, config):
  """A workdir in which this process trained, and its evaluation."""
  workdir = epath.Path(folder / "alone")
  copy_task.train(config, workdir)
  return workdir, copy_task.evaluate(workdir)[evaluate.EVAL_FILE]


@pytest.mark.parametrize("model", ["ca", pytest.param("tca", marks=pytest.mark.slow)])
def test_two_processes_train_and_evaluate_as_one(model, tmp_path):
  workdir = epath.Path(tmp_path / "two")
  config = dataclasses.replace(CONFIG, model=model)
  started = _start(f"--workdir={workdir}", *_options(config))
  alone, expected = _trained(tmp_path, config)
  (first, _), (second, _) = _finish(started)
  assert f"{workdir / 'eval.json'}" in first and "eval.json" not in second
  _assert_same_losses(workdir, alone)
  written = json.loads((workdir / "eval.json").read_text())
  _assert_same_metrics(written, expected)
  assert written["num_examples"] == 16
  (session,) = provenance.training_sessions(workdir)
  assert session["processes"] == 2 and session["device"].startswith("2 x")


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
  return _trained(tmp_path_factory.mktemp("long"), LONG)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_kill_of_one_process_ends_the_other_and_one_resumes(victim, tmp_path, long_run):
  workdir = epath.Path(tmp_path / "run")
  flags = (f"--workdir={workdir}", *_options(LONG))
  started = _start(*flags, sent=signal.SIGKILL, victim=victim, step=12)
  codes = [1, 1]
  codes[victim] = -signal.SIGKILL
  errors = _finish(started, codes)[1 - victim][1]
  # JAX may still write a part of its own report after the line.
  last = "\n".join(errors.strip().splitlines()[-5:])
  assert f"process {1 - victim} of 2 stops: another process ended" in last
  assert "Traceback" not in errors
  assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == [
    "10",
    "5",
  ]
  copy_task.train(LONG, workdir)
  _assert_same_losses(workdir, long_run[0])
  sessions = provenance.training_sessions(workdir)
  assert [session["first_step"] for session in sessions] == [0, 10]
  assert [session["processes"] for session in sessions] == [2, 1]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_sigterm_of_one_process_stops_both_and_two_resume(victim, tmp_path, long_run):
  workdir = epath.Path(tmp_path / "run")
  flags = (f"--workdir={workdir}", *_options(LONG))
  started = _start(*flags, sent=signal.SIGTERM, victim=victim, step=7)
  texts = _finish(started, [PreemptedError.exit_code] * 2)
  steps = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
  assert 8 <= max(steps) < 20
  for _, errors in texts:
    assert f"SIGTERM: saved step {max(steps)} in" in errors
  _finish(_start(*flags, devices=2))
  _assert_same_losses(workdir, long_run[0])
  _assert_same_metrics(json.loads((workdir / "eval.json").read_text()), long_run[1])


class _StoppedError(RuntimeError):
  pass


@pytest.mark.slow
def test_eight_devices_of_two_processes_resume_what_one_process_began(
  tmp_path, long_run
):
  class Stopping(copy_task.CopyTask):
    def train_batch(self, rng, step):
      if step == 12:
        raise _StoppedError
      return super().train_batch(rng, step)

  workdir = epath.Path(tmp_path / "run")
  with pytest.raises(_StoppedError):
    train.train(Stopping(LONG), workdir)
  _finish(_start(f"--workdir={workdir}", *_options(LONG), devices=4))
  _assert_same_losses(workdir, long_run[0])
  _assert_same_metrics(json.loads((workdir / "eval.json").read_text()), long_run[1])
  devices = [x["device"][:3] for x in provenance.training_sessions(workdir)]
  assert devices == ["1 x", "8 x"]


@pytest.mark.slow
def test_two_processes_evaluate_all_beam_widths(tmp_path):
  workdir, expected = _trained(tmp_path, CONFIG)
  _finish(_start(f"--workdir={workdir}", "--mode=paths", f"--out={tmp_path}"))
  rows = json.loads((tmp_path / "paths.json").read_text())["rows"]
  assert [row["num_paths"] for row in rows] == [1, 2, 4, 8, "all"]
  assert rows[0]["accuracy"] == pytest.approx(expected["accuracy"])
  assert rows[-1]["accuracy"] == pytest.approx(expected["full_accuracy"])


@pytest.mark.slow
def test_two_processes_train_on_a_table_and_save_the_model(tmp_path, rng):
  workdir, (x, y) = tmp_path / "run", rng.random((2, 80))
  np.savez(tmp_path / "points.npz", x=x, y=y, z=np.sin(5 * x) + y)
  flags = [f"--workdir={workdir}", f"--table={tmp_path / 'points.npz'}", "--coords=x,y"]
  flags += ["--target=z", "--num_steps=2", "--batch_size=2", "--eval_batches=1"]
  flags += ["--read_layers=1", "--kriged_nodes=8"]
  (first, _), (second, _) = _finish(
    _start(*flags, program=("-m", "experiments.points"))
  )
  assert "Before training" in first and "held-out points" not in second
  assert (workdir / "points.png").exists() and (workdir / "scores.json").exists()
  _, params, info = tca_jax.load(workdir / "model")
  assert info["step"] == 2 and jax.tree.leaves(params)
  assert not list(tmp_path.glob("run/model.*"))


@pytest.mark.slow
def test_errors_of_all_processes_are_one_line_each(tmp_path):
  workdir = tmp_path / "run"
  started = _start(f"--workdir={workdir}", *_options(CONFIG), devices=3)
  for _, errors in _finish(started, [1, 1]):
    assert "batch_size must be a multiple of the 6 devices, got 8" in errors
    assert "Traceback" not in errors
  assert not workdir.exists() or not any(workdir.iterdir())


@pytest.mark.slow
def test_processes_with_other_options_are_refused(tmp_path):
  workdir = tmp_path / "run"
  flags = (f"--workdir={workdir}", *_options(CONFIG))
  started = _start(*flags, last_flags=["--log_every=2"])
  (_, first), (_, second) = _finish(started, [1, 1])
  assert "process 1 of 2 has other options than the first" in second
  assert "process 0 of 2 stops: another process ended" in first
  assert not list(workdir.glob("checkpoints/*"))


def test_parse_mode_of_one_process_is_refused():
  argv = ["copy_task", "--mode=predict", "--distributed"]
  modes = {**flags_lib.MODES, "predict": "predict"}
  with pytest.raises(absl_flags.Error, match="--mode=predict runs in one process"):
    flags_lib.parse(copy_task.CopyConfig, argv, modes, ["predict"])


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--process_id=0"], "--process_id needs --distributed"),
    (TOGETHER, "--distributed also needs --num_processes, --process_id; without all"),
    (
      [*TOGETHER, "--num_processes=2", "--process_id=2"],
      "process_id must be from 0 to num_processes - 1 = 1, got 2",
    ),
    (
      [*TOGETHER, "--num_processes=0", "--process_id=0"],
      "num_processes must be at least 1, got 0",
    ),
    (
      [TOGETHER[0], "--coordinator_address=a", "--num_processes=1", "--process_id=0"],
      "coordinator_address must be a host and a port, as host:1234, got 'a'",
    ),
  ],
)
def test_run_incomplete_or_wrong_description_fails(
  arguments, message, tmp_path, caplog
):
  command = ["copy_task", f"--workdir={tmp_path / 'new'}", *arguments]
  assert copy_task.PROGRAM.run(command) == 1
  assert message in caplog.text and "Traceback" not in caplog.text
  assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", processes._COUNTS)
def test_join_one_of_several_processes_without_the_flag_is_refused(name, monkeypatch):
  monkeypatch.setenv(name, "1")
  processes.Cluster().join()
  monkeypatch.setenv(name, "4")
  processes.Cluster(distributed=False).join()
  with pytest.raises(
    ConfigError, match=rf"one of 4 processes \({name}\).*--distributed"
  ):
    processes.Cluster().join()


def test_train_and_evaluate_in_processes_that_are_not_connected_are_refused(
  tmp_path, monkeypatch
):
  task = copy_task.CopyTask(CONFIG)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(ConfigError, match="2 processes that are not connected"):
    train.train(task, tmp_path / "new")
  with pytest.raises(ConfigError, match="2 processes that are not connected"):
    evaluate.evaluate_workdir(task, tmp_path / "new")
  assert not (tmp_path / "new").exists()


@dataclasses.dataclass(frozen=True)
class _Device:
  """A device, which a mesh only counts."""

  id: int
  process_index: int


def _devices(*counts):
  indices = [i for i, count in enumerate(counts) for _ in range(count)]
  return [_Device(*pair) for pair in enumerate(indices)]


@pytest.mark.parametrize(
  "counts, batch_size, expected",
  [((6,), 12, [6]), ((6,), 8, [4]), ((3, 3), 8, [2, 2]), ((2, 4), 12, [2, 4])],
)
def test_shardings_divide_the_batch_among_devices(
  counts, batch_size, expected, monkeypatch
):
  devices = _devices(*counts)
  monkeypatch.setattr(jax, "devices", lambda: devices)
  monkeypatch.setattr(jax, "process_count", lambda: len(counts))
  _, split = processes.shardings(batch_size, all_devices=False)
  assert split.mesh.devices.size == sum(expected)
  assert split.spec == PartitionSpec("data")
  used = [x.process_index for x in split.mesh.devices.flat]
  assert np.bincount(used).tolist() == expected
  if counts != tuple(expected):
    message = f"multiple of the {sum(counts)} devices, got {batch_size}"
    with pytest.raises(ConfigError, match=message):
      processes.shardings(batch_size)


def test_shardings_of_fewer_contexts_than_processes_raise(monkeypatch):
  devices = _devices(1, 1, 1)
  monkeypatch.setattr(jax, "devices", lambda: devices)
  monkeypatch.setattr(jax, "process_count", lambda: 3)
  with pytest.raises(ConfigError, match="multiple of the 3 processes, got 8"):
    processes.shardings(8, all_devices=False)
