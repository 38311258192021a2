"""Elevation: the two maps, their split, and the windows and points drawn."""

import airportsdata
import chex
import jax
import jax.numpy as jnp
from matplotlib import cbook
import numpy as np
import pytest
from scipy import stats

from experiments.common.errors import DataError
from experiments.data import elevation
from experiments.data import packages
from experiments.figures import elevation as elevation_figure
import tca_jax


@pytest.fixture(scope="module", params=elevation.DATASETS)
def named_map(request):
  """A data set: its name and its map."""
  return request.param, elevation.load(request.param)


def _locations(coords):
  """The set of points."""
  return {location.tobytes() for location in np.asarray(coords).reshape(-1, 2)}


def _by_location(coords, values):
  """Values by point."""
  coords, values = np.asarray(coords), np.asarray(values).ravel()
  return {location.tobytes(): x for location, x in zip(coords, values, strict=True)}


def test_load_points_fault_is_the_grid_of_matplotlib():
  coords, metres, pixel = elevation.load_points("fault")
  with cbook.get_sample_data("jacksboro_fault_dem.npz") as file:
    expected = file["elevation"]
  assert expected.shape == (344, 403) and metres.shape == (138_632,)
  # Rows of a raster are from south to north, those of the file from north to south.
  grid = elevation_figure.raster(coords, metres, pixel)
  np.testing.assert_array_equal(grid[::-1], expected)
  np.testing.assert_allclose(coords[0], [-1 / 2, 171.5 / 402], rtol=1e-6)
  np.testing.assert_allclose(coords[-1], [1 / 2, -171.5 / 402], rtol=1e-6)


def test_load_points_airports_have_the_locations_of_the_package():
  coords, metres, _ = elevation.load_points("airports")
  expected = {}
  for airport in airportsdata.load().values():
    location = np.array([airport["lon"], airport["lat"]]) / 360
    expected.setdefault(location.astype(np.float32).tobytes(), airport["elevation"])
  assert len(coords) == len(expected) > 25_000
  # Of two airports at one location, the first of the file is used.
  feet = np.array([expected[location.tobytes()] for location in coords])
  np.testing.assert_allclose(metres, 0.3048 * feet, rtol=1e-5)
  lukla = airportsdata.load()["VNLK"]
  at = np.abs(coords * 360 - [lukla["lon"], lukla["lat"]]).sum(1).argmin()
  assert 2700 < metres[at] < 2950


def test_load_points_incomplete_or_repeated_airports_are_left_out(
  tmp_path, monkeypatch
):
  path = tmp_path / "airports.csv"
  path.write_text(
    "icao,elevation,lat,lon\n"
    "A,100,45,-90\nB,,10,10\nC,5,,10\nD,200,45,-90\nE,0,-45,180\n"
  )
  monkeypatch.setattr(packages, "find_file", lambda *_: path)
  coords, metres, pixel = elevation.load_points("airports")
  assert coords.tolist() == [[-0.25, 0.125], [0.5, -0.125]] and pixel == 1 / 360
  np.testing.assert_allclose(metres, [30.48, 0], rtol=1e-6)


