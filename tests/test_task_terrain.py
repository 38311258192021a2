"""The map task: its batches, and the evaluators on the whole map."""

import dataclasses
import json

import chex
from etils import epath
import jax
import numpy as np
import pytest
from scipy import interpolate
from scipy import stats

from experiments import terrain
from experiments import terrain_baselines
from experiments import terrain_scaling
from experiments.common import evaluate
from experiments.common import task as task_lib
from experiments.common.errors import ConfigError
import tca_jax
from tests import untrained

TINY = terrain.TerrainConfig(
  dataset="airports",
  num_context=32,
  num_frequencies=2,
  num_steps=1,
  batch_size=2,
  eval_batches=1,
  context_sizes="256,64",
  num_targets=500,
  map_side=9,
)


@pytest.fixture(scope="module")
def tiny():
  return terrain.TerrainTask(TINY)


@pytest.fixture(scope="module")
def params(tiny):
  return untrained.params(tiny)


def _locations(coords):
  """The set of points."""
  return {location.tobytes() for location in np.asarray(coords).reshape(-1, 2)}


def _train_batch(task, step):
  return task.train_batch(task_lib.batch_rng(task.config.seed, step), step)


def test_train_batch_share_of_whole_maps_increases(tiny):
  def narrow(task, first):
    """Of 160 windows, True for those that span less than a quarter of the map."""
    found = []
    for step in range(first, first + 20):
      batch = _train_batch(task, step)
      locations = np.concatenate([batch.coords, batch.query_coords], axis=1)
      found.append(np.ptp(locations, axis=1).max(1) < whole / 4)
    return np.concatenate(found)

  whole = np.ptp(tiny.map.train.coords, axis=0).max()
  config = dataclasses.replace(TINY, batch_size=8, num_steps=2000)
  plain, growing = (
    terrain.TerrainTask(dataclasses.replace(config, whole_map=share))
    for share in (0.0, 0.8)
  )
  for first, left in (0, 1.0), (1000, 0.6), (1980, 0.2):
    before, after = narrow(plain, first), narrow(growing, first)
    assert before.mean() > 0.5
    # The other windows do not change.
    assert not np.any(after & ~before)
    assert after.sum() / before.sum() == pytest.approx(left, abs=0.12)
  chex.assert_trees_all_equal(next(growing.eval_batches()), next(plain.eval_batches()))


def test_windows_are_moved_in_training_but_not_in_evaluation(tiny):
  locations = _locations(tiny.map.train.coords)
  assert not _locations(_train_batch(tiny, 0).coords) & locations
  assert _locations(next(tiny.eval_batches()).coords) <= locations


def test_eval_batches_predict_held_out_points_only(tiny):
  held_out = _locations(tiny.map.held_out.coords)
  for batch in tiny.eval_batches():
    assert _locations(batch.query_coords) <= held_out
    assert not _locations(batch.coords) & held_out


def test_train_batch_does_not_contain_held_out_points(monkeypatch):
  task = terrain.TerrainTask(TINY)
  monkeypatch.setattr(task, "_move", lambda rng, batch, swaps: batch)
  trained_on = _locations(task.map.train.coords)
  for step in range(3):
    batch = _train_batch(task, step)
    assert _locations(batch.coords) | _locations(batch.query_coords) <= trained_on


def test_num_context_above_the_number_of_points_raises():
  too_many = dataclasses.replace(TINY, num_context=22_508)
  message = "num_context must be at most 22,507, because 128 of .*; got 22,508"
  with pytest.raises(ConfigError, match=message):
    terrain.TerrainTask(too_many)


def _expected_scores(mean, std, targets):
  """SciPy reference of `evaluate.mean_scores`."""
  expected = {"log_likelihood": stats.norm.logpdf(targets, mean, std).mean()}
  for level in (50, 90, 95):
    low, high = stats.norm.interval(level / 100, mean, std)
    expected[f"coverage_{level}"] = np.mean((low <= targets) & (targets <= high))
  return expected


