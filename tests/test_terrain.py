"""Elevation: the maps, their split, the windows drawn, and contexts of any size."""

import dataclasses
import json
import shutil

import airportsdata
import chex
from etils import epath
import jax
import jax.numpy as jnp
from matplotlib import cbook
import numpy as np
from PIL import Image
import pytest
from scipy import interpolate
from scipy import stats

from experiments import export
from experiments import terrain as terrain_task
from experiments.common import checkpoints
from experiments.common import evaluate
from experiments.common import plots
from experiments.common import train
from experiments.common.config import ConfigError
from experiments.data import motion
from experiments.data import packages
from experiments.data import terrain
from experiments.data.errors import DataError
import tca_jax

TINY = terrain_task.TerrainConfig(
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


@pytest.fixture(scope="module", params=terrain.DATASETS)
def maps(request):
  """A data set: its name, and the map."""
  return request.param, terrain.load(request.param)


@pytest.fixture(scope="module")
def tiny():
  return terrain_task.TerrainTask(TINY)


def _places(coords):
  """Points as a set."""
  return {place.tobytes() for place in np.asarray(coords).reshape(-1, 2)}


def _by_place(coords, values):
  """Values by point."""
  coords, values = np.asarray(coords), np.asarray(values).ravel()
  return {place.tobytes(): x for place, x in zip(coords, values, strict=True)}


def test_the_fault_is_matplotlibs_grid():
  coords, elevation, pixel = terrain.load_points("fault")
  with cbook.get_sample_data("jacksboro_fault_dem.npz") as file:
    expected = file["elevation"]
  assert expected.shape == (344, 403) and elevation.shape == (138_632,)
  # Rows of a raster go up, those of the file from north to south.
  grid = plots._raster(coords, elevation, pixel)
  np.testing.assert_array_equal(grid[::-1], expected)
  np.testing.assert_allclose(coords[0], [-1 / 2, 171.5 / 402], rtol=1e-6)
  np.testing.assert_allclose(coords[-1], [1 / 2, -171.5 / 402], rtol=1e-6)


def test_airports_are_where_the_package_says():
  coords, elevation, _ = terrain.load_points("airports")
  expected = {}
  for airport in airportsdata.load().values():
    place = np.array([airport["lon"], airport["lat"]]) / 360
    expected.setdefault(place.astype(np.float32).tobytes(), airport["elevation"])
  assert len(coords) == len(expected) > 25_000
  # At a place of two airports the file's first one counts.
  feet = np.array([expected[place.tobytes()] for place in coords])
  np.testing.assert_allclose(elevation, 0.3048 * feet, rtol=1e-5)
  lukla = airportsdata.load()["VNLK"]
  at = np.abs(coords * 360 - [lukla["lon"], lukla["lat"]]).sum(1).argmin()
  assert 2700 < elevation[at] < 2950


def test_airports_without_a_place_or_elevation_are_left_out(tmp_path, monkeypatch):
  path = tmp_path / "airports.csv"
  path.write_text(
    "icao,elevation,lat,lon\n"
    "A,100,45,-90\nB,,10,10\nC,5,,10\nD,200,45,-90\nE,0,-45,180\n"
  )
  monkeypatch.setattr(packages, "find_file", lambda *_: path)
  coords, elevation, pixel = terrain.load_points("airports")
  assert coords.tolist() == [[-0.25, 0.125], [0.5, -0.125]] and pixel == 1 / 360
  np.testing.assert_allclose(elevation, [30.48, 0], rtol=1e-6)


def test_a_fifth_is_held_out_for_good(maps):
  name, found = maps
  coords, elevation, _ = terrain.load_points(name)
  n = len(coords)
  train_places, held_out = _places(found.train.coords), _places(found.held_out.coords)
  assert len(found.held_out.coords) == n // 5 == len(held_out)
  assert not train_places & held_out
  assert train_places | held_out == _places(coords)
  assert np.abs(coords).max() <= 1 / 2
  values = np.asarray(found.train.values, np.float64)
  assert abs(values.mean()) < 1e-4 and abs(values.std() - 1) < 1e-4
  truth = _by_place(coords, elevation)
  for part in (found.train, found.held_out):
    expected = [truth[place.tobytes()] for place in np.asarray(part.coords)]
    np.testing.assert_allclose(found.metres(part.values), expected, 1e-5, atol=0.01)
  # Random order: the first tenth spreads as the whole.
  tenth = found.train.coords[: n // 10].std(0) / found.train.coords.std(0)
  np.testing.assert_allclose(tenth, 1, atol=0.05)
  chex.assert_trees_all_equal(terrain.load(name).train, found.train)


def test_elevations_of_airports_have_no_outliers_on_their_scale():
  fault, airports = (terrain.load(name) for name in terrain.DATASETS)
  assert fault.bend is None and airports.bend == 100
  metres = airports.metres(airports.train.values)
  metres = (metres - metres.mean()) / metres.std()
  assert np.abs(metres).max() > 8 and np.abs(airports.train.values).max() < 4
  # About linear below 100 m, logarithmic above.
  level = (np.arcsinh([0.0, 0.1, 20.0, 40.0]) - airports.mean) / airports.std
  np.testing.assert_allclose(
    airports.metres(level[:, None]), [0, 10, 2000, 4000], rtol=1e-5, atol=1e-3
  )
  sample = level[2] + 0.5 * np.random.default_rng(0).normal(size=(200_000, 1))
  sample = airports.metres(sample)
  (mean,), (std,) = airports.moments(level[2:3, None], np.full((1, 1), 0.5))
  assert mean > 2100 and mean == pytest.approx(sample.mean(), rel=0.01)
  assert std > 1000 and std == pytest.approx(sample.std(), rel=0.02)
  mean, std = fault.moments(np.array([[1.0]]), np.array([[2.0]]))
  assert mean == fault.mean + fault.std and std == 2 * fault.std
  zero, ten, high, higher = level * airports.std
  assert ten - zero == pytest.approx(0.1, rel=0.01)
  assert higher - high == pytest.approx(np.log(2), rel=0.01)


def test_missing_packages_are_named(monkeypatch):
  monkeypatch.setattr(packages.importlib.util, "find_spec", lambda _: None)
  with pytest.raises(
    DataError, match=r"airports\.csv comes with .*; run `pip install airportsdata==\d+`"
  ):
    terrain.load("airports")
  with pytest.raises(
    DataError, match=r"jacksboro_fault_dem\.npz comes with the package matplotlib=="
  ):
    terrain.load("fault")


def test_windows_hold_shares_of_all_sizes(maps):
  _, found = maps
  coords = found.train.coords
  least = 640 / len(coords)
  draw = jax.jit(terrain.draw_windows, static_argnums=2)
  centre, reach = jax.device_get(draw(jax.random.key(0), coords, 400, least))
  assert _places(centre) <= _places(coords)
  inside = [
    (np.abs(coords - c).max(1) <= r).mean() for c, r in zip(centre, reach, strict=True)
  ]
  # On a logarithmic scale, shares are uniform from the least one to 1.
  assert stats.kstest(np.log(inside) / np.log(least), "uniform").statistic < 0.08
  assert 0.3 * least < min(inside) < 2 * least and max(inside) > 0.9


def test_more_and_more_windows_of_training_are_the_whole_map(tiny):
  def narrow(task, first):
    """Of 160 windows, those that span less than a quarter of the map."""
    found = []
    for step in range(first, first + 20):
      batch = task.train_batch(step)
      places = np.concatenate([batch.coords, batch.query_coords], axis=1)
      found.append(np.ptp(places, axis=1).max(1) < whole / 4)
    return np.concatenate(found)

  whole = np.ptp(tiny.terrain.train.coords, axis=0).max()
  config = dataclasses.replace(TINY, batch_size=8, num_steps=2000)
  plain, growing = (
    terrain_task.TerrainTask(dataclasses.replace(config, whole_map=share))
    for share in (0.0, 0.8)
  )
  for first, left in (0, 1.0), (1000, 0.6), (1980, 0.2):
    before, after = narrow(plain, first), narrow(growing, first)
    assert before.mean() > 0.5
    # The others are as they were.
    assert not np.any(after & ~before)
    assert after.sum() / before.sum() == pytest.approx(left, abs=0.12)
  chex.assert_trees_all_equal(next(growing.eval_batches()), next(plain.eval_batches()))


def test_points_are_drawn_within_their_window():
  coords = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (500, 2)), jnp.float32)
  centre, reach = coords[:3], jnp.array([0.0, 0.2, 2.0])
  drawn = terrain.draw_points(jax.random.key(0), coords, centre, reach, 60)
  for i, index in enumerate(np.asarray(drawn)):
    far = np.abs(np.asarray(coords - centre[i])).max(1)
    inside = int((far <= reach[i]).sum())
    assert len(set(index)) == 60
    assert np.all(far[index[:inside]] <= reach[i])
    # A window of too few is widened to the nearest around it.
    np.testing.assert_allclose(far[index[inside:]], np.sort(far)[inside:60])
  assert not np.all(np.diff(drawn[2]) > 0)
  other = terrain.draw_points(jax.random.key(1), coords, centre, reach, 60)
  assert set(np.asarray(other[2]).tolist()) != set(np.asarray(drawn[2]).tolist())


