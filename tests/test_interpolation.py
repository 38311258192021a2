"""Linear interpolation: against SciPy, and outside of all triangles."""

import numpy as np
from scipy import interpolate

from experiments.common import interpolation


def test_interpolate_inside_equals_scipy_and_outside_the_nearest_point(rng):
  points, queries = rng.random((50, 2)), rng.uniform(-0.5, 1.5, (200, 2))
  values = rng.normal(size=50)
  found = interpolation.triangulate(points).interpolate(values, queries)
  expected = interpolate.griddata(points, values, queries)
  outside = np.isnan(expected)
  assert 0 < outside.sum() < 200
  np.testing.assert_allclose(found[~outside], expected[~outside])
  distance = np.linalg.norm(queries[outside, None] - points, axis=-1)
  np.testing.assert_array_equal(found[outside], values[distance.argmin(axis=1)])


def test_triangulate_a_grid_in_single_precision_reproduces_a_plane():
  east, north = np.meshgrid(np.arange(20), np.arange(30))
  points = np.stack([east.ravel(), north.ravel()], axis=-1).astype(np.float32) / 29
  triangulation = interpolation.triangulate(points)
  queries = np.random.default_rng(0).uniform(0, 0.6, (100, 2))
  for slope in ([1, 0], [-1, 2]):
    found = triangulation.interpolate(points @ slope, queries)
    np.testing.assert_allclose(found, queries @ slope, atol=1e-6)
