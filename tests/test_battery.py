"""A battery of inputs that users give by mistake, and of accidents.

Each table has one case a line. A case of a program ends with its exit code and one line
that names the problem; a case of the library raises an error that names the argument.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

from absl import logging
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import copy_task
from experiments import export
from experiments.activity import ActivityConfig
from experiments.common import config as config_lib
from experiments.common import flags
from experiments.common import launch
from experiments.common import metrics
from experiments.common import systems
from experiments.common import workdir as workdir_lib
from experiments.common.errors import ConfigError
from experiments.copy_task import CopyConfig
from experiments.data import augmentation
from experiments.data import copy
from experiments.data import gp
from experiments.data import human_activity
from experiments.data import images
from experiments.data import windows
from experiments.gp_regression import GPConfig
from experiments.image_completion import ImageConfig
from experiments.image_completion import ImageTask
from experiments.points_config import PointsConfig
from experiments.programs import PROGRAMS
from experiments.terrain import TerrainConfig

ROOT = pathlib.Path(__file__).parent.parent
OPTIONS = dict(
  sequence_length=8,
  num_steps=4,
  batch_size=4,
  eval_batches=1,
  save_every=2,
  log_every=1,
)
FLAGS = [f"--{name}={value}" for name, value in OPTIONS.items()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """The workdir of a run of four steps, with the checkpoints 2 and 4."""
  workdir = tmp_path_factory.mktemp("battery") / "run"
  assert _run(workdir, *FLAGS) == 0
  return workdir


@pytest.fixture
def run(finished, tmp_path):
  """A copy of the finished run."""
  shutil.copytree(finished, tmp_path / "run")
  return tmp_path / "run"


def _run(workdir, *arguments):
  argv = ["copy_task", f"--workdir={workdir}", *arguments]
  return copy_task.PROGRAM.run(argv)


def _lines(caplog):
  return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


# --- Programs: what is done to a finished run, and the command that follows.


@dataclasses.dataclass(frozen=True)
class Case:
  """A command on a finished run.

  Attributes:
    name: name of the case.
    message: part of the only line that is reported.
    act: changes the run or the folder above it; returns the arguments of the command,
      with `--workdir` if it is not the run's.
    code: exit code.
  """

  name: str
  message: str
  act: Callable[[pathlib.Path], Sequence[str]]
  code: int = 1


def _write(name, data, *arguments):
  """Writes a file of the run before the command."""

  def act(run):
    (run / name).write_bytes(data)
    return arguments

  return act


def _edit(**changes):
  """Changes options in the config of the run."""

  def act(run):
    path = run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return ["--mode=eval"]

  return act


def _path(flag, name, *arguments):
  """Gives a path below the folder of the run; "file" is a file, "link" dangles."""

  def act(run):
    (run.parent / "file").write_text("")
    (run.parent / "link").symlink_to(run.parent / "nothing")
    return [f"--{flag}={run.parent / name}", *arguments]

  return act


def _locked_by_other(run):
  """Trains in a workdir that another process holds."""
  code = (
    "import fcntl, sys, time; f = open(sys.argv[1], 'a+'); fcntl.flock(f, 2);"
    "f.truncate(0); print('process 7 on host x', file=f, flush=True);"
    "print('locked', flush=True); time.sleep(60)"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", code, run / "lock"], stdout=subprocess.PIPE
  )
  HOLDERS.append(process)
  process.stdout.readline()
  return FLAGS


HOLDERS: list[subprocess.Popen] = []

CASES = [
  # Paths.
  Case("workdir file", "file cannot be written", _path("workdir", "file", *FLAGS)),
  Case("workdir below file", "file/x cannot be", _path("workdir", "file/x", *FLAGS)),
  Case("workdir link", "link cannot be written", _path("workdir", "link", *FLAGS)),
  Case("workdir kernel", "/proc/x cannot be", lambda _: ["--workdir=/proc/x", *FLAGS]),
  Case("workdir [1]", "contain any of [ *", _path("workdir", "run[1]", *FLAGS)),
  Case("workdir a*", "contain any of [ *", _path("workdir", "a*", *FLAGS)),
  Case("workdir a?", "contain any of [ *", _path("workdir", "a?", *FLAGS)),
  Case("workdir a\\b", "contain any of [ *", _path("workdir", "a\\b", *FLAGS)),
  Case("eval file", "has no config.json", _path("workdir", "file", "--mode=eval")),
  Case("eval link", "has no config.json", _path("workdir", "link", "--mode=eval")),
  Case("out file", "--out=", _path("out", "file", *FLAGS)),
  Case("out below file", "file/x cannot be written", _path("out", "file/x", *FLAGS)),
  Case("out link", "link cannot be written", _path("out", "link", "--mode=eval")),
  Case("out kernel", "--out=/proc/x cannot", lambda _: ["--out=/proc/x", *FLAGS]),
  # Files of a run.
  Case("config short", "config.json cannot be read", _write("config.json", b'{"a": ', "--mode=eval")),
  Case("config empty", "config.json cannot be read", _write("config.json", b"", "--mode=eval")),
  Case("config bytes", "config.json cannot be read", _write("config.json", b"\xff\xfe\x00", "--mode=eval")),
  Case("config zeros", "config.json cannot be read", _write("config.json", bytes(9), *FLAGS)),
  Case("config list", "config.json must contain a JSON object, got list", _write("config.json", b"[1]", "--mode=eval")),
  Case("config null", "config.json must contain a JSON object, got None", _write("config.json", b"null", *FLAGS)),
  Case("config text", "num_steps must be int, got '4'", _edit(num_steps="4")),
  Case("config names file", "config.json is damaged", _edit(dropout=None)),
  Case("config unknown", "unknown options ['colour']", _edit(colour=1)),
  Case("config value", "config.json is damaged or of another version: model must be", _edit(model="lstm")),
  Case("config other model", "no checkpoint in", _edit(model="perceiver")),
  # Flags.
  Case("seed 2^32", "seed must be below 4294967296", lambda _: [f"--seed={2**32}"]),
  Case("seed 2^64", "seed must be below 4294967296", lambda _: [f"--seed={2**64}"]),
  Case("seed 10^30", "seed must be below", lambda _: [f"--eval_seed={10**30}", "--mode=eval"]),
  Case("seed negative", "seed must be at least 0", lambda _: ["--seed=-1"]),
  # Two processes.
  Case("in use", "is in use by process 7 on host x", _locked_by_other),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_program_reports_one_line(case, run, caplog, capfd):
  arguments = case.act(run)
  try:
    assert _run(run, *arguments) == case.code
  finally:
    while HOLDERS:
      HOLDERS.pop().kill()
  *warnings, last = _lines(caplog)
  assert case.message in last and "\n" not in last
  assert not warnings or case.name == "config other model"
  assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
  "data, lines, steps",
  [
    (b'{"step": 9', 0, [1, 2, 3, 4]),  # a kill in the middle of a line
    (b"nonsense\n", 1, [1, 2, 3, 4]),
    (b'{"loss": 1}\n', 1, [1, 2, 3, 4]),
    (b'{"step": 3, "seconds": "x"}\n[1]\n\xff\n', 1, [1, 2, 3, 4]),
  ],
)
def test_metrics_damaged_line_keeps_the_others(data, lines, steps, run, caplog):
  path = run / metrics.METRICS_FILE
  first, *others = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(first + b"".join(others) + data if lines == 0 else first + data + b"".join(others))  # fmt: skip
  assert [record["step"] for record in metrics.read_metrics(run)] == steps
  assert len(_lines(caplog)) == lines
  assert all("metrics.jsonl: left out" in line for line in _lines(caplog))


@pytest.mark.parametrize(
  "name, data, message",
  [
    ("eval.json", b'{"step": ', "eval.json cannot be read"),
    ("eval.json", b"", "eval.json cannot be read"),
    ("eval.json", b"[]", "must contain a JSON object"),
    ("eval.json", b'{"step": 4}', "has no config"),
    ("scaling.json", b"\xff\xfe", "scaling.json cannot be read"),
    ("config.json", b"{", "config.json cannot be read"),
  ],
)
def test_export_damaged_file_reports_one_line(name, data, message, run, caplog):
  (run / name).write_bytes(data)
  root = run.parent / "root"
  assert launch.report(lambda: export.export(str(run), "x", str(root))) == 1
  (line,) = _lines(caplog)
  assert message in line and name in line
  assert not root.exists()


def test_export_older_checkpoint_than_the_results_is_refused(run, caplog):
  _damage(run, 4)
  root = epath.Path(run.parent / "root")
  assert launch.report(lambda: export.export(epath.Path(run), "x", root)) == 1
  assert "is step 2, the results are of step 4" in _lines(caplog)[-1]
  assert not root.exists()


def _damage(run, step):
  for path in (run / "checkpoints" / str(step)).rglob("manifest.ocdbt"):
    path.write_bytes(bytes(path.stat().st_size))


def test_options_without_effect_are_told_in_one_line(run, caplog):
  given = ["--num_paths=2", "--num_latents=0", "--beam_width=8", "--log_every=2"]
  assert _run(run, "--mode=eval", *given) == 0
  assert _lines(caplog) == [
    "--beam_width, --num_latents: no effect with --model=tca; --log_every: no effect"
    " with --mode=eval"
  ]


@pytest.mark.parametrize("config_class", [ImageConfig, ActivityConfig])
@pytest.mark.parametrize("name", ["data_dir", "manual_dir"])
def test_empty_name_of_a_folder_is_refused(config_class, name):
  with pytest.raises(ConfigError, match=f"{name} must be the path of a folder, got ''"):
    config_class(**{name: ""})


# Paths that are a file, below a file, a dangling link, a link to itself, or unwritable.
@pytest.mark.parametrize("name", ["file", "file/x", "link", "loop", "/proc/x"])
def test_data_dir_that_cannot_be_written_is_named(name, tmp_path, caplog):
  (tmp_path / "file").write_text("")
  (tmp_path / "link").symlink_to(tmp_path / "nothing")
  (tmp_path / "loop").symlink_to(tmp_path / "loop")
  folder = tmp_path / name
  config = ImageConfig(dataset="mnist", data_dir=str(folder))
  assert launch.report(lambda: ImageTask(config) and None) == 1
  (line,) = _lines(caplog)
  assert line.startswith(f"mnist_digits cannot be prepared in {folder}/mnist_digits/")


UNUSED = [
  # Options of other models.
  (CopyConfig, "train", dict(num_latents=4, model="tca"), "--num_latents: no effect with --model=tca"),
  (CopyConfig, "train", dict(order="kd", model="ca"), "--order: no effect with --model=ca"),
  (CopyConfig, "train", dict(branch_factor=4, num_latents=4, model="perceiver"), "--branch_factor: no effect with --num_latents=4"),
  (GPConfig, "train", dict(order="kd", model="perceiver"), "--order: no effect with --model=perceiver"),
  (TerrainConfig, "train", dict(num_frequencies=3, position_skip=True, model="relative_ca"), "--num_frequencies, --position_skip: no effect with --model=relative_ca"),
  (TerrainConfig, "train", dict(sees_location=True, model="ca"), "--sees_location: no effect with --model=ca"),
  (GPConfig, "train", dict(sees_location=True, model="relative_ca", num_layers=1), "--sees_location: no effect with --num_layers=1"),
  (GPConfig, "train", dict(fits_covariance=True, model="relative_ca", local_units=True), "--fits_covariance: no effect with --local_units=True"),
  (GPConfig, "train", dict(fits_covariance=True, model="relative_ca", kriged_nodes=0), "--fits_covariance: no effect with --kriged_nodes=0"),
  (TerrainConfig, "train", dict(map_side=9, model="ca"), "--map_side: no effect with --model=ca"),
  # Parts of the objective without weight.
  (CopyConfig, "train", dict(baseline_value=1.0), "--baseline_value: no effect with --baseline=batch"),
  (CopyConfig, "train", dict(baseline_value=1.0, baseline="constant"), ""),
  (CopyConfig, "train", dict(baseline="leaf", entropy_weight=1.0, reward="likelihood", lambda_rl=0.0), "--baseline, --entropy_weight, --reward: no effect with --lambda_rl=0.0"),
  (CopyConfig, "train", dict(teacher_temperature=0.5, routing_weight=0.0), "--teacher_temperature: no effect with --routing_weight=0.0"),
  *[(config, "train", dict(reward="accuracy"), "--reward: no effect with a regression")
    for config in (GPConfig, ImageConfig, TerrainConfig)],
  (ActivityConfig, "train", dict(reward="accuracy"), ""),
  # Data sets.
  (ImageConfig, "train", dict(manual_dir="x", dataset="mnist"), "--manual_dir: no effect with --dataset=mnist"),
  (ImageConfig, "train", dict(manual_dir="x", dataset="celeba", data_dir="y"), ""),
  (ActivityConfig, "train", dict(manual_dir="x", dataset="watch"), "--manual_dir: no effect with --dataset=watch"),
  (ActivityConfig, "train", dict(manual_dir="x", dataset="uci", split="time"), ""),
  (ActivityConfig, "eval", dict(eval_seed=3), "--eval_seed: no effect with segments, which are evaluated as they are"),
  # Modes.
  (GPConfig, "eval", dict(save_every=3, log_every=3), "--log_every, --save_every: no effect with --mode=eval"),
  (GPConfig, "paths", dict(num_paths=3, kernel="matern52"), "--num_paths: no effect with --mode=paths"),
  (TerrainConfig, "paths", dict(map_side=9, baselines=False, context_sizes="99", num_targets=9), "--baselines, --context_sizes, --map_side, --num_targets: no effect with --mode=paths"),
  (TerrainConfig, "eval", dict(map_side=9, baselines=False, context_sizes="99", num_targets=9), ""),
  (PointsConfig, "train", dict(table="t.csv", coords="x", target="y", at="grid:9"), "--at: no effect with --mode=train"),
]  # fmt: skip


@pytest.mark.parametrize("config_class, mode, options, expected", UNUSED)
def test_option_without_effect_is_described(config_class, mode, options, expected):
  config = config_class(**options)
  assert systems.unused_options(config, sorted(options), mode) == expected


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_needs_of_options_name_options_and_allowed_values(program):
  fields = {x.name: x for x in dataclasses.fields(program.config_class)}
  assert set(program.config_class.UNUSED) <= set(fields)
  for field in fields.values():
    for other, allowed in field.metadata["needs"].items():
      if other == "mode":
        assert set(allowed) <= {*flags.MODES, *program.actions}
      elif allowed == "above 0":
        assert fields[other].metadata["at_least"] == 0
      elif choices := config_lib.choices(fields[other]):
        assert set(allowed) <= set(choices)
      elif isinstance(fields[other].default, bool):
        assert set(allowed) < {False, True}
      else:
        limits = fields[other].metadata
        assert {type(x) for x in allowed} == {type(fields[other].default)}
        assert all(limits["at_least"] <= x < limits["below"] for x in allowed)


def test_lock_is_released_when_the_run_ends(run, caplog):
  assert (run / "lock").read_text().startswith(f"process {os.getpid()} on ")
  with workdir_lib.claimed(CopyConfig(**OPTIONS), epath.Path(run)):
    assert _run(run, *FLAGS) == 1
    assert f"is in use by process {os.getpid()} on" in _lines(caplog)[0]
  with workdir_lib.claimed(CopyConfig(**OPTIONS), epath.Path(run)):
    pass


def test_events_are_on_disk_when_write_returns(tmp_path):
  with metrics.MetricsWriter(tmp_path, 0) as writer:
    writer.write(1, {"loss": 0.5, "seconds": 1.0})
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes()
  with metrics.MetricsWriter(tmp_path, 1) as writer:
    writer.write(2, {"loss": 0.25, "seconds": 2.0})
  assert len(list((tmp_path / "tensorboard").iterdir())) == 2


# --- Slow: every file of a checkpoint, names of workdirs, full disks, other processes.


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["zeros", "half", "missing"])
def test_damaged_newest_checkpoint_restores_the_one_before_with_one_line(
  damage, run, caplog, capfd
):
  folder = run / "checkpoints" / "4"
  for path in [path for path in folder.rglob("*") if path.is_file()]:
    data = path.read_bytes()
    if damage == "missing":
      path.unlink()
    else:
      path.write_bytes(
        bytes(len(data)) if damage == "zeros" else data[: len(data) // 2]
      )
    caplog.clear()
    assert _run(run, "--mode=eval") == 0
    written = json.loads((run / "eval.json").read_text())["step"]
    if path.name == "checksums.json":
      assert written == 4 and not _lines(caplog)
    else:
      (line,) = _lines(caplog)
      assert written == 2 and f"{path} is " in line
    assert "Traceback" not in "".join(capfd.readouterr())
    path.write_bytes(data)


@pytest.mark.slow
def test_all_checkpoints_damaged_reports_each_and_trains_no_other(run, caplog, capfd):
  for step in (2, 4):
    _damage(run, step)
  for arguments in (FLAGS, ["--mode=eval"]):
    caplog.clear()
    assert _run(run, *arguments) == 1
    assert len(_lines(caplog)) == 3 and "no checkpoint in" in _lines(caplog)[-1]
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", ["a b", "it's", 'say "x"', "ünïcödé", "{x}", "~", "#1", "100%", "a,b", "-"]
)
def test_workdir_with_an_unusual_name_trains_and_restores(name, tmp_path, capsys):
  workdir = tmp_path / name
  assert _run(workdir, *FLAGS) == 0
  assert _run(workdir, "--mode=eval") == 0
  assert _run(workdir, *FLAGS) == 0
  assert "resuming at step 4" in capsys.readouterr().out


def _start(workdir, *arguments, **environment):
  return subprocess.Popen(
    [sys.executable, "-m", "experiments.copy_task", f"--workdir={workdir}", *arguments],
    cwd=ROOT,
    env=os.environ | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def _reported(output):
  """Lines of a program's output that are not progress."""
  return [line for line in output.splitlines() if not line.startswith("W")]