def test_examples_move_as_a_whole():
  found = terrain.load("airports")
  batch = terrain.sample(jax.random.key(0), found.train, None, 64, 20)
  moved = motion.move(jax.random.key(1), batch)
  chex.assert_trees_all_equal(
    moved.replace(coords=batch.coords, query_coords=batch.query_coords), batch
  )
  before, after = (
    np.concatenate([x.coords, x.query_coords], axis=1) for x in (batch, moved)
  )
  # What a rigid motion keeps: all distances from the first point.
  np.testing.assert_allclose(
    *(np.linalg.norm(x - x[:, :1], axis=-1) for x in (before, after)), atol=1e-5
  )
  drawn, shifts = set(), []
  for old, new in zip(before, after, strict=True):
    frame = np.linalg.lstsq(old - old[:1], new - new[:1])[0]
    drawn.add(tuple(frame.round().astype(int).ravel().tolist()))
    shifts.append((new - old @ frame)[0])
  assert len(drawn) == 8
  assert len(np.unique(np.round(shifts, 4), axis=0)) == 64
  assert np.all(np.min(shifts, 0) < -0.8) and np.all(np.max(shifts, 0) > 0.8)
  assert np.abs(shifts).max() < 1.001


def test_the_task_trains_on_moved_windows_and_evaluates_on_true_places(tiny):
  places = _places(tiny.terrain.train.coords)
  assert not _places(tiny.train_batch(0).coords) & places
  assert _places(next(tiny.eval_batches()).coords) <= places


