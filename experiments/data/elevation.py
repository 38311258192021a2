"""Maps as point sets: three data sets and their split.

`fault` is the grid of 344 x 403 elevations around the Jacksboro fault that matplotlib
ships. `airports` are the irregular locations of the package airportsdata. `retina` is
the photograph of a retina that scikit-image ships (public domain, CC0): the green channel
of 1411 x 1411 pixels. The points of all maps have coordinates (east, north) in
[-1/2, 1/2], with the same scale on both axes, so that a Fourier feature of wavelength 2
distinguishes all locations.

The values of a map have a unit: metres (m) or grey levels.
"""

import csv
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from experiments.data import packages
from experiments.data.windows import Points
import tca_jax

HELD_OUT = 0.2  # fraction of the points that is excluded from training
METRES_PER_FOOT = 0.3048
_SPLIT_SEED = 0
_NOISE_SEED = 0

# For each data set: the package, the file in it, and the requirement for pip.
_SOURCES = {
  "fault": (
    "matplotlib",
    "mpl-data/sample_data/jacksboro_fault_dem.npz",
    "matplotlib==3.11.2",
  ),
  "airports": ("airportsdata", "airports.csv", "airportsdata==20260905"),
  "retina": ("skimage", "data/retina.jpg", "scikit-image==0.26.0"),
}
DATASETS = tuple(_SOURCES)
_UNITS = {"fault": "m", "airports": "m", "retina": "grey levels"}
# Values with outliers are transformed to asinh(value / scale), with the scale in units of
# the map. This is close to linear below the scale and to logarithmic above it.
_ASINH_SCALES = {"airports": 100.0}


@dataclasses.dataclass(frozen=True)
class ValueMap:
  """A map with a fixed split into training and held-out points.

  Both parts are in random order, so that any prefix is a random sample.

  Attributes:
    train: the `Points` to train on, which also serve as contexts in evaluations.
    held_out: the `Points` that are only predicted, in evaluations.
    unit: the unit of the map's values, such as "m".
    mean: the mean of the training points' values, by which all values are standardised.
      In units of the map; with an asinh_scale, of asinh(value / asinh_scale).
    std: the standard deviation of the same.
    asinh_scale: the value, in units of the map, above which the transform of values is
      close to logarithmic; None: values are not transformed.
    pixel: the side of a pixel in pictures of the map, in units of the coordinates.
  """

  train: Points
  held_out: Points
  unit: str
  mean: float
  std: float
  asinh_scale: float | None
  pixel: float

  def for_validation(self) -> "ValueMap":
    """Returns the map without its held-out part: the last tenth of train replaces it.

    Options are chosen on this map, so that the held-out points measure only the choice.
    """
    count = len(self.train.coords) // 10
    train = jax.tree.map(lambda x: x[:-count], self.train)
    held_out = jax.tree.map(lambda x: x[-count:], self.train)
    return dataclasses.replace(self, train=train, held_out=held_out)

  def to_units(self, values: jax.typing.ArrayLike) -> np.ndarray:
    """Converts standardised values `[n, 1]` to units of the map, `[n]`."""
    value = self.mean + self.std * np.asarray(values)[:, 0]
    if self.asinh_scale:
      return self.asinh_scale * np.sinh(value)
    return value

  def moments_in_units(
    self, mean: jax.typing.ArrayLike, std: jax.typing.ArrayLike
  ) -> tuple[np.ndarray, np.ndarray]:
    """Computes moments in units of the map of Gaussian standardised values.

    Args:
      mean: `[n, 1]`, the means of the standardised values.
      std: `[n, 1]`, their standard deviations.

    Returns:
      The mean and the standard deviation of the values in units, `[n]` each.
    """
    std = self.std * np.asarray(std, np.float64)[:, 0]  # exp(std**2) is large
    if not self.asinh_scale:
      return self.to_units(mean), std
    # The moments of scale * sinh(X), X Gaussian: the median is scale * sinh(mean of X).
    median, growth = self.to_units(mean), np.exp(std**2)
    square = self.asinh_scale**2
    variance = (growth - 1) * (growth * (square + 2 * median**2) + square) / 2
    return np.sqrt(growth) * median, np.sqrt(variance)

  def predicted_in_units(
    self, predicted: tca_jax.Regression
  ) -> tuple[np.ndarray, np.ndarray]:
    """Computes moments in units of the map of predicted standardised values.

    Args:
      predicted: distributions of `[n, 1]` values.

    Returns:
      The mean and the standard deviation of the values in units, `[n]` each.
    """
    if isinstance(predicted, tca_jax.Gaussian):
      return self.moments_in_units(predicted.mean, predicted.std)
    moments = [
      self.moments_in_units(predicted.means[..., k], predicted.stds[..., k])
      for k in range(predicted.means.shape[-1])
    ]
    means, stds = (np.stack(x) for x in zip(*moments, strict=True))
    weights = np.exp(np.asarray(predicted.log_weights, np.float64))[:, 0].T
    mean = np.sum(weights * means, axis=0)
    variance = np.sum(weights * (stds**2 + (means - mean) ** 2), axis=0)
    return mean, np.sqrt(variance)


