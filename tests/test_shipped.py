"""The shipped checkpoints: small, complete, and as good as their recorded results."""

import dataclasses
import json
import pathlib

from etils import epath
import jax
import numpy as np
import pytest

from experiments import activity
from experiments import black_box
from experiments import copy_task
from experiments import gp_regression
from experiments import image_completion
from experiments import surfaces
from experiments import terrain
from experiments.common import evaluate
from experiments.common import workdir as workdir_lib
import tca_jax

ROOT = pathlib.Path(__file__).parent.parent
SHIPPED = sorted(path.name for path in (ROOT / "checkpoints").iterdir())
# The data of the excerpt is not shipped; test_task_activity restores its models.
EVALUATED = [name for name in SHIPPED if not name.startswith("activity_excerpt")]
# Some families are evaluated in the fast suite, all in the slow one.
FAST = {"copy_t256_tca", "activity_watch_tca"}
# Models with the modules of another one: only the slow suite predicts with them, too.
REPEATED = (
  "activity_excerpt_",
  "copy_t256_",
  "copy_t512_",
  "gp_ca",
  "gp_perceiver",
  "image_",
  "terrain_airports_",
  "terrain_ca",
  "terrain_perceiver",
  "terrain_retina_",
  "terrain_tca",
)

# For each family: config, task, options that select a part of the evaluation, and the
# largest difference of the metric from the recorded result. The whole evaluation differs
# by rounding only, as the tests use a compiler without optimisations. A part differs more,
# in particular for functions and elevation, where single batches vary much.
FAMILIES = {
  "copy": (copy_task.CopyConfig, copy_task.CopyTask, dict(eval_batches=1), 0.01),
  "gp": (gp_regression.GPConfig, gp_regression.GPTask, dict(eval_batches=60), 0.15),
  "image": (image_completion.ImageConfig, image_completion.ImageTask, {}, 0.01),
  "activity": (activity.ActivityConfig, activity.ActivityTask, {}, 0.005),
  "black": (
    black_box.BlackBoxConfig,
    black_box.BlackBoxTask,
    dict(eval_batches=15),
    1.0,
  ),
  "surfaces": (
    surfaces.SurfacesConfig,
    surfaces.SurfacesTask,
    dict(eval_batches=15),
    1.0,  # few examples of these have jumps that no model expects
  ),
  "terrain": (
    terrain.TerrainConfig,
    terrain.TerrainTask,
    dict(eval_batches=30),
    0.1,
  ),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_checkpoint_is_small_and_records_its_run(name):
  files = [p for p in (ROOT / "checkpoints" / name).rglob("*") if p.is_file()]
  assert sum(path.stat().st_size for path in files) < 2 * 2**20
  assert not [path for path in files if "optimizer" in path.parts]
  result = json.loads((ROOT / "results" / f"{name}.json").read_text())
  assert result["step"] == result["config"]["num_steps"]
  assert result["commit"] and result["command"] and result["train_seconds"] > 0


@pytest.mark.parametrize("name", SHIPPED)
def test_checkpoint_loads_without_the_experiments(name):
  model, params, info = tca_jax.load(ROOT / "checkpoints" / name)
  result = json.loads((ROOT / "results" / f"{name}.json").read_text())
  assert type(model) is tca_jax.ReTreever
  assert info["step"] == result["step"]
  assert sum(x.size for x in jax.tree.leaves(params)) == result["num_parameters"]


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=pytest.mark.slow) if name.startswith(REPEATED) else name
    for name in SHIPPED
  ],
)
def test_checkpoint_predicts_without_the_experiments(name):
  model, params, info = tca_jax.load(ROOT / "checkpoints" / name)
  rng = np.random.default_rng(0)
  lowest, highest = np.transpose(info["coords"]["range"])
  coords = rng.uniform(lowest, highest, (1, 12, len(lowest))).astype(np.float32)
  values = rng.normal(size=(1, 9, info["values"]["channels"])).astype(np.float32)
  prediction = jax.jit(model.apply)(params, coords[:, :9], values, coords[:, 9:])
  output = prediction.output
  if "classes" in info:
    assert output.shape == (1, 3, len(info["classes"]))
  else:
    assert output.mean.shape == (1, 3, info["values"]["channels"])
    assert np.all(np.isfinite(output.std) & (output.std > 0))
    output = output.mean
  assert np.all(np.isfinite(output))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  """Prepared data sets, shared by the tests of this file."""
  return str(tmp_path_factory.mktemp("prepared"))


@pytest.mark.parametrize(
  "name",
  [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
    for name in EVALUATED
  ],
)
def test_checkpoint_evaluates_to_its_recorded_result(name, data_dir):
  config_class, task_class, options, tolerance = FAMILIES[name.split("_")[0]]
  workdir = epath.Path(ROOT / "checkpoints" / name)
  config = workdir_lib.load(config_class, workdir)
  if hasattr(config, "data_dir"):
    options = options | dict(data_dir=data_dir)
  task = task_class(dataclasses.replace(config, **options))
  restored = evaluate.restore(task, workdir)
  result = evaluate.evaluate(task, restored.params)
  expected = json.loads((ROOT / "results" / f"{name}.json").read_text())
  assert restored.step == expected["step"]
  if "eval_batches" in options:
    assert result["num_examples"] == options["eval_batches"] * config.batch_size
  else:
    assert result["num_examples"] == expected["num_examples"]
  assert result[task.metric] == pytest.approx(expected[task.metric], abs=tolerance)