@pytest.mark.parametrize("evaluation", [False, True])
def test_batches_hold_true_points_and_no_target_twice(maps, evaluation):
  _, found = maps
  held_out = found.held_out if evaluation else None
  draw = jax.jit(terrain.sample, static_argnames=("batch_size", "num_context"))
  batch = draw(jax.random.key(3), found.train, held_out, batch_size=4, num_context=100)
  assert batch.coords.shape == (4, 100, 2) and batch.targets.shape == (4, 128, 1)
  assert np.all(batch.query_mask)
  sources = found.train, held_out or found.train
  drawn = (batch.coords, batch.values), (batch.query_coords, batch.targets)
  for points, (coords, values) in zip(sources, drawn, strict=True):
    truth = _by_place(points.coords, points.values)
    expected = [truth[place.tobytes()] for place in np.asarray(coords).reshape(-1, 2)]
    np.testing.assert_array_equal(np.asarray(values).ravel(), expected)
  for coords, query_coords in zip(batch.coords, batch.query_coords, strict=True):
    both = _places(coords) | _places(query_coords)
    assert len(both) == 228, "a target is in the context"


def test_context_sizes_are_uniform(tiny):
  batch = terrain.sample(jax.random.key(0), tiny.terrain.train, None, 64, 32)
  size = np.asarray(batch.mask.sum(1))
  assert 16 <= size.min() < 19 and 30 <= size.max() <= 32
  assert abs(size.mean() - 24) < 5 * 4.9 / 8
  # A context is a prefix of its slots.
  assert np.all(np.diff(np.asarray(batch.mask, np.int8), axis=1) <= 0)


def test_batches_are_a_function_of_seed_and_step(tiny):
  def task(**kwargs):
    return terrain_task.TerrainTask(dataclasses.replace(TINY, eval_batches=3, **kwargs))

  for step in (0, 7):
    chex.assert_trees_all_equal(tiny.train_batch(step), task().train_batch(step))
  chex.assert_trees_all_equal(
    next(tiny.eval_batches()), next(task(seed=5).eval_batches())
  )
  drawn = [tiny.train_batch(0), tiny.train_batch(1), task(seed=4).train_batch(0)]
  drawn += [*task(eval_seed=0).eval_batches()]
  assert len({np.asarray(batch.targets).tobytes() for batch in drawn}) == 6
  held_out = _places(tiny.terrain.held_out.coords)
  for batch in drawn[3:]:
    assert _places(batch.query_coords) <= held_out
    assert not _places(batch.coords) & held_out