@pytest.mark.slow
def test_unknown_platform_reports_one_line(tmp_path):
  process = _start(tmp_path / "run", *FLAGS, JAX_PLATFORMS="abacus")
  output = process.communicate()[0]
  assert process.returncode == 1 and "Traceback" not in output
  assert "JAX_PLATFORMS=abacus must name platforms" in output.splitlines()[-1]
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_lock_of_a_killed_process_is_released(tmp_path):
  flags = [*FLAGS, "--num_steps=100000", "--save_every=50"]
  first = _start(tmp_path, *flags)
  while not (tmp_path / "checkpoints" / "50").exists() and first.poll() is None:
    time.sleep(0.1)
  second = _start(tmp_path, *flags)
  output = second.communicate()[0]
  assert second.returncode == 1 and "Traceback" not in output
  assert f"is in use by process {first.pid} on" in output.splitlines()[-1]
  assert first.poll() is None
  first.kill()
  first.communicate()
  third = _start(tmp_path, *flags)
  assert "resuming at step" in third.stdout.readline()
  third.kill()
  third.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("size", ["4k", "3m"])
def test_full_disk_reports_one_line_keeps_the_run_and_resumes(size, tmp_path):
  disk = tmp_path / "disk"
  disk.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
  if subprocess.run(mount, capture_output=True, check=False).returncode:
    pytest.skip("needs the right to mount a file system")
  try:
    if size == "4k":
      (disk / "other").write_bytes(bytes(4096))
    flags = [*FLAGS, "--save_every=1"]
    process = _start(disk / "run", *flags)
    output = process.communicate()[0]
    assert process.returncode == 1 and "Traceback" not in output
    (line,) = output.splitlines()
    assert "No space left on device" in line
    if size == "4k":
      return
    assert "newest checkpoint there is 1" in line
    assert [record["step"] for record in metrics.read_metrics(disk / "run")] == [1, 2]
    subprocess.run(["mount", "-o", "remount,size=30m", str(disk)], check=True)
    process = _start(disk / "run", *flags)
    output = process.communicate()[0]
    assert process.returncode == 0 and "resuming at step 1" in output
    steps = [record["step"] for record in metrics.read_metrics(disk / "run")]
    assert steps == [1, 2, 3, 4]
  finally:
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_training_from_a_script_needs_no_flags_and_takes_paths_as_text(tmp_path):
  code = f"""
from experiments import copy_task
from experiments.common import evaluate, train
task = copy_task.CopyTask(copy_task.CopyConfig(**{OPTIONS!r}))
train.train(task, {str(tmp_path / "run")!r})
content = evaluate.evaluate_workdir(task, {str(tmp_path / "run")!r})
print(content["eval.json"]["step"])
"""
  result = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert result.returncode == 0, result.stderr
  assert result.stdout.splitlines() == ["4"] and not result.stderr


