"""The contract of every task: batches, options, and a run from start to end."""

import copy
import dataclasses
import functools
import json

import chex
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from experiments import activity
from experiments import black_box
from experiments import copy_task
from experiments import gp_regression
from experiments import image_completion
from experiments import points
from experiments import surfaces
from experiments import terrain
from experiments.common import evaluate
from experiments.common import task as task_lib
from experiments.common import train
from experiments.common import workdir as workdir_lib
from experiments.common.errors import ConfigError
from experiments.data import elevation
from tests import untrained

TASKS = {
  "copy": copy_task.CopyTask,
  "gp": gp_regression.GPTask,
  "images": image_completion.ImageTask,
  "activity": activity.ActivityTask,
  "terrain": terrain.TerrainTask,
  "points": points.PointsTask,
  "surfaces": surfaces.SurfacesTask,
  "black_box": black_box.BlackBoxTask,
}
ONLY_RELATIVE = ("points", "surfaces", "black_box")
FIGURES = {
  "gp": "functions.png",
  "images": "completion.png",
  "activity": "activity.png",
  "terrain": "terrain.png",
}


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
  """A small config of each task, with shared prepared data."""
  data_dir = str(tmp_path_factory.mktemp("prepared"))
  table = tmp_path_factory.mktemp("table") / "stations.csv"
  rows = np.random.default_rng(0).uniform(0, 60, (90, 3))
  np.savetxt(table, rows, delimiter=",", header="lon,lat,temperature", comments="")
  small = dict(num_steps=2, batch_size=2, eval_batches=2, num_layers=0)
  return {
    "copy": copy_task.CopyConfig(**small, sequence_length=8),
    "gp": gp_regression.GPConfig(**small),
    "images": image_completion.ImageConfig(
      **small, dataset="photos", data_dir=data_dir
    ),
    "activity": activity.ActivityConfig(**small, data_dir=data_dir),
    "terrain": terrain.TerrainConfig(
      **small,
      dataset="airports",
      num_context=32,
      num_frequencies=2,
      context_sizes="64",
      num_targets=100,
      map_side=9,
    ),
    "points": points.PointsConfig(
      **small, table=str(table), coords="lon,lat", target="temperature"
    ),
    "surfaces": surfaces.SurfacesConfig(
      **small, maps="airports", synthetic=0.5, num_context=32
    ),
    "black_box": black_box.BlackBoxConfig(**small, num_context=32),
  }


@pytest.fixture(scope="module")
def task_of(configs):
  """Builds each task once; with changes, a copy with another config.

  The changes must only choose random keys, so that the compiled functions are the same.
  """
  built = functools.cache(lambda name: TASKS[name](configs[name]))

  def task_of(name, **changes):
    task = copy.copy(built(name))
    task.config = dataclasses.replace(configs[name], **changes)
    return task

  return task_of


def _train_batch(task, step):
  return task.train_batch(task_lib.batch_rng(task.config.seed, step), step)


@pytest.mark.parametrize(
  "name",
  [
    # The samplers of these compile for long.
    pytest.param(name, marks=pytest.mark.slow) if name in ("black_box", "surfaces")
    else name
    for name in TASKS
  ],
)  # fmt: skip
def test_train_batch_is_a_function_of_seed_and_step(name, configs, task_of):
  task = functools.partial(task_of, name)
  a = task(seed=3)
  b = TASKS[name](dataclasses.replace(configs[name], seed=3, eval_seed=8))
  for step in (0, 1):
    chex.assert_trees_all_equal(_train_batch(a, step), _train_batch(b, step))
  chex.assert_trees_all_equal(a.first_batch(), _train_batch(a, 0))
  drawn = [_train_batch(a, 0), _train_batch(a, 1), _train_batch(task(seed=4), 0)]
  drawn += task(seed=3, eval_seed=3).eval_batches()  # another stream of the same seed
  assert len({np.asarray(batch.values).tobytes() for batch in drawn}) == 5


@pytest.mark.parametrize("name", TASKS)
def test_eval_batches_are_a_function_of_the_evaluation_seed(name, configs, task_of):
  def batches(**changes):
    return list(task_of(name, **changes).eval_batches())

  other = TASKS[name](dataclasses.replace(configs[name], seed=5, num_steps=9))
  first, again = batches(), list(other.eval_batches())
  assert len(first) == 2
  chex.assert_trees_all_equal(first, again)
  if name != "activity":  # evaluates the whole of fixed segments: nothing is drawn
    other = batches(eval_seed=configs[name].seed)
    assert not np.array_equal(first[0].coords, other[0].coords) or not np.array_equal(
      first[0].values, other[0].values
    )