def test_scores_match_scipy(rng):
  mean, targets = rng.normal(size=(2, 500, 1)).astype(np.float32)
  std = rng.uniform(0.5, 2, mean.shape).astype(np.float32)
  output = tca_jax.Gaussian(mean=mean, std=std)
  found = evaluate.mean_scores(output, targets)
  expected = _expected_scores(mean, std, targets)
  assert found.keys() == expected.keys()
  for name, score in expected.items():
    assert found[name] == pytest.approx(score, abs=2e-3 if "cov" in name else 1e-4)


@pytest.fixture(scope="module")
def scaling(tmp_path_factory, params):
  """The content of scaling.json, whose readers do not depend on the beam width."""
  task = terrain.TerrainTask(dataclasses.replace(TINY, num_paths=2))
  path = epath.Path(tmp_path_factory.mktemp("terrain"))
  restored = task_lib.Restored(task=task, params=params, step=0, workdir=path)
  path /= terrain_scaling.SCALING_FILE
  content = terrain_scaling.MapScaling().evaluate(restored, path)
  assert json.loads(path.read_text()) == json.loads(json.dumps(content))
  return content


@pytest.mark.slow
def test_map_scaling_has_a_row_for_each_size_and_reader(scaling, tiny):
  assert tiny.largest_read / tiny.max_context == 6 / 32
  config = dataclasses.replace(TINY, num_paths=2)
  assert scaling["config"] == dataclasses.asdict(config) and "commit" in scaling
  rows = [(row["system"], row["num_context"]) for row in scaling["rows"]]
  systems = ("tca", "tca_2", "tca_4", "tca_full")
  assert rows == [(system, size) for size in (64, 256) for system in systems]
  read = [row["tokens_read"] for row in scaling["rows"]]
  assert read == [7, 12, 20, 64, 9, 16, 28, 256]
  for row in scaling["rows"]:
    assert row["tokens_fraction"] == row["tokens_read"] / row["num_context"]
    assert row["us_per_query"] > 0 and row["index_seconds"] > 0
    assert row["peak_memory_bytes"] > 2**26
  grid = scaling["grid"]
  assert (grid["num_context"], grid["num_queries"]) == (256, 81)
  parts = [v for name, v in grid.items() if name.endswith("_seconds")]
  assert len(parts) == 5 and grid["seconds"] == pytest.approx(sum(parts))


