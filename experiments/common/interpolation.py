"""Linear interpolation, the simplest baseline of spatial regression, and its error."""

import dataclasses

import jax
import numpy as np
from scipy import interpolate
from scipy import spatial


def rmse(predicted: np.ndarray, truth: np.ndarray) -> float:
  """Root of the mean squared error.

  >>> rmse(np.array([0.0, 100.0]), np.array([100.0, 0.0]))
  100.0
  """
  errors = predicted.astype(np.float64) - truth.astype(np.float64)
  return float(np.sqrt(np.mean(errors**2)))


@dataclasses.dataclass(frozen=True)
class Triangulation:
  """Triangles between points, for linear interpolation of values at these points.

  Attributes:
    triangles: Delaunay triangulation of `[N, 2]` points.
    points: k-d tree of the same points.
  """

  triangles: spatial.Delaunay
  points: spatial.KDTree

  def interpolate(self, values: np.ndarray, coords: jax.typing.ArrayLike) -> np.ndarray:
    """Interpolates linearly in the triangles; outside them, the nearest point counts.

    Args:
      values: `[N]`.
      coords: `[M, 2]`.

    Returns:
      `[M]`.
    """
    coords = np.asarray(coords)
    found = interpolate.LinearNDInterpolator(self.triangles, values)(coords)
    outside = np.isnan(found)
    found[outside] = values[self.points.query(coords[outside])[1]]
    return found


def triangulate(points: jax.typing.ArrayLike) -> Triangulation:
  """Triangulates points.

  Args:
    points: `[N, 2]`, at least three that are not on one line.

  >>> triangulation = triangulate(np.array([[0, 0], [1, 0], [0, 1]]))
  >>> coords = np.array([[0.5, 0.5], [0, 9]])
  >>> triangulation.interpolate(np.array([0.0, 2.0, 4.0]), coords).tolist()
  [3.0, 4.0]
  """
  triangles = spatial.Delaunay(np.asarray(points))
  _ = triangles.transform  # computed when first used: here, not by the first query
  return Triangulation(triangles, spatial.KDTree(triangles.points))