@pytest.mark.parametrize("name", TASKS)
def test_inputs_describe_the_batches(name, task_of):
  task = task_of(name)
  inputs = task.inputs
  assert json.loads(json.dumps(inputs, allow_nan=False)) == inputs
  coords, values = inputs["coords"], inputs["values"]
  assert {"axes", "range", "unit"} == set(coords)
  scale = set() if values["unit"] == "any" else {"mean", "std"}
  assert {"channels", "unit"} | scale <= set(values)
  lowest, highest = np.transpose(coords["range"])
  for batch in task.eval_batches():
    assert batch.values.shape[-1] == values["channels"]
    for x in (batch.coords[batch.mask], batch.query_coords[batch.query_mask]):
      assert x.shape[-1] == len(coords["axes"]) == len(lowest)
      assert np.all(x >= lowest - 1e-3) and np.all(x <= highest + 1e-3)
    if "classes" in inputs:
      assert batch.targets.max() < len(inputs["classes"])


def test_inputs_of_images_convert_pixels_to_values(task_of):
  task = task_of("images")
  values = task.inputs["values"]
  batch = next(iter(task.eval_batches()))
  pixels = 255 * (values["mean"] + values["std"] * np.asarray(batch.values))
  np.testing.assert_allclose(pixels, pixels.round(), atol=1e-3)
  assert pixels.min() >= -1e-3 and pixels.max() <= 255.001


def test_inputs_of_terrain_name_the_unit_of_every_map():
  assert list(terrain._COORD_UNITS) == list(elevation.DATASETS)