@pytest.mark.slow
def test_map_scaling_matches_a_plain_forward_pass(scaling, tiny, params):
  """The plain pass builds the tree in the model and reads all queries together."""
  context = jax.tree.map(lambda x: x[None, :64], tiny.map.train)
  held_out = jax.tree.map(np.asarray, tiny.map.held_out.take_first(500))

  @jax.jit
  def predict(params):
    def apply(*args, **kwargs):
      return tiny.model.apply(params, *args, **kwargs)

    memory = apply(context.coords, context.values, method="index")
    locations = held_out.coords[None]
    outputs = {"tca_full": apply(memory, locations, method="read_leaves").output}
    for name, num_paths in (("tca", 1), ("tca_2", 2), ("tca_4", 4)):
      prediction = apply(memory, locations, num_paths=num_paths, method="read")
      outputs[name] = prediction.output
    return outputs

  def metres(values):  # values are standardised asinh(metres / 100)
    return 100 * np.sinh(tiny.map.mean + tiny.map.std * values[..., 0])

  outputs = predict(params)
  for row in scaling["rows"][:4]:  # context of 64 points
    output = outputs.pop(row["system"])
    mean, std = np.asarray(output.mean[0]), np.asarray(output.std[0])
    expected = _expected_scores(mean, std, held_out.values)
    truth = metres(held_out.values)
    # The mean of the sinh of a Gaussian is exp(std^2 / 2) times the sinh of its mean.
    predicted = metres(mean) * np.exp((tiny.map.std * std[:, 0]) ** 2 / 2)
    expected["rmse"] = np.mean((predicted - truth) ** 2) ** 0.5
    assert row["num_queries"] == 500
    triangles = interpolate.griddata(
      context.coords[0], metres(context.values[0]), held_out.coords
    )
    outside = np.isnan(triangles)
    distance = np.linalg.norm(held_out.coords[:, None] - context.coords[0], axis=-1)
    nearest = metres(np.asarray(context.values[0]))[distance.argmin(axis=1)]
    errors = np.where(outside, nearest, triangles) - truth
    assert 0 < outside.sum() < 500
    assert row["interpolation_rmse"] == pytest.approx(
      np.mean(errors**2) ** 0.5, rel=1e-3
    )
    for name, score in expected.items():
      assert row[name] == pytest.approx(score, rel=1e-3, abs=2e-3)
  assert not outputs


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ca", "perceiver"])
def test_predict_in_parts_matches_predict_as_a_whole(model, tmp_path, monkeypatch):
  """Sizes above the number of training points use all points."""
  task = terrain.TerrainTask(
    dataclasses.replace(TINY, model=model, context_sizes="128,99999999")
  )
  few = task.map.held_out.coords[:50]
  small_map = dataclasses.replace(
    task.map,
    train=task.map.train.take_first(200),
    held_out=task.map.held_out.take_first(50),
  )
  monkeypatch.setattr(task, "map", small_map)
  params = untrained.params(task)
  path = epath.Path(tmp_path) / terrain_scaling.SCALING_FILE
  restored = task_lib.Restored(
    task=task, params=params, step=0, workdir=epath.Path(tmp_path)
  )
  content = terrain_scaling.MapScaling().evaluate(restored, path)
  assert [row["num_context"] for row in content["rows"]] == [128, 200]
  reads = [128, 200] if model == "ca" else [6, 6]
  assert [row["tokens_read"] for row in content["rows"]] == reads
  assert json.loads(path.read_text())["grid"] is None
  (reader,) = task.system.readers.values()
  memory, _ = terrain_scaling.index_context(
    task.model, params, task.map.train.take_first(200)
  )
  whole, *_ = terrain_scaling.predict(task.model, params, memory, 200, few, reader)
  monkeypatch.setattr(terrain_scaling, "_MAX_LOGITS", 200 * 7)
  reader = dataclasses.replace(reader, most_on_cpu=16)
  parts, *_ = terrain_scaling.predict(task.model, params, memory, 200, few, reader)
  chex.assert_trees_all_close(parts, whole, atol=1e-5)


def test_map_figure_shows_predictions_context_and_nodes(tiny, params):
  fit = terrain_scaling.complete(tiny, params, max_points=300)
  assert fit.coords.shape == (300, 2) and fit.mean.shape == fit.std.shape == (300,)
  num_points = len(tiny.map.train.coords) + len(tiny.map.held_out.coords)
  assert len(fit.context) == len(fit.context_values) == num_points // 100
  assert _locations(fit.context) <= _locations(tiny.map.train.coords)
  assert _locations(fit.query) <= _locations(tiny.map.held_out.coords)
  tokens = np.concatenate([points for _, points in fit.boxes])
  assert len(tokens) == len(fit.context) and _locations(tokens) == _locations(
    fit.context
  )


def test_map_scaling_of_a_relative_model_has_baselines(tmp_path):
  config = dataclasses.replace(TINY, model="relative_tca", context_sizes="64")
  task = terrain.TerrainTask(config)
  path = epath.Path(tmp_path)
  restored = task_lib.Restored(
    task=task,
    params=untrained.params(task),
    step=0,
    workdir=path,
  )
  content = terrain_scaling.MapScaling().evaluate(restored, path / "scaling.json")
  assert [row["system"] for row in content["rows"]] == ["relative_tca"]
  linear, kriging, *_ = content["baselines"]
  assert (linear["system"], kriging["system"]) == ("linear", "kriging")
  assert linear["rmse"] == content["rows"][0]["interpolation_rmse"]
  assert "log_likelihood" not in linear
  for row in (linear, kriging):
    assert row["fit_seconds"] > 0 and row["us_per_query"] > 0
    assert row["peak_memory_bytes"] > 2**26
  assert content["unit"] == "m" and content["value_std"] == pytest.approx(474, abs=1)
  # Kriging knows more than the spread of all values.
  spread = stats.norm.logpdf(task.map.held_out.values[:500]).mean()
  assert kriging["log_likelihood"] > spread + 0.3
  assert 0.8 < kriging["coverage_90"] < 1 and kriging["us_per_query"] > 0
  assert content["grid"]["seam_ratio"] > 0
  assert content["grid"]["interpolation_seam_ratio"] > 0