def test_training_never_sees_held_out_points(monkeypatch):
  task = terrain_task.TerrainTask(TINY)
  monkeypatch.setattr(task, "_move", lambda rng, batch: batch)
  trained_on = _places(task.terrain.train.coords)
  for step in range(3):
    batch = task.train_batch(step)
    assert _places(batch.coords) | _places(batch.query_coords) <= trained_on


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(dataset="mars"), r"dataset must be one of \('fault', 'airports'\)"),
    (dict(num_context=15), "num_context must be at least 16, got 15"),
    (dict(whole_map=1.0), "whole_map must be below 1.*, got 1.0"),
    (dict(num_layers=2), "num_layers must be 0, .*; got 2"),
    (dict(tree_order="given"), "'given' has no meaning"),
    (dict(context_sizes="99,15"), "must be integers of at least 16 .*got '99,15'"),
    (dict(context_sizes="1e3"), "must be integers of .*got '1e3'"),
    (dict(context_sizes=""), "must be integers of .*got ''"),
  ],
)
def test_bad_options_are_named(change, message):
  with pytest.raises(ConfigError, match=message):
    terrain_task.TerrainConfig(**change)


def test_more_context_than_the_map_has_is_refused():
  too_many = dataclasses.replace(TINY, num_context=22_508)
  message = "num_context must be at most 22,507, as 128 of .*; got 22,508"
  with pytest.raises(ConfigError, match=message):
    terrain_task.TerrainTask(too_many)


def test_the_paper_recipe_has_no_encoder_here():
  config = terrain_task.TerrainConfig.paper()
  assert (config.num_layers, config.num_frequencies) == (0, 0)
  assert config.baseline == "constant" and config.share_policy


def _expected_scores(mean, std, targets):
  """The slow twin."""
  found = {"log_likelihood": stats.norm.logpdf(targets, mean, std).mean()}
  for level in (50, 90, 95):
    low, high = stats.norm.interval(level / 100, mean, std)
    found[f"coverage_{level}"] = np.mean((low <= targets) & (targets <= high))
  return found


def test_scores_are_those_of_scipy(rng):
  mean, targets = rng.normal(size=(2, 500, 1)).astype(np.float32)
  std = rng.uniform(0.5, 2, mean.shape).astype(np.float32)
  output = tca_jax.Gaussian(mean=mean, std=std)
  found = terrain_task.scores(output, targets)
  expected = _expected_scores(mean, std, targets)
  assert found.keys() == expected.keys()
  for name, score in expected.items():
    assert found[name] == pytest.approx(score, abs=2e-3 if "cov" in name else 1e-4)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny):
  """A run of one step, and its evaluation."""
  workdir = epath.Path(tmp_path_factory.mktemp("terrain") / "run")
  train.train(tiny, workdir)
  return workdir, evaluate.evaluate_workdir(tiny, workdir)


def test_end_to_end(finished):
  workdir, result = finished
  assert result["num_examples"] == 2 and np.isfinite(result["full_log_likelihood"])
  assert result["tokens_fraction_largest"] == 6 / 32
  scaling = json.loads((workdir / terrain_task.SCALING_FILE).read_text())
  assert scaling["config"] == dataclasses.asdict(TINY) and "commit" in scaling
  rows = [(row["system"], row["num_context"]) for row in scaling["rows"]]
  systems = ("tca", "tca_2", "tca_4", "tca_full")
  assert rows == [(system, size) for size in (64, 256) for system in systems]
  read = [row["tokens_read"] for row in scaling["rows"]]
  assert read == [7, 12, 20, 64, 9, 16, 28, 256]
  for row in scaling["rows"]:
    assert row["tokens_fraction"] == row["tokens_read"] / row["num_context"]
    assert row["us_per_query"] > 0 and row["index_seconds"] > 0
  grid = scaling["grid"]
  assert (grid["num_context"], grid["num_queries"]) == (256, 81)
  parts = [v for name, v in grid.items() if name.endswith("_seconds")]
  assert len(parts) == 5 and grid["seconds"] == pytest.approx(sum(parts))
  width, height = Image.open(workdir / "terrain.png").size
  assert width > 3 * height > 900


def test_export_keeps_the_scaling_too(finished, tmp_path):
  workdir, result = finished
  export.export(workdir, "terrain_x", epath.Path(tmp_path))
  kept = json.loads((tmp_path / "results" / "terrain_x.json").read_text())
  assert kept["log_likelihood"] == result["log_likelihood"]
  scaling = tmp_path / "results" / "scaling_terrain_x.json"
  assert scaling.read_text() == (workdir / terrain_task.SCALING_FILE).read_text()
  assert (tmp_path / "checkpoints" / "terrain_x" / "config.json").exists()
  (epath.Path(tmp_path) / "checkpoints" / "terrain_x" / "checkpoints").rmtree()
  export.export(workdir, "terrain_x", epath.Path(tmp_path))  # half of it was there