def test_inputs_of_terrain_convert_metres_to_values(task_of):
  task = task_of("terrain")
  values = task.inputs["values"]
  train = task.map.train.take_first(20)
  elevation = values["mean"] + values["std"] * np.asarray(train.values)[:, 0]
  elevation = values["asinh_scale"] * np.sinh(elevation)
  np.testing.assert_allclose(elevation, task.map.to_units(train.values), rtol=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_batches_have_consistent_shapes_dtypes_and_masks(name, task_of):
  task = task_of(name)
  for batch in (_train_batch(task, 0), next(iter(task.eval_batches()))):
    size, num_tokens, num_axes = batch.coords.shape
    assert size == 2 and num_tokens <= task.max_context
    assert batch.values.shape[:2] == batch.mask.shape == (size, num_tokens)
    assert batch.query_coords.shape == (*batch.query_mask.shape, num_axes)
    assert batch.targets.shape[:2] == batch.query_mask.shape
    assert batch.mask.dtype == batch.query_mask.dtype == jnp.bool_
    floats = (batch.coords, batch.values, batch.query_coords)
    assert all(x.dtype == jnp.float32 for x in floats)
    expected = jnp.int32 if task.metric == "accuracy" else jnp.float32
    assert batch.targets.dtype == expected
    assert np.all(np.any(batch.mask, axis=1)) and np.all(np.any(batch.query_mask, 1))
    cleaned = batch.cleaned()
    where = np.asarray(batch.query_mask)
    assert not np.any(np.asarray(cleaned.query_coords)[~where])
    assert not np.any(np.asarray(cleaned.targets)[~where])
    np.testing.assert_array_equal(
      np.asarray(cleaned.targets)[where], np.asarray(batch.targets)[where]
    )


@pytest.mark.slow  # the fast test_train runs the copy task
@pytest.mark.parametrize("name", FIGURES)
def test_run_trains_evaluates_and_restores(name, configs, tmp_path):
  config = configs[name]
  if name == "terrain":  # test_task_terrain evaluates it with a tree
    config = dataclasses.replace(config, model="ca")
  task = TASKS[name](config)
  workdir = epath.Path(tmp_path / "run")
  train.train(task, workdir)
  stored = workdir_lib.load(type(task.config), workdir)
  assert stored == config
  contents = evaluate.evaluate_workdir(TASKS[name](stored), workdir)
  result = contents["eval.json"]
  assert result["step"] == 2 and result["num_examples"] == 4
  assert np.isfinite(result["log_likelihood"])
  assert ("full_log_likelihood" in result) == task.system.has_tree
  assert result["tokens_fraction_largest"] == task.largest_read / task.max_context
  for file, content in contents.items():
    assert json.loads((workdir / file).read_text()) == json.loads(json.dumps(content))
    assert content["config"] == dataclasses.asdict(config)
    assert {"command", "commit", "device", "cores", "versions"} <= set(content)
  if task.metric == "accuracy":
    assert 0 <= result["accuracy"] <= 1 and 0 <= result["calibration_error"] <= 1
  else:
    covered = [result[f"coverage_{level}"] for level in evaluate.INTERVALS]
    assert covered == sorted(covered) and 0 <= covered[0] <= covered[-1] <= 1
  if task.system.has_tree:
    assert Image.open(workdir / FIGURES[name]).size[0] > 500


@pytest.mark.parametrize("name", [x for x in TASKS if x not in ONLY_RELATIVE])
def test_figures_need_a_tree(name, configs):
  for model, files in (("ca", {"eval.json", "scaling.json"}), ("tca", set())):
    task = TASKS[name](dataclasses.replace(configs[name], model=model))
    written = {x.file for x in task.evaluators if x.applies(task)}
    if model == "ca":
      assert written <= files
    else:
      figures = {FIGURES[name]} if name in FIGURES else set()
      assert {"eval.json", "paths.json"} | figures <= written


@pytest.mark.parametrize("name", ["images", "activity"])
def test_eval_batches_of_a_data_set_contain_every_example_once(name, configs):
  config = dataclasses.replace(configs[name], eval_batches=0, batch_size=64)
  task = TASKS[name](config)
  batches = [jax.device_get(batch) for batch in task.eval_batches()]
  assert {batch.values.shape[0] for batch in batches} == {64}, "one shape"
  counted = sum(int(np.sum(np.any(batch.query_mask, axis=1))) for batch in batches)
  expected = task.test_images if name == "images" else task.evaluated.labels
  assert counted == len(expected)


@pytest.mark.parametrize("name, examples", [("images", "images"), ("activity", "segm")])
def test_batch_size_above_the_data_set_raises(name, examples, configs):
  with pytest.raises(ConfigError, match=rf"at most the [\d,]+ {examples}.* got 99,999"):
    TASKS[name](dataclasses.replace(configs[name], batch_size=99_999))


@pytest.mark.parametrize(
  "name, change, message",
  [
    ("copy", dict(sequence_length=7), "must be even, got 7"),
    ("copy", dict(sequence_length=2), "sequence_length must be at least 4, got 2"),
    ("copy", dict(eval_batches=0), "eval_batches must be at least 1"),
    ("copy", dict(order="random_projection"), r"order must be one of .*'given'"),
    ("gp", dict(kernel="cosine"), r"kernel must be one of .*got 'cosine'"),
    ("gp", dict(sizes="all"), r"sizes must be one of .*got 'all'"),
    ("gp", dict(eval_batches=0), "eval_batches must be at least 1, got 0"),
    ("images", dict(unseen=True), r"unseen needs .*\['mnist', 'emnist'\], got 'photos"),
    ("images", dict(dataset="cifar"), "dataset must be one of .*'celeba'"),
    ("images", dict(moved_share=1.0), "moved_share must be below 1"),
    ("images", dict(joined_share=1.5), "joined_share must be below 1, got 1.5"),
    (
      "images",
      dict(joined_share=0.5, batch_size=1),
      "joined_share needs a batch_size of at least 2, .* got batch_size=1",
    ),
    ("activity", dict(split="random"), r"one of \('person',\) for .*'watch', got 'ra"),
    (
      "activity",
      dict(dataset="uci_excerpt"),
      r"one of \('random', 'time'\) for .*'uci_excerpt', g",
    ),
    ("activity", dict(split="fold"), r"split must be one of \('random', 'person', 'ti"),
    ("activity", dict(dataset="mnist"), "dataset must be one of"),
    ("activity", dict(eval_split="train"), r"eval_split must be one of \('validation'"),
    (
      "terrain",
      dict(dataset="mars"),
      r"dataset must be one of \('fault', 'airports', 'retina'\)",
    ),
    ("terrain", dict(num_context=15), "num_context must be at least 16, got 15"),
    ("terrain", dict(whole_map=1.0), "whole_map must be below 1.*, got 1.0"),
    ("terrain", dict(num_layers=2), "num_layers must be 0, .*; got 2"),
    ("terrain", dict(order="given"), "order must not be 'given'"),
    ("terrain", dict(context_sizes="99,15"), "integers of at least 16.*got '99,15'"),
    (
      "terrain",
      dict(context_sizes="1e3"),
      "context_sizes must be integers .*got '1e3'",
    ),
    ("terrain", dict(context_sizes=""), "context_sizes must be integers of .*got ''"),
    (
      "terrain",
      dict(periods="1"),
      "periods must be two numbers of at least 0.*got '1'",
    ),
    ("terrain", dict(periods="-1,0"), "periods must be two numbers .*got '-1,0'"),
    ("terrain", dict(periods="east,0"), "periods must be two numbers .*got 'east,0'"),
  ],
)
def test_config_bad_option_of_a_task_raises(name, change, message, configs):
  with pytest.raises(ConfigError, match=message):
    dataclasses.replace(configs[name], **change)


def test_copy_mixed_lengths_only_in_the_first_steps():
  config = copy_task.CopyConfig(batch_size=2, eval_batches=3, mixed_length_steps=3)
  task = copy_task.CopyTask(config)
  assert all(batch.mask.all() for batch in task.eval_batches())
  assert not all(_train_batch(task, step).mask.all() for step in range(3))
  assert all(_train_batch(task, step).mask.all() for step in range(3, 9))


def test_gp_evaluation_has_one_size_a_batch_and_a_ceiling(task_of):
  for batch in task_of("gp", eval_batches=5, kernel="matern52").eval_batches():
    sizes = np.asarray([batch.mask.sum(1), batch.query_mask.sum(1)])
    assert np.all(sizes == sizes[:, :1])
    assert np.all(np.isfinite(batch.ceiling))


def test_images_are_moved_only_in_the_first_steps(task_of):
  task = task_of("images", num_steps=4)
  still = task_of("images", num_steps=4, moved_share=0.0)
  for step in range(4):
    found, expected = _train_batch(task, step), _train_batch(still, step)
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.targets, expected.targets)
    assert np.array_equal(found.coords, expected.coords) == (step >= 2)