# --- Batches do not depend on the default data types of JAX.


def _copy_batch(rng):
  return copy.sample(rng, 3, 32, mixed_lengths=True)


def _gp_batch(rng):
  return gp.sample(rng, 3, gp.SHAPES[1], "rbf", "batch")[0]


def _image_batch(rng):
  images_drawn = np.arange(3 * 16 * 16, dtype=np.uint8).reshape(3, 16, 16, 1)
  return images.sample(rng, images_drawn)


def _moved_batch(rng):
  return augmentation.random_rigid_motion(rng, _image_batch(rng))


def _window_batch(rng):
  points = np.random.default_rng(0).uniform(size=(200, 3)).astype(np.float32)
  train = windows.Points(
    coords=jnp.asarray(points[:, :2]), values=jnp.asarray(points[:, 2:])
  )
  shares = dict(whole_map=0.2, densest=0.2, full_context=0.5)
  return windows.sample(rng, train, None, 3, 16, num_targets=8, **shares)


def _segment_batch(rng):
  rows = np.cumsum(np.ones((9, human_activity.SEGMENT), np.int32), axis=1)
  values = np.stack([rows, rows], axis=-1).astype(np.float32)
  labels = rows * np.arange(9, dtype=np.int32)[:, None] % 7
  segments = human_activity.Segments(time=rows, values=values, labels=labels)
  return human_activity.sample(rng, segments, 4)


SAMPLERS = [
  _copy_batch,
  _image_batch,
  *(
    pytest.param(sample, marks=pytest.mark.slow)
    for sample in (_gp_batch, _moved_batch, _window_batch, _segment_batch)
  ),
]


@pytest.mark.parametrize("sample", SAMPLERS)
def test_batches_are_the_same_under_x64(sample):
  before = jax.config.read("jax_enable_x64")
  batches = []
  try:
    for x64 in (False, True):
      jax.config.update("jax_enable_x64", x64)
      batches.append(jax.device_get(sample(jax.random.key(5))))
  finally:
    jax.config.update("jax_enable_x64", before)
  for name in ("coords", "values", "mask", "query_coords", "targets", "query_mask"):
    a, b = (getattr(batch, name) for batch in batches)
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
