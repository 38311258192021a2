"""End to end: train, kill, resume, evaluate; on one device and on eight."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import chex
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import copy_task
from experiments.common import checkpoints
from experiments.common import evaluate
from experiments.common import metrics
from experiments.common import provenance
from experiments.common import train
from experiments.common.errors import NonFiniteLossError
from experiments.common.errors import PreemptedError
import tca_jax

ROOT = pathlib.Path(__file__).parent.parent
STEPS = 60  # long enough to be killed on the way
CONFIG = copy_task.CopyConfig(
  sequence_length=8,
  batch_size=8,
  num_steps=STEPS,
  warmup_steps=2,
  save_every=10,
  log_every=5,
  eval_batches=2,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A run without interruption, and its evaluation."""
  workdir = epath.Path(tmp_path_factory.mktemp("finished") / "run")
  task = copy_task.CopyTask(CONFIG)
  train.train(task, workdir)
  return workdir, evaluate.evaluate_workdir(task, workdir)[evaluate.EVAL_FILE]


def _start(workdir, *flags, devices=1, mode="train"):
  """Starts the binary in its own process."""
  options = [f"--{name}={value}" for name, value in dataclasses.asdict(CONFIG).items()]
  xla_flags = os.environ["XLA_FLAGS"]
  xla_flags += f" --xla_force_host_platform_device_count={devices}"
  command = [sys.executable, "-m", "experiments.copy_task", f"--workdir={workdir}"]
  return subprocess.Popen(
    [*command, f"--mode={mode}", *(options if mode == "train" else []), *flags],
    cwd=ROOT,
    env=os.environ | {"XLA_FLAGS": xla_flags},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def _finish(process, code=0):
  output, _ = process.communicate(timeout=300)
  assert process.returncode == code, output
  return output


def _state(workdir):
  task = copy_task.CopyTask(CONFIG)
  like = train.init_state(task, train.build_optimizer(CONFIG))
  with checkpoints.Checkpoints(workdir, read_only=True) as kept:
    return kept.restore(**like)


def _logged(workdir):
  """The metrics without the wall time."""
  return [
    {name: value for name, value in record.items() if name != "seconds"}
    for record in metrics.read_metrics(workdir)
  ]


def _assert_same_run(workdir, finished):
  step, state = _state(workdir)
  assert step == STEPS
  chex.assert_trees_all_equal(state, _state(finished)[1])
  assert _logged(workdir) == _logged(finished)


def test_train_writes_metrics_checkpoints_and_results(finished):
  workdir, result = finished
  assert [record["step"] for record in _logged(workdir)] == [*range(5, 61, 5)]
  assert list((workdir / "tensorboard").iterdir())
  written = json.loads((workdir / "eval.json").read_text())
  assert written == json.loads(json.dumps(result))
  assert written["step"] == STEPS and 0 <= written["accuracy"] <= 1
  assert written["tokens_fraction"] == written["tokens_fraction_largest"] == 3 / 4
  assert written["config"] == dataclasses.asdict(CONFIG)
  assert 0 <= written["calibration_error"] <= 1
  assert written["num_examples"] == 16 and written["num_parameters"] > 100_000
  commit = written["commit"]
  assert commit is None or len(commit.removesuffix("-dirty")) == 40
  assert set(written["versions"]) == {"python", "jax", "flax", "tca_jax"}
  (session,) = written["trained"]
  assert session["first_step"] == 0 and session["device"] == written["device"]


def test_train_logs_the_walk_of_every_level(finished):
  record = _logged(finished[0])[-1]
  names = {"loss_tca", "loss_ca", "loss_rl", "loss_routing", "entropy", "baseline"}
  names |= {"reward", "loss", "grad_norm", "param_norm", "best_leaf_read"}
  names |= {f"policy_entropy/level_{level}" for level in (1, 2)}
  names |= {f"agreement/level_{level}" for level in (1, 2)}
  names |= {f"grad_norm/{part}" for part in ("aggregator", "embedder", "head")}
  assert names | {"grad_norm/read_out", "step"} == set(record)


def test_train_finished_run_is_evaluated_again(finished):
  workdir, result = finished
  before = (workdir / "metrics.jsonl").read_text()
  task = copy_task.CopyTask(dataclasses.replace(CONFIG, log_every=7))
  train.train(task, workdir)
  again = evaluate.evaluate_workdir(task, workdir)[evaluate.EVAL_FILE]
  assert again["accuracy"] == result["accuracy"]
  assert again["log_likelihood"] == pytest.approx(result["log_likelihood"], rel=1e-6)
  assert (workdir / "metrics.jsonl").read_text() == before


@pytest.mark.slow
def test_beam_widths_read_more_until_all_is_read(finished, tmp_path, capsys):
  workdir, result = finished
  task = copy_task.CopyTask(CONFIG)
  contents = evaluate.evaluate_workdir(task, workdir, tmp_path, mode="paths")
  written = json.loads((tmp_path / "paths.json").read_text())
  assert written == json.loads(json.dumps(contents["paths.json"]))
  rows = written["rows"]
  assert [row["num_paths"] for row in rows] == [1, 2, 4, 8, "all"]
  assert [row["tokens_fraction"] for row in rows] == [3 / 4, 1, 1, 1, 1]
  assert rows[0]["accuracy"] == pytest.approx(result["accuracy"])
  for row in rows[2:]:  # four leaves
    assert row["accuracy"] == pytest.approx(result["full_accuracy"])
  assert all(row["us_per_query"] > 0 for row in rows)
  assert written["command"] and "beam widths" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_train_killed_run_resumes_bit_for_bit(sent, tmp_path, finished):
  workdir = epath.Path(tmp_path / "run")
  process = _start(workdir)
  for _ in range(3000):
    if len(metrics.read_metrics(workdir)) >= 2 or process.poll() is not None:
      break
    time.sleep(0.05)
  process.send_signal(sent)
  output, _ = process.communicate(timeout=300)
  if process.returncode == 0:
    pytest.fail(f"the run ended before it could be killed: {output}")
  assert process.returncode == (
    PreemptedError.exit_code if sent == signal.SIGTERM else -sent
  )
  if sent == signal.SIGTERM:
    (step,) = re.findall(r"SIGTERM: saved step (\d+)", output)
    assert (workdir / "checkpoints" / step).exists()
  train.train(copy_task.CopyTask(CONFIG), workdir)
  _assert_same_run(workdir, finished[0])


@pytest.mark.slow
def test_train_killed_in_the_last_step_exits_before_evaluation(tmp_path, finished):
  class Killed(copy_task.CopyTask):
    def train_batch(self, rng, step):
      if step == CONFIG.num_steps - 1:
        os.kill(os.getpid(), signal.SIGTERM)
      return super().train_batch(rng, step)

  workdir = epath.Path(tmp_path / "run")
  with pytest.raises(PreemptedError, match=rf"SIGTERM: saved step {STEPS} in"):
    train.train(Killed(CONFIG), workdir)
  assert (workdir / "checkpoints" / str(CONFIG.num_steps)).exists()
  assert _logged(workdir) == _logged(finished[0])
  train.train(copy_task.CopyTask(CONFIG), workdir)


class _CrashError(RuntimeError):
  pass


def test_train_crash_and_truncated_checkpoint_resume_bit_for_bit(
  tmp_path, finished, caplog
):
  class Crashing(copy_task.CopyTask):
    def train_batch(self, rng, step):
      if step == 47:
        raise _CrashError
      return super().train_batch(rng, step)

  workdir = epath.Path(tmp_path / "run")
  with pytest.raises(_CrashError):
    train.train(Crashing(CONFIG), workdir)
  assert [record["step"] for record in _logged(workdir)][-1] == 45
  for path in pathlib.Path(workdir / "checkpoints" / "40").rglob("*"):
    if path.is_file() and path.parent.name == "d":
      path.write_bytes(path.read_bytes()[:100])
  train.train(copy_task.CopyTask(CONFIG), workdir)
  assert "checkpoint 40" in caplog.text
  _assert_same_run(workdir, finished[0])
  sessions = provenance.training_sessions(workdir)
  assert [session["first_step"] for session in sessions] == [0, 30]


def test_weight_decay_shrinks_weights_and_not_biases():
  params = {"kernel": jnp.full((2, 3), 4.0), "bias": jnp.full(3, 4.0)}
  gradient = {"kernel": jnp.full((2, 3), 0.1), "bias": jnp.full(3, 0.1)}

  def update(weight_decay: float) -> dict[str, jax.Array]:
    config = dataclasses.replace(CONFIG, weight_decay=weight_decay)
    optimizer = train.build_optimizer(config)
    state = optimizer.init(params)
    # The learning rate of the first step is 0, as warm-up starts there.
    _, state = optimizer.update(gradient, state, params)
    return optimizer.update(gradient, state, params)[0]

  learning_rate = CONFIG.learning_rate / min(CONFIG.warmup_steps, STEPS // 2)
  adam, decayed = update(0.0), update(0.25)
  np.testing.assert_allclose(adam["kernel"], -learning_rate, rtol=1e-4)
  np.testing.assert_allclose(
    decayed["kernel"], adam["kernel"] - learning_rate * 0.25 * 4, rtol=1e-5
  )
  np.testing.assert_array_equal(decayed["bias"], adam["bias"])


def test_train_nonfinite_loss_raises_and_keeps_finite_checkpoints(tmp_path):
  workdir = epath.Path(tmp_path / "run")
  config = dataclasses.replace(CONFIG, learning_rate=1e37, clip_norm=0.0, save_every=1)
  with pytest.raises(NonFiniteLossError, match=r"not finite at step \d+: .*last good"):
    train.train(copy_task.CopyTask(config), workdir)
  with checkpoints.Checkpoints(workdir, read_only=True) as kept:
    assert kept.steps and kept.steps[-1] < STEPS
  assert all(np.isfinite(record["loss"]) for record in _logged(workdir))


@pytest.mark.slow  # a run on eight devices is evaluated there in the fast suite
@pytest.mark.parametrize("mode", ["eval", "paths"])
def test_evaluate_on_eight_devices_agrees_with_one(mode, tmp_path, finished):
  workdir, result = finished
  copied = epath.Path(tmp_path / "copied")
  task = copy_task.CopyTask(CONFIG)
  restored = evaluate.restore(task, workdir)
  tca_jax.save(copied, task.model, restored.params, step=restored.step)
  (workdir / "config.json").copy(copied / "config.json")
  _finish(_start(copied, mode=mode, devices=8))
  written = json.loads((copied / f"{mode}.json").read_text())
  assert written["device"].startswith("8 x")
  found = written["rows"][0] if mode == "paths" else written
  assert found["accuracy"] == pytest.approx(result["accuracy"], rel=1e-5)
  if mode == "eval":
    assert found["log_likelihood"] == pytest.approx(result["log_likelihood"], rel=1e-4)


@pytest.mark.slow  # the fast test_processes has two devices
def test_train_on_eight_devices_agrees_with_one(tmp_path, finished):
  workdir, _ = finished
  trained = epath.Path(tmp_path / "trained")
  _finish(_start(trained, devices=8))
  assert _state(trained)[0] == STEPS
  # Sums over devices are rounded in another order, and sampled walks then diverge:
  # only the first steps can agree closely.
  first, expected = _logged(trained)[0], _logged(workdir)[0]
  assert first == pytest.approx(expected, rel=1e-2)
  task = copy_task.CopyTask(CONFIG)
  again = evaluate.evaluate(task, evaluate.restore(task, trained).params)
  eight = json.loads((trained / "eval.json").read_text())
  assert eight["device"].startswith("8 x")
  assert again["log_likelihood"] == pytest.approx(eight["log_likelihood"], rel=1e-4)


@pytest.mark.slow  # test_ablation trains them in the fast suite, without these options
@pytest.mark.parametrize("model", ["ca", "perceiver"])
def test_train_other_models_train_and_evaluate(model, tmp_path):
  config = dataclasses.replace(
    CONFIG, model=model, num_steps=4, num_layers=1, dropout=0.1
  )
  task = copy_task.CopyTask(config)
  workdir = epath.Path(tmp_path / "run")
  train.train(task, workdir)
  result = evaluate.evaluate_workdir(task, workdir)[evaluate.EVAL_FILE]
  assert result["tokens_fraction"] == (1 if model == "ca" else 3 / 4)
  assert "full_accuracy" not in result
