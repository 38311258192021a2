"""Linear interpolation, the simplest baseline of spatial regression, and its error."""

import jax
import numpy as np
from scipy import interpolate


def rmse(predicted: np.ndarray, truth: np.ndarray) -> float:
  """Root of the mean squared error.

  >>> rmse(np.array([0.0, 100.0]), np.array([100.0, 0.0]))
  100.0
  """
  errors = predicted.astype(np.float64) - truth.astype(np.float64)
  return float(np.sqrt(np.mean(errors**2)))


def interpolated(
  points: jax.typing.ArrayLike, values: np.ndarray, coords: jax.typing.ArrayLike
) -> np.ndarray:
  """Linear interpolation in the points' triangles; outside them, the nearest point.

  Args:
    points: `[N, 2]`, at least three that are not on one line.
    values: `[N]`.
    coords: `[M, 2]`.

  Returns:
    `[M]`.

  >>> points = np.array([[0, 0], [1, 0], [0, 1]])
  >>> coords = np.array([[0.5, 0.5], [0, 9]])
  >>> interpolated(points, np.array([0, 2, 4]), coords).tolist()
  [3.0, 4.0]
  """
  linear, nearest = (
    method(np.asarray(points), values)(np.asarray(coords))
    for method in (interpolate.LinearNDInterpolator, interpolate.NearestNDInterpolator)
  )
  return np.where(np.isnan(linear), nearest, linear)