def load_points(dataset: str) -> tuple[np.ndarray, np.ndarray, float]:
  """Loads all points of a data set.

  The points of `fault` and `retina` are the pixels of a grid, see `_pixels`. The
  coordinates of `airports` are degrees / 360, and a pixel is one degree. Airports without
  a location or an elevation are left out, and so are airports at the location of an
  earlier one.

  The grey levels of `retina` are integers from 0 to 255, and a fifth of the pixels is
  black. The density of a model could grow there without bound. Noise that is uniform on
  [-1/2, 1/2) is therefore added to each pixel (dequantisation), so that no model can
  expect a log-likelihood above that of one grey level. The noise is drawn from a fixed
  seed: all models and baselines see the same values. It is also a part of every error,
  0.29 grey levels of a root-mean-square error at least.

  Args:
    dataset: one of `DATASETS`.

  Returns:
    Coordinates, `[n, 2]` float32; values in units of the map, `[n]` float32; the side of
    a pixel, in units of the coordinates.

  Raises:
    DataError: if the package is not installed or lacks the file.
  """
  path = packages.find_file(*_SOURCES[dataset])
  if dataset == "fault":
    with np.load(path) as file:
      return _pixels(file["elevation"])
  if dataset == "retina":
    with Image.open(path) as photo:
      grey = np.asarray(photo.convert("RGB"))[..., 1]
    noise = np.random.default_rng(_NOISE_SEED).uniform(-1 / 2, 1 / 2, grey.shape)
    return _pixels(grey + noise)
  with path.open(encoding="utf-8", newline="") as file:
    cells = [[row["lon"], row["lat"], row["elevation"]] for row in csv.DictReader(file)]
  table = np.array([row for row in cells if all(row)], np.float64)
  coords = (table[:, :2] / 360).astype(np.float32)
  elevation = (table[:, 2] * METRES_PER_FOOT).astype(np.float32)
  _, first = np.unique(coords, axis=0, return_index=True)
  first.sort()
  return coords[first], elevation[first], 1 / 360


def _pixels(grid: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
  """The pixels of a grid as points; its longer side spans [-1/2, 1/2].

  Args:
    grid: `[height, width]`, rows from north to south.

  Returns:
    As `load_points`; pixels row by row.
  """
  height, width = grid.shape
  pixel = 1 / (max(height, width) - 1)
  row, column = np.divmod(np.arange(grid.size), width)
  coords = np.stack([column - (width - 1) / 2, (height - 1) / 2 - row], axis=-1)
  return (coords * pixel).astype(np.float32), grid.ravel().astype(np.float32), pixel


def load(dataset: str) -> ValueMap:
  """Loads a data set and holds out a fifth of its points, the same in every run.

  Args:
    dataset: one of `DATASETS`.

  Returns:
    The `ValueMap`.

  Raises:
    DataError: if the package is not installed or lacks the file.
  """
  coords, values, pixel = load_points(dataset)
  asinh_scale = _ASINH_SCALES.get(dataset)
  if asinh_scale:
    values = np.arcsinh(values / asinh_scale)
  order = np.random.default_rng(_SPLIT_SEED).permutation(len(coords))
  held_out, train = np.split(order, [int(HELD_OUT * len(coords))])
  mean = float(np.mean(values[train], dtype=np.float64))
  std = float(np.std(values[train], dtype=np.float64))
  values = ((values - mean) / std)[:, None]

  def take(index: np.ndarray) -> Points:
    return Points(coords=jnp.asarray(coords[index]), values=jnp.asarray(values[index]))

  return ValueMap(
    train=take(train),
    held_out=take(held_out),
    unit=_UNITS[dataset],
    mean=mean,
    std=std,
    asinh_scale=asinh_scale,
    pixel=pixel,
  )
