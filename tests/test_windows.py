"""Windows: their sizes, and the points drawn from small and from large maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments.data import elevation
from experiments.data import windows


@pytest.fixture(scope="module", params=["fault", "airports"])
def named_map(request):
  """A data set: its name and its map."""
  return request.param, elevation.load(request.param)


@pytest.fixture
def few_blocks(monkeypatch):
  """Blocks of 8 slots, of which 16 are candidates, for all but the smallest maps."""
  monkeypatch.setattr(windows, "_MANY_POINTS", 500)
  monkeypatch.setattr(windows, "_BLOCK", 8)
  monkeypatch.setattr(windows, "_NUM_BLOCKS", 16)
  monkeypatch.setattr(windows, "_SLOTS_PER_POINT", 4)


def _random_points(count):
  coords = np.random.default_rng(1).uniform(-0.5, 0.5, (count, 2)).astype(np.float32)
  return windows.Points(coords=jnp.asarray(coords), values=jnp.asarray(coords[:, :1]))


def _locations(coords):
  """The set of points."""
  return {location.tobytes() for location in np.asarray(coords).reshape(-1, 2)}


def _by_location(coords, values):
  """Values by point."""
  coords, values = np.asarray(coords), np.asarray(values).ravel()
  return {location.tobytes(): x for location, x in zip(coords, values, strict=True)}


def test_draw_windows_shares_are_log_uniform(named_map):
  _, points = named_map
  coords = points.train.coords
  min_share = 640 / len(coords)
  draw = jax.jit(windows.draw_windows, static_argnums=2)
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
  draw = jax.jit(windows.draw_points, static_argnums=4)
  points = windows.Points(coords=coords, values=coords[:, :1])
  drawn = draw(jax.random.key(0), points, centre, half_width, 60)
  for i, index in enumerate(np.asarray(drawn)):
    distance = np.abs(np.asarray(coords - centre[i])).max(1)
    inside = int((distance <= half_width[i]).sum())
    assert len(set(index)) == 60
    assert np.all(distance[index[:inside]] <= half_width[i])
    # A window with too few points is filled up with the nearest points around it.
    np.testing.assert_allclose(distance[index[inside:]], np.sort(distance)[inside:60])
  assert not np.all(np.diff(drawn[2]) > 0)
  other = draw(jax.random.key(1), points, centre, half_width, 60)
  assert set(np.asarray(other[2]).tolist()) != set(np.asarray(drawn[2]).tolist())


@pytest.mark.parametrize("evaluation", [False, True])
def test_sample_has_true_values_and_distinct_points(named_map, evaluation):
  _, points = named_map
  held_out = points.held_out if evaluation else None
  draw = jax.jit(windows.sample, static_argnames=("batch_size", "num_context"))
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
  draw = jax.jit(windows.sample, static_argnames=("batch_size", "num_context"))
  batch = draw(jax.random.key(0), points.train, None, batch_size=64, num_context=32)
  size = np.asarray(batch.mask.sum(1))
  assert 16 <= size.min() < 19 and 30 <= size.max() <= 32
  assert abs(size.mean() - 24) < 5 * 4.9 / 8
  # The valid context points come first.
  assert np.all(np.diff(np.asarray(batch.mask, np.int8), axis=1) <= 0)


def test_sample_shares_of_dense_windows_and_of_full_contexts():
  points = elevation.load("fault")
  names = ("batch_size", "num_context", "densest", "full_context")
  draw = jax.jit(windows.sample, static_argnames=names)
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


def test_with_blocks_few_points_have_none(few_blocks):
  points = _random_points(500)
  assert windows.with_blocks(points) is points


def test_with_blocks_every_point_is_in_one_block(few_blocks):
  points = windows.with_blocks(_random_points(1001))
  blocks = jax.device_get(points.blocks)
  assert blocks.index.shape == (128, 8)
  valid = blocks.index < 1001
  assert sorted(blocks.index[valid]) == list(range(1001))
  assert np.all(blocks.index[~valid] == 1001)
  for index, low, high in zip(blocks.index, blocks.low, blocks.high, strict=True):
    coords = np.asarray(points.coords)[index[index < 1001]]
    np.testing.assert_array_equal([low, high], [coords.min(0), coords.max(0)])
  assert points.take_first(5).blocks is None


def test_draw_points_small_windows_of_blocks_equal_those_of_all_points(few_blocks):
  points = _random_points(1001)
  centre, half_width = points.coords[:4], jnp.array([0.0, 0.03, 0.06, 0.09])
  draw = jax.jit(windows.draw_points, static_argnums=4)
  plain, blocked = (
    np.asarray(draw(jax.random.key(0), x, centre, half_width, 20))
    for x in (points, windows.with_blocks(points))
  )
  inside = np.abs(np.asarray(points.coords)[:, None] - centre).max(-1) <= half_width
  counts = inside.sum(0)
  assert counts[0] == 1 and counts[3] > 20  # three windows are filled up, one is not
  for i in range(4):
    assert len(set(blocked[i])) == 20
    if counts[i] <= 20:
      assert set(blocked[i]) == set(plain[i])
    else:
      assert np.all(inside[blocked[i], i])


def test_draw_points_large_windows_of_blocks_are_drawn_from_all_points(few_blocks):
  points = windows.with_blocks(_random_points(4000))
  draw = jax.jit(windows.draw_points, static_argnums=4)
  centre, half_width = points.coords[:1], jnp.array([0.4])
  inside = np.abs(points.coords - centre).max(1) <= 0.4
  drawn = [
    np.asarray(draw(jax.random.key(i), points, centre, half_width, 20))[0]
    for i in range(400)
  ]
  assert all(len(set(index)) == 20 and inside[index].all() for index in drawn)
  found = np.concatenate(drawn)
  assert found.min() < 50 and found.max() > 3950
  # Nearly all points of the window occur, as in independent draws.
  expected = inside.sum() * -np.expm1(-len(found) / inside.sum())
  assert len(np.unique(found)) == pytest.approx(expected, rel=0.03)
  for axis in range(2):
    where = np.asarray(points.coords)[:, axis]
    assert stats.ks_2samp(where[found], where[inside]).pvalue > 0.001


def test_draw_points_all_points_of_blocks_are_distinct(few_blocks):
  points = windows.with_blocks(_random_points(700))
  draw = jax.jit(windows.draw_points, static_argnums=4)
  for count in (240, 700):  # blocks have more slots than there are points
    drawn = draw(jax.random.key(0), points, points.coords[:1], jnp.array([9.0]), count)
    assert len(set(np.asarray(drawn)[0].tolist()) & set(range(700))) == count


def test_sample_of_blocks_has_distinct_points(few_blocks):
  points = windows.with_blocks(_random_points(3000))
  held_out = _random_points(900)
  draw = jax.jit(windows.sample, static_argnames=("batch_size", "num_context"))
  for other in (None, windows.with_blocks(held_out)):
    batch = draw(jax.random.key(0), points, other, batch_size=4, num_context=32)
    np.testing.assert_array_equal(batch.values, batch.coords[..., :1])
    np.testing.assert_array_equal(batch.targets, batch.query_coords[..., :1])
    assert np.all(np.isfinite(batch.coords))
    for coords, query_coords in zip(batch.coords, batch.query_coords, strict=True):
      assert len(_locations(query_coords)) == 128 and len(_locations(coords)) == 32


@pytest.mark.parametrize("num_axes", [1, 3])
def test_sample_of_other_numbers_of_axes_has_distinct_points(num_axes, few_blocks):
  coords = np.random.default_rng(2).uniform(-0.5, 0.5, (900, num_axes))
  coords = jnp.asarray(coords, jnp.float32)
  points = windows.Points(coords=coords, values=jnp.concatenate([coords, -coords], 1))
  names = ("batch_size", "num_context", "num_targets")
  draw = jax.jit(windows.sample, static_argnames=names)
  sizes = dict(batch_size=4, num_context=32, num_targets=8)
  for train in (points, windows.with_blocks(points)):
    batch = draw(jax.random.key(0), train, None, **sizes)
    assert batch.query_coords.shape == (4, 8, num_axes)
    assert batch.targets.shape == (4, 8, 2 * num_axes)
    np.testing.assert_array_equal(batch.values[..., :num_axes], batch.coords)
    both = np.concatenate([batch.coords, batch.query_coords], axis=1)
    assert all(len(np.unique(x, axis=0)) == 40 for x in both)