def test_load_holds_out_a_fifth_of_the_points(named_map):
  name, points = named_map
  coords, metres, _ = elevation.load_points(name)
  n = len(coords)
  train = _locations(points.train.coords)
  held_out = _locations(points.held_out.coords)
  assert len(points.held_out.coords) == n // 5 == len(held_out)
  assert not train & held_out
  assert train | held_out == _locations(coords)
  assert np.abs(coords).max() <= 1 / 2
  values = np.asarray(points.train.values, np.float64)
  assert abs(values.mean()) < 1e-4 and abs(values.std() - 1) < 1e-4
  truth = _by_location(coords, metres)
  for part in (points.train, points.held_out):
    expected = [truth[location.tobytes()] for location in np.asarray(part.coords)]
    np.testing.assert_allclose(points.to_metres(part.values), expected, 1e-5, atol=0.01)
  # The order is random: the first tenth is spread as widely as all points.
  tenth = points.train.coords[: n // 10].std(0) / points.train.coords.std(0)
  np.testing.assert_allclose(tenth, 1, atol=0.05)
  chex.assert_trees_all_equal(elevation.load(name).train, points.train)


def test_elevation_map_asinh_scale_removes_outliers_and_converts_back():
  fault, airports = (elevation.load(name) for name in elevation.DATASETS)
  assert fault.asinh_scale is None and airports.asinh_scale == 100
  metres = airports.to_metres(airports.train.values)
  metres = (metres - metres.mean()) / metres.std()
  assert np.abs(metres).max() > 8 and np.abs(airports.train.values).max() < 4
  # Nearly linear below 100 m, nearly logarithmic above.
  level = (np.arcsinh([0.0, 0.1, 20.0, 40.0]) - airports.mean) / airports.std
  np.testing.assert_allclose(
    airports.to_metres(level[:, None]), [0, 10, 2000, 4000], rtol=1e-5, atol=1e-3
  )
  zero, ten, high, higher = level * airports.std
  assert ten - zero == pytest.approx(0.1, rel=0.01)
  assert higher - high == pytest.approx(np.log(2), rel=0.01)


def test_moments_in_metres_agree_with_samples():
  fault, airports = (elevation.load(name) for name in elevation.DATASETS)
  level = (np.arcsinh(20.0) - airports.mean) / airports.std
  sample = level + 0.5 * np.random.default_rng(0).normal(size=(200_000, 1))
  sample = airports.to_metres(sample)
  (mean,), (std,) = airports.moments_in_metres(
    np.full((1, 1), level), np.full((1, 1), 0.5)
  )
  assert mean > 2100 and mean == pytest.approx(sample.mean(), rel=0.01)
  assert std > 1000 and std == pytest.approx(sample.std(), rel=0.02)
  mean, std = fault.moments_in_metres(np.array([[1.0]]), np.array([[2.0]]))
  assert mean == fault.mean + fault.std and std == 2 * fault.std


def test_load_missing_package_raises_with_instructions(monkeypatch):
  monkeypatch.setattr(packages.importlib.util, "find_spec", lambda _: None)
  with pytest.raises(
    DataError, match=r"airports\.csv comes with .*; run `pip install airportsdata==\d+`"
  ):
    elevation.load("airports")
  with pytest.raises(
    DataError, match=r"jacksboro_fault_dem\.npz comes with the package matplotlib=="
  ):
    elevation.load("fault")


def test_draw_windows_shares_are_log_uniform(named_map):
  _, points = named_map
  coords = points.train.coords
  min_share = 640 / len(coords)
  draw = jax.jit(elevation.draw_windows, static_argnums=2)
  centre, half_width = jax.device_get(draw(jax.random.key(0), coords, 400, min_share))
  assert _locations(centre) <= _locations(coords)
  east, north = np.asarray(coords).T
  inside = [
    (np.maximum(abs(east - c[0]), abs(north - c[1])) <= w).mean()
    for c, w in zip(centre, half_width, strict=True)
  ]
  statistic = stats.kstest(np.log(inside) / np.log(min_share), "uniform").statistic
  assert statistic < 0.08
  assert 0.3 * min_share < min(inside) < 2 * min_share and max(inside) > 0.9


def test_draw_points_are_distinct_and_inside_or_nearest_to_the_window():
  coords = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (500, 2)), jnp.float32)
  centre, half_width = coords[:3], jnp.array([0.0, 0.2, 2.0])
  draw = jax.jit(elevation.draw_points, static_argnums=4)
  drawn = draw(jax.random.key(0), coords, centre, half_width, 60)
  for i, index in enumerate(np.asarray(drawn)):
    distance = np.abs(np.asarray(coords - centre[i])).max(1)
    inside = int((distance <= half_width[i]).sum())
    assert len(set(index)) == 60
    assert np.all(distance[index[:inside]] <= half_width[i])
    # A window with too few points is filled up with the nearest points around it.
    np.testing.assert_allclose(distance[index[inside:]], np.sort(distance)[inside:60])
  assert not np.all(np.diff(drawn[2]) > 0)
  other = draw(jax.random.key(1), coords, centre, half_width, 60)
  assert set(np.asarray(other[2]).tolist()) != set(np.asarray(drawn[2]).tolist())