def test_images_are_joined_without_a_change_of_the_other_draws(configs):
  config = dataclasses.replace(configs["images"], batch_size=8)
  whole, joined = (
    _train_batch(TASKS["images"](dataclasses.replace(config, joined_share=share)), 0)
    for share in (0.0, 0.9)
  )
  for name in ("coords", "mask", "query_coords", "query_mask"):
    np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))
  assert not np.array_equal(joined.values, whole.values)


@pytest.mark.parametrize(
  "dataset, shape, min_std",
  [
    ("mnist", (28, 28, 1), 0.05),
    ("emnist", (28, 28, 1), 0.05),
    ("celeba", (32, 32, 3), None),
    ("photos", (32, 32, 3), 0.05),
  ],
)
def test_images_std_is_bounded_as_published(dataset, shape, min_std, monkeypatch):
  data = np.zeros((9, *shape), np.uint8)
  monkeypatch.setattr(image_completion.image_sets, "load", lambda *_: data)
  config = image_completion.ImageConfig(dataset=dataset, batch_size=8)
  task = image_completion.ImageTask(config)
  head = task.model.head
  assert (head.num_outputs, head.min_std) == (shape[-1], min_std)
  assert jax.eval_shape(task.first_batch).targets.shape == (8, 196, shape[-1])


def test_inspect_lists_each_token_once(configs, task_of):
  task = task_of("images")
  params = untrained.params(task)
  batch = task.first_batch()
  inspection = task.inspect(
    params, batch.coords, batch.values, batch.query_coords, batch.mask
  )
  for context in range(2):
    nodes = inspection.nodes_read(context, 5)
    levels = [level for level, _ in nodes]
    assert max(levels) == inspection.depth and min(levels) >= 1
    tokens = np.concatenate([tokens for _, tokens in nodes])
    valid = np.flatnonzero(batch.mask[context])
    assert sorted(tokens.tolist()) == valid.tolist()
  ca = image_completion.ImageTask(dataclasses.replace(configs["images"], model="ca"))
  params = untrained.params(ca)
  flat = ca.inspect(params, batch.coords, batch.values, batch.query_coords)
  with pytest.raises(ValueError, match="only a model with a tree"):
    flat.nodes_read(0, 0)
