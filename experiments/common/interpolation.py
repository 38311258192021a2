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
    triangles: Delaunay triangulation of `[N, C]` points, of tetrahedra if C = 3.
    points: k-d tree of the same points.
  """

  triangles: spatial.Delaunay
  points: spatial.KDTree

  def interpolate(self, values: np.ndarray, coords: jax.typing.ArrayLike) -> np.ndarray:
    """Interpolates linearly in the triangles; outside them, the nearest point counts.

    Args:
      values: `[N]`.
      coords: `[M, C]`.

    Returns:
      `[M]`.
    """
    coords = np.asarray(coords)
    found = interpolate.LinearNDInterpolator(self.triangles, values)(coords)
    outside = np.isnan(found)
    found[outside] = values[self.points.query(coords[outside])[1]]
    return found


@dataclasses.dataclass(frozen=True)
class Line:
  """Points on one axis, for linear interpolation of values at these points.

  Attributes:
    points: `[k]`, the distinct points, ascending.
    index: `[N]`, the distinct point of each point.
  """

  points: np.ndarray
  index: np.ndarray

  def interpolate(self, values: np.ndarray, coords: jax.typing.ArrayLike) -> np.ndarray:
    """Interpolates linearly between points, from mean values where points are equal.

    Args:
      values: `[N]`.
      coords: `[M, 1]`.

    Returns:
      `[M]`; outside of the points, the nearest point counts.
    """
    total, count = np.bincount(self.index, values), np.bincount(self.index)
    return np.interp(np.asarray(coords)[:, 0], self.points, total / count)


def triangulate(points: jax.typing.ArrayLike) -> Triangulation | Line:
  """Triangulates points, or sorts them if they have one axis.

  Args:
    points: `[N, C]`, more than C that are not in one plane, or on one line if C = 2. The
      number of simplices grows fast with C; 3 is a sensible limit.

  Raises:
    scipy.spatial.QhullError: if the points are in one plane, or on one line.

  >>> triangulation = triangulate(np.array([[0, 0], [1, 0], [0, 1]]))
  >>> coords = np.array([[0.5, 0.5], [0, 9]])
  >>> triangulation.interpolate(np.array([0.0, 2.0, 4.0]), coords).tolist()
  [3.0, 4.0]
  """
  points = np.asarray(points)
  if points.shape[1] == 1:
    return Line(*np.unique(points[:, 0], return_inverse=True))
  triangles = spatial.Delaunay(points)
  _ = triangles.transform  # computed when first used: here, not by the first query
  return Triangulation(triangles, spatial.KDTree(triangles.points))