@pytest.mark.parametrize("evaluation", [False, True])
def test_sample_has_true_values_and_distinct_points(named_map, evaluation):
  _, points = named_map
  held_out = points.held_out if evaluation else None
  draw = jax.jit(elevation.sample, static_argnames=("batch_size", "num_context"))
  batch = draw(jax.random.key(3), points.train, held_out, batch_size=4, num_context=100)
  assert batch.coords.shape == (4, 100, 2) and batch.targets.shape == (4, 128, 1)
  assert np.all(batch.query_mask)
  sources = points.train, held_out or points.train
  drawn = (batch.coords, batch.values), (batch.query_coords, batch.targets)
  for source, (coords, values) in zip(sources, drawn, strict=True):
    truth = _by_location(source.coords, source.values)
    expected = [truth[x.tobytes()] for x in np.asarray(coords).reshape(-1, 2)]
    np.testing.assert_array_equal(np.asarray(values).ravel(), expected)
  for coords, query_coords in zip(batch.coords, batch.query_coords, strict=True):
    both = _locations(coords) | _locations(query_coords)
    assert len(both) == 228, "a target is in the context"


def test_sample_context_sizes_are_uniform():
  points = elevation.load("airports")
  draw = jax.jit(elevation.sample, static_argnames=("batch_size", "num_context"))
  batch = draw(jax.random.key(0), points.train, None, batch_size=64, num_context=32)
  size = np.asarray(batch.mask.sum(1))
  assert 16 <= size.min() < 19 and 30 <= size.max() <= 32
  assert abs(size.mean() - 24) < 5 * 4.9 / 8
  # The valid context points come first.
  assert np.all(np.diff(np.asarray(batch.mask, np.int8), axis=1) <= 0)


def test_sample_shares_of_dense_windows_and_of_full_contexts():
  points = elevation.load("fault")
  names = ("batch_size", "num_context", "densest", "full_context")
  draw = jax.jit(elevation.sample, static_argnames=names)
  sizes = dict(batch_size=64, num_context=512)
  batch = draw(
    jax.random.key(0), points.train, None, densest=0.5, full_context=0.75, **sizes
  )
  full = np.asarray(batch.mask.all(1))
  assert abs(full.mean() - 0.75) < 0.2
  width = np.ptp(np.asarray(batch.coords), axis=1).max(1)
  smallest = width <= 1.2 * np.quantile(width, 0.25)
  assert abs(smallest.mean() - 0.5) < 0.2
  plain = draw(jax.random.key(0), points.train, None, **sizes)
  assert np.asarray(plain.mask.all(1)).mean() < 0.1


def test_for_validation_replaces_the_held_out_part(named_map):
  _, points = named_map
  found = points.for_validation()
  parts = [_locations(x.coords) for x in (found.train, found.held_out)]
  assert not parts[0] & parts[1]
  assert parts[0] | parts[1] == _locations(points.train.coords)
  assert not parts[1] & _locations(points.held_out.coords)
  assert len(parts[1]) == len(points.train.coords) // 10


def test_predicted_in_metres_of_a_mixture_equals_sampling(named_map, rng):
  _, points = named_map
  log_weights = np.log(np.tile(np.float32([[[0.2, 0.8]]]), (3, 1, 1)))
  means = rng.normal(size=(3, 1, 2)).astype(np.float32)
  mixture = tca_jax.GaussianMixture(
    log_weights=log_weights, means=means, stds=np.full((3, 1, 2), 0.2, np.float32)
  )
  mean, std = points.predicted_in_metres(mixture)
  part = (rng.random((200_000, 3)) < 0.8).astype(int)
  drawn = means[np.arange(3)[None], 0, part] + 0.2 * rng.normal(size=part.shape)
  metres = points.to_metres(drawn.reshape(-1, 1)).reshape(part.shape)
  np.testing.assert_allclose(mean, metres.mean(0), rtol=0, atol=4 * std.max() / 400)
  np.testing.assert_allclose(std, metres.std(0), rtol=0.05)