def test_table_of_rows_has_the_unit_and_build_times_of_models_and_baselines():
  row = dict(num_context=64, rmse=1.25, us_per_query=3.0)
  rows = [
    row | dict(system="relative_tca", tree_seconds=1.0, index_seconds=0.5),
    row | dict(system="linear", fit_seconds=2.25),
  ]
  lines = terrain_scaling.table_of("map", "grey levels", rows).splitlines()
  assert any("RMSE, grey levels" in line for line in lines)
  assert lines[-2].split()[-1] == "1.50" and lines[-1].split()[-1] == "2.25"


@pytest.mark.slow
def test_terrain_task_retina_draws_grey_levels():
  pytest.importorskip("skimage", reason="its package is an extra")
  config = dataclasses.replace(TINY, dataset="retina", whole_map=0.5, num_context=64)
  task = terrain.TerrainTask(config)
  assert task.map.unit == "grey levels"
  for batch in (_train_batch(task, 1), next(task.eval_batches())):
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(batch))
    assert batch.coords.shape == (2, 64, 2)
    # All points are distinct.
    for coords, query_coords in zip(batch.coords, batch.query_coords, strict=True):
      assert len(_locations(coords) | _locations(query_coords)) == 64 + 128


def test_periods_shift_by_a_period_does_not_change_predictions(monkeypatch):
  changes = dict(model="relative_tca", num_frequencies=0, periods="1,0")
  task = terrain.TerrainTask(dataclasses.replace(TINY, **changes))
  params = untrained.params(task)
  batch = next(task.eval_batches())
  queries = np.float32([[0.499, 0.1], [-0.499, 0.1]])
  memory = task.index(params, batch.coords[:1], batch.values[:1])

  def mean(coords):
    return np.asarray(task.read(params, memory, coords[None]).output.mean)

  np.testing.assert_allclose(
    mean(queries), mean(queries + np.float32([1, 0])), atol=1e-3
  )
  # Axes with different periods are not swapped in training.
  moves = []
  monkeypatch.setattr(task, "_move", lambda rng, batch, swaps: moves.append(swaps))
  _train_batch(task, 0)
  plain = terrain.TerrainTask(TINY)
  monkeypatch.setattr(plain, "_move", lambda rng, batch, swaps: moves.append(swaps))
  _train_batch(plain, 0)
  assert moves == [False, True]


def test_validation_predicts_training_points_only():
  task = terrain.TerrainTask(dataclasses.replace(TINY, validation=True))
  plain = terrain.TerrainTask(TINY)
  seen = _locations(plain.map.train.coords)
  for batch in task.eval_batches():
    assert _locations(batch.query_coords) <= seen
    assert not _locations(batch.query_coords) & _locations(task.map.train.coords)


def test_seam_ratio_finds_a_jump_between_two_nodes():
  east, north = np.meshgrid(np.linspace(0, 1, 50), np.linspace(0, 1, 40))
  locations = np.stack([east, north], axis=-1)
  boxes = np.array([[[0, 0], [0.51, 0]], [[0.49, 1], [1, 1]]])
  smooth = east + north
  torn = smooth + 3 * (east > 0.5)
  smooth_ratio, torn_ratio = terrain_baselines.seam_ratios(
    [smooth, torn], locations, boxes
  )
  assert smooth_ratio == pytest.approx(1, abs=0.3)
  assert torn_ratio > 50
  one_pixel, few = (locations[:n, :n] for n in (1, 3))
  for part in (one_pixel, few):  # the few pixels are of one node
    flat = smooth[: len(part), : len(part)]
    assert terrain_baselines.seam_ratios([flat], part, boxes) == [None]


def test_node_boxes_hold_all_points_of_the_context(tiny):
  context = tiny.map.train.take_first(600)
  low, high = terrain_baselines.node_boxes(tca_jax.build_tree(context.coords), context)
  assert len(low) == 256
  points = np.asarray(context.coords)[:, None]
  inside = ((points >= low - 1e-6) & (points <= high + 1e-6)).all(-1)
  assert inside.any(1).all()