def test_export_takes_a_run_that_is_older_than_an_option(finished, tmp_path):
  old = epath.Path(tmp_path) / "run"
  shutil.copytree(finished[0], old)
  config = json.loads((old / "config.json").read_text())
  del config["whole_map"]
  (old / "config.json").write_text(json.dumps(config))
  export.export(old, "terrain_x", epath.Path(tmp_path))
  (old / "config.json").write_text(json.dumps(config | {"seed": 1}))
  with pytest.raises(
    checkpoints.CheckpointError, match="of other flags than the run's"
  ):
    export.export(old, "terrain_y", epath.Path(tmp_path))


def test_large_contexts_are_scored_as_a_plain_forward_pass_is(finished, tiny):
  """No tree from the host, no chunks of queries; the restored parameters."""
  workdir, _ = finished
  _, params = evaluate.checkpoints.restore_params(workdir, train.init_params(tiny))
  rows = json.loads((workdir / terrain_task.SCALING_FILE).read_text())["rows"]
  context = jax.tree.map(lambda x: x[None, :64], tiny.terrain.train)

  @jax.jit
  def predict(params):
    def apply(*args, method):
      return tiny.model.apply(params, *args, method=method)

    memory = apply(context.coords, context.values, method="index")
    places = held_out.coords[None]
    outputs = {
      "tca": apply(memory, places, method="read").output,
      "tca_full": apply(memory, places, method="read_leaves").output,
    }
    for num_paths in (2, 4):
      read_out = tiny.model.read_out.clone(num_paths=num_paths)
      several = tiny.model.clone(read_out=read_out)
      prediction = several.apply(params, memory, places, method="read")
      outputs[f"tca_{num_paths}"] = prediction.output
    return outputs

  held_out = jax.tree.map(np.asarray, tiny.terrain.held_out.first(500))

  def metres(values):  # of airports: elevations are asinh(metres / 100), standardised
    return 100 * np.sinh(tiny.terrain.mean + tiny.terrain.std * values[..., 0])

  outputs = predict(params)
  for row in rows[:4]:  # of 64 points
    output = outputs.pop(row["system"])
    mean, std = np.asarray(output.mean[0]), np.asarray(output.std[0])
    expected = _expected_scores(mean, std, held_out.values)
    truth = metres(held_out.values)
    # The mean of sinh of a Gaussian is exp(std^2 / 2) that of its mean.
    predicted = metres(mean) * np.exp((tiny.terrain.std * std[:, 0]) ** 2 / 2)
    expected["rmse_metres"] = np.mean((predicted - truth) ** 2) ** 0.5
    assert row["num_queries"] == 500
    triangles = interpolate.griddata(
      context.coords[0], metres(context.values[0]), held_out.coords
    )
    outside = np.isnan(triangles)
    distance = np.linalg.norm(held_out.coords[:, None] - context.coords[0], axis=-1)
    nearest = metres(np.asarray(context.values[0]))[distance.argmin(axis=1)]
    errors = np.where(outside, nearest, triangles) - truth
    assert 0 < outside.sum() < 500
    assert row["interpolation_rmse_metres"] == pytest.approx(
      np.mean(errors**2) ** 0.5, rel=1e-3
    )
    for name, score in expected.items():
      assert row[name] == pytest.approx(score, rel=1e-3, abs=2e-3)
  assert not outputs


@pytest.mark.parametrize("model", ["ca", "perceiver"])
def test_rivals_read_large_contexts_in_small_parts(model, tmp_path, monkeypatch):
  """Sizes above the map's are all of it; what is read at once never matters."""
  task = terrain_task.TerrainTask(
    dataclasses.replace(TINY, model=model, context_sizes="128,99999999")
  )
  few = task.terrain.held_out.coords[:50]
  monkeypatch.setattr(
    task,
    "terrain",
    dataclasses.replace(
      task.terrain,
      train=jax.tree.map(lambda x: x[:200], task.terrain.train),
      held_out=jax.tree.map(lambda x: x[:50], task.terrain.held_out),
    ),
  )
  params = train.init_params(task)
  rows = task.evaluate_sizes(params, epath.Path(tmp_path))
  assert [row["num_context"] for row in rows] == [128, 200]
  reads = [128, 200] if model == "ca" else [6, 6]
  assert [row["tokens_read"] for row in rows] == reads
  memory, _ = task.index(params, 200)
  whole, *_ = task.predict(params, memory, 200, few, model)
  monkeypatch.setattr(terrain_task, "_MAX_LOGITS", 200 * 7)
  monkeypatch.setattr(terrain_task, "_MAX_QUERIES", 16)
  parts, *_ = task.predict(params, memory, 200, few, model)
  chex.assert_trees_all_close(parts, whole, atol=1e-5)
  assert json.loads((tmp_path / "scaling.json").read_text())["grid"] is None
