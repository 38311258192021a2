"""Maps: their points, their split and the units of their values."""

import airportsdata
import chex
from matplotlib import cbook
import numpy as np
from PIL import Image
import pytest

from experiments.common.errors import DataError
from experiments.data import elevation
from experiments.data import packages
from experiments.figures import elevation as elevation_figure
import tca_jax


@pytest.fixture(scope="module", params=["fault", "airports"])
def named_map(request):
  """A data set: its name and its map."""
  return request.param, elevation.load(request.param)


@pytest.fixture(scope="module")
def retina():
  """The photograph: its pixels, rows from north to south, and its map."""
  reason = "its package is an extra"
  data = pytest.importorskip("skimage.data", reason=reason, exc_type=ImportError)
  return data.retina()[..., 1], elevation.load("retina")


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


def test_load_retina_values_are_grey_levels_with_noise_of_one_level(retina):
  pixels, points = retina
  assert pixels.size == 1_990_921 and points.unit == "grey levels"
  assert points.asinh_scale is None
  parts = points.train, points.held_out
  assert [len(part.coords) for part in parts] == [1_592_737, 398_184]
  coords = np.concatenate([part.coords for part in parts])
  values = np.concatenate([points.to_units(part.values) for part in parts])
  assert np.abs(coords).max() == 1 / 2 and np.all(np.isfinite(values))
  # Each pixel occurs once, at its place.
  east, north = np.rint((coords / points.pixel) + 705).astype(int).T
  assert len(np.unique(north * 1411 + east)) == pixels.size
  noise = values - pixels[::-1][north, east]
  assert np.abs(noise).max() <= 0.501  # the values are single precision
  assert noise.std() == pytest.approx(12**-0.5, rel=0.01)
  # Also where the photograph is black.
  black = noise[pixels[::-1][north, east] == 0]
  assert len(black) > 400_000 and black.std() == pytest.approx(12**-0.5, rel=0.01)


def test_load_retina_is_the_same_in_every_run(retina):
  _, points = retina
  again = elevation.load("retina")
  chex.assert_trees_all_equal(again.train, points.train)
  assert (again.mean, again.std) == (points.mean, points.std)


def test_load_points_retina_uses_the_green_channel(tmp_path, monkeypatch):
  pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 3)).astype(np.uint8)
  Image.fromarray(pixels).save(tmp_path / "photo.png")
  monkeypatch.setattr(packages, "find_file", lambda *_: tmp_path / "photo.png")
  coords, values, pixel = elevation.load_points("retina")
  np.testing.assert_array_equal(np.rint(values), pixels[..., 1].ravel())
  assert pixel == 1 / 4
  assert coords[[0, -1]].tolist() == [[-0.5, 0.25], [0.5, -0.25]]


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
    np.testing.assert_allclose(points.to_units(part.values), expected, 1e-5, atol=0.01)
  # The order is random: the first tenth is spread as widely as all points.
  tenth = points.train.coords[: n // 10].std(0) / points.train.coords.std(0)
  np.testing.assert_allclose(tenth, 1, atol=0.05)
  chex.assert_trees_all_equal(elevation.load(name).train, points.train)


def test_value_map_asinh_scale_removes_outliers_and_converts_back():
  fault, airports = (elevation.load(name) for name in ("fault", "airports"))
  assert fault.asinh_scale is None and airports.asinh_scale == 100
  metres = airports.to_units(airports.train.values)
  metres = (metres - metres.mean()) / metres.std()
  assert np.abs(metres).max() > 8 and np.abs(airports.train.values).max() < 4
  # Nearly linear below 100 m, nearly logarithmic above.
  level = (np.arcsinh([0.0, 0.1, 20.0, 40.0]) - airports.mean) / airports.std
  np.testing.assert_allclose(
    airports.to_units(level[:, None]), [0, 10, 2000, 4000], rtol=1e-5, atol=1e-3
  )
  zero, ten, high, higher = level * airports.std
  assert ten - zero == pytest.approx(0.1, rel=0.01)
  assert higher - high == pytest.approx(np.log(2), rel=0.01)


def test_moments_in_units_agree_with_samples():
  fault, airports = (elevation.load(name) for name in ("fault", "airports"))
  level = (np.arcsinh(20.0) - airports.mean) / airports.std
  sample = level + 0.5 * np.random.default_rng(0).normal(size=(200_000, 1))
  sample = airports.to_units(sample)
  (mean,), (std,) = airports.moments_in_units(
    np.full((1, 1), level), np.full((1, 1), 0.5)
  )
  assert mean > 2100 and mean == pytest.approx(sample.mean(), rel=0.01)
  assert std > 1000 and std == pytest.approx(sample.std(), rel=0.02)
  mean, std = fault.moments_in_units(np.array([[1.0]]), np.array([[2.0]]))
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
  with pytest.raises(DataError, match=r"retina\.jpg comes with .* scikit-image=="):
    elevation.load("retina")


def test_for_validation_replaces_the_held_out_part(named_map):
  _, points = named_map
  found = points.for_validation()
  parts = [_locations(x.coords) for x in (found.train, found.held_out)]
  assert not parts[0] & parts[1]
  assert parts[0] | parts[1] == _locations(points.train.coords)
  assert not parts[1] & _locations(points.held_out.coords)
  assert len(parts[1]) == len(points.train.coords) // 10


def test_predicted_in_units_of_a_mixture_equals_sampling(named_map, rng):
  _, points = named_map
  log_weights = np.log(np.tile(np.float32([[[0.2, 0.8]]]), (3, 1, 1)))
  means = rng.normal(size=(3, 1, 2)).astype(np.float32)
  mixture = tca_jax.GaussianMixture(
    log_weights=log_weights, means=means, stds=np.full((3, 1, 2), 0.2, np.float32)
  )
  mean, std = points.predicted_in_units(mixture)
  part = (rng.random((200_000, 3)) < 0.8).astype(int)
  drawn = means[np.arange(3)[None], 0, part] + 0.2 * rng.normal(size=part.shape)
  metres = points.to_units(drawn.reshape(-1, 1)).reshape(part.shape)
  np.testing.assert_allclose(mean, metres.mean(0), rtol=0, atol=4 * std.max() / 400)
  np.testing.assert_allclose(std, metres.std(0), rtol=0.05)
