"""Elevations as point sets: two data sets, their split, and the sampler.

`fault` is the grid of 344 x 403 elevations around the Jacksboro fault that matplotlib
ships. `airports` are the irregular locations of the package airportsdata. The points of
both have coordinates (east, north) in [-1/2, 1/2], with the same scale on both axes, so
that a Fourier feature of wavelength 2 distinguishes all locations.
"""

import csv
import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.batch import Batch
from experiments.data import packages
import tca_jax

MIN_CONTEXT = 16
NUM_TARGETS = 128  # per window
HELD_OUT = 0.2  # fraction of the points that is excluded from training
METRES_PER_FOOT = 0.3048
_SPLIT_SEED = 0
_NUM_REFERENCE_POINTS = 2048  # points on which the size of a window is measured

# For each data set: the package, the file in it, and the requirement for pip.
_SOURCES = {
  "fault": (
    "matplotlib",
    "mpl-data/sample_data/jacksboro_fault_dem.npz",
    "matplotlib==3.11.2",
  ),
  "airports": ("airportsdata", "airports.csv", "airportsdata==20260905"),
}
DATASETS = tuple(_SOURCES)
# Elevations with outliers are transformed to asinh(elevation / scale), with the scale in
# metres. This is close to linear below the scale and to logarithmic above it.
_ASINH_SCALES = {"airports": 100.0}


@chex.dataclass(frozen=True)
class Points:
  """Points of a map.

  Attributes:
    coords: `[n, 2]` float32, east and north.
    values: `[n, 1]` float32, standardised elevations; see `ElevationMap`.
  """

  coords: jax.Array
  values: jax.Array

  def take_first(self, count: int | None) -> "Points":
    """Returns the first `count` points; None: all points."""
    return jax.tree.map(lambda x: x[:count], self)


@dataclasses.dataclass(frozen=True)
class ElevationMap:
  """A map with a fixed split into training and held-out points.

  Both parts are in random order, so that any prefix is a random sample.

  Attributes:
    train: the `Points` to train on, which also serve as contexts in evaluations.
    held_out: the `Points` that are only predicted, in evaluations.
    mean: the mean of the training points' elevations, by which all elevations are
      standardised. In metres; with an asinh_scale, of asinh(elevation / asinh_scale).
    std: the standard deviation of the same.
    asinh_scale: the elevation in metres above which the transform of elevations is
      close to logarithmic; None: elevations are not transformed.
    pixel: the side of a pixel in pictures of the map, in units of the coordinates.
  """

  train: Points
  held_out: Points
  mean: float
  std: float
  asinh_scale: float | None
  pixel: float

  def for_validation(self) -> "ElevationMap":
    """Returns the map without its held-out part: the last tenth of train replaces it.

    Options are chosen on this map, so that the held-out points measure only the choice.
    """
    count = len(self.train.coords) // 10
    train = jax.tree.map(lambda x: x[:-count], self.train)
    held_out = jax.tree.map(lambda x: x[-count:], self.train)
    return dataclasses.replace(self, train=train, held_out=held_out)

  def to_metres(self, values: jax.typing.ArrayLike) -> np.ndarray:
    """Converts standardised elevations `[n, 1]` to metres, `[n]`."""
    elevation = self.mean + self.std * np.asarray(values)[:, 0]
    if self.asinh_scale:
      return self.asinh_scale * np.sinh(elevation)
    return elevation

  def moments_in_metres(
    self, mean: jax.typing.ArrayLike, std: jax.typing.ArrayLike
  ) -> tuple[np.ndarray, np.ndarray]:
    """Computes moments in metres of Gaussian standardised elevations.

    Args:
      mean: `[n, 1]`, the means of the standardised elevations.
      std: `[n, 1]`, their standard deviations.

    Returns:
      The mean and the standard deviation of the elevations in metres, `[n]` each.
    """
    std = self.std * np.asarray(std, np.float64)[:, 0]  # exp(std**2) is large
    if not self.asinh_scale:
      return self.to_metres(mean), std
    # The moments of scale * sinh(X), X Gaussian: the median is scale * sinh(mean of X).
    median, growth = self.to_metres(mean), np.exp(std**2)
    square = self.asinh_scale**2
    variance = (growth - 1) * (growth * (square + 2 * median**2) + square) / 2
    return np.sqrt(growth) * median, np.sqrt(variance)

  def predicted_in_metres(
    self, predicted: tca_jax.Regression
  ) -> tuple[np.ndarray, np.ndarray]:
    """Computes moments in metres of predicted standardised elevations.

    Args:
      predicted: distributions of `[n, 1]` values.

    Returns:
      The mean and the standard deviation of the elevations in metres, `[n]` each.
    """
    if isinstance(predicted, tca_jax.Gaussian):
      return self.moments_in_metres(predicted.mean, predicted.std)
    moments = [
      self.moments_in_metres(predicted.means[..., k], predicted.stds[..., k])
      for k in range(predicted.means.shape[-1])
    ]
    means, stds = (np.stack(x) for x in zip(*moments, strict=True))
    weights = np.exp(np.asarray(predicted.log_weights, np.float64))[:, 0].T
    mean = np.sum(weights * means, axis=0)
    variance = np.sum(weights * (stds**2 + (means - mean) ** 2), axis=0)
    return mean, np.sqrt(variance)


def load_points(dataset: str) -> tuple[np.ndarray, np.ndarray, float]:
  """Loads all points of a data set.

  The points of `fault` are the pixels of its grid, rows from north to south; its longer
  side spans [-1/2, 1/2]. The coordinates of `airports` are degrees / 360, and a pixel is
  one degree. Airports without a location or an elevation are left out, and so are
  airports at the location of an earlier one.

  Args:
    dataset: one of `DATASETS`.

  Returns:
    Coordinates, `[n, 2]` float32; elevations in metres, `[n]` float32; the side of a
    pixel, in units of the coordinates.

  Raises:
    DataError: if the package is not installed or lacks the file.
  """
  path = packages.find_file(*_SOURCES[dataset])
  if dataset == "fault":
    with np.load(path) as file:
      grid = file["elevation"]
    height, width = grid.shape
    pixel = 1 / (max(height, width) - 1)
    row, column = np.divmod(np.arange(grid.size), width)
    coords = np.stack([column - (width - 1) / 2, (height - 1) / 2 - row], axis=-1)
    return (coords * pixel).astype(np.float32), grid.ravel().astype(np.float32), pixel
  with path.open(encoding="utf-8", newline="") as file:
    cells = [[row["lon"], row["lat"], row["elevation"]] for row in csv.DictReader(file)]
  table = np.array([row for row in cells if all(row)], np.float64)
  coords = (table[:, :2] / 360).astype(np.float32)
  elevation = (table[:, 2] * METRES_PER_FOOT).astype(np.float32)
  _, first = np.unique(coords, axis=0, return_index=True)
  first.sort()
  return coords[first], elevation[first], 1 / 360


def load(dataset: str) -> ElevationMap:
  """Loads a data set and holds out a fifth of its points, the same in every run.

  Args:
    dataset: one of `DATASETS`.

  Returns:
    The `ElevationMap`.

  Raises:
    DataError: if the package is not installed or lacks the file.
  """
  coords, elevation, pixel = load_points(dataset)
  asinh_scale = _ASINH_SCALES.get(dataset)
  if asinh_scale:
    elevation = np.arcsinh(elevation / asinh_scale)
  order = np.random.default_rng(_SPLIT_SEED).permutation(len(coords))
  held_out, train = np.split(order, [int(HELD_OUT * len(coords))])
  mean = float(np.mean(elevation[train], dtype=np.float64))
  std = float(np.std(elevation[train], dtype=np.float64))
  values = ((elevation - mean) / std)[:, None]

  def take(index: np.ndarray) -> Points:
    return Points(coords=jnp.asarray(coords[index]), values=jnp.asarray(values[index]))

  return ElevationMap(
    train=take(train),
    held_out=take(held_out),
    mean=mean,
    std=std,
    asinh_scale=asinh_scale,
    pixel=pixel,
  )


def sample(
  rng: jax.Array,
  train: Points,
  held_out: Points | None,
  batch_size: int,
  num_context: int,
  whole_map: jax.typing.ArrayLike = 0.0,
  densest: float = 0.0,
  full_context: float = 0.0,
) -> Batch:
  """Draws windows of a map, and the context and target points of each.

  A window is a square around a training point; see `draw_windows`. Each has 128 targets
  and a number of context points that is uniform on [16, num_context]. All points of a
  window are distinct.

  Args:
    rng: a random key, consumed.
    train: the `Points` from which contexts are drawn.
    held_out: the `Points` from which targets are drawn; None: train.
    batch_size: B.
    num_context: N, the maximum number of context points, at least 16.
    whole_map: the probability that a window is enlarged to the whole map.
    densest: the probability that a window is of the smallest size, whose context can
      be as dense as the map; see `draw_windows`.
    full_context: the probability that a context has num_context points.

  Returns:
    A `Batch` with M = 128, C = 2 and E = 1.
  """
  window_rng, size_rng, context_rng, target_rng, whole_rng = jax.random.split(rng, 5)
  min_share = min((num_context + NUM_TARGETS) / len(train.coords), 1)
  centre, half_width = draw_windows(
    window_rng, train.coords, batch_size, min_share, densest
  )
  whole = jax.random.bernoulli(whole_rng, whole_map, (batch_size,))
  half_width = jnp.where(whole, jnp.inf, half_width)
  if held_out is None:
    chosen = draw_points(
      context_rng, train.coords, centre, half_width, NUM_TARGETS + num_context
    )
    target, context = jnp.split(chosen, [NUM_TARGETS], axis=1)
    held_out = train
  else:
    target = draw_points(target_rng, held_out.coords, centre, half_width, NUM_TARGETS)
    context = draw_points(context_rng, train.coords, centre, half_width, num_context)
  count = jax.random.randint(size_rng, (batch_size, 1), MIN_CONTEXT, num_context + 1)
  full_rng = jax.random.fold_in(size_rng, 0)
  full = jax.random.bernoulli(full_rng, full_context, (batch_size, 1))
  count = jnp.where(full, num_context, count)
  return Batch(
    coords=train.coords[context],
    values=train.values[context],
    mask=jnp.arange(num_context) < count,
    query_coords=held_out.coords[target],
    targets=held_out.values[target],
    query_mask=jnp.ones((batch_size, NUM_TARGETS), bool),
  )


def draw_windows(
  rng: jax.Array,
  coords: jax.Array,
  batch_size: int,
  min_share: float,
  smallest: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
  """Draws square windows around points, of all sizes.

  The share of points inside a window is log-uniform on (min_share, 1]. A context is
  therefore a sparse sample of a large window, and may contain every point of a small
  one. The share is measured on the first 2,048 points.

  Args:
    rng: a random key, consumed.
    coords: `[n, 2]` in random order.
    batch_size: B.
    min_share: the smallest share.
    smallest: the probability that a window has exactly the smallest share.

  Returns:
    The centres, `[B, 2]`, and half the sides, `[B]`.
  """
  centre_rng, share_rng = jax.random.split(rng)
  centre = coords[jax.random.randint(centre_rng, (batch_size,), 0, len(coords))]
  power = jax.random.uniform(share_rng, (batch_size,)) / (1 - smallest)
  share = min_share ** jnp.minimum(power, 1)
  distances = jnp.sort(_distance(coords[:_NUM_REFERENCE_POINTS], centre))
  count = distances.shape[1]
  rank = jnp.minimum(jnp.int32(share * count), count - 1)
  return centre, jnp.take_along_axis(distances, rank[:, None], axis=1)[:, 0]


def draw_points(
  rng: jax.Array,
  coords: jax.Array,
  centre: jax.Array,
  half_width: jax.Array,
  count: int,
) -> jax.Array:
  """Draws distinct points of windows, in random order.

  If a window contains fewer than `count` points, all of them come first, followed by
  the nearest points outside of it.

  Args:
    rng: a random key, consumed.
    coords: `[n, 2]`.
    centre: `[B, 2]`, the centres of the windows.
    half_width: `[B]`, half the sides of the windows.
    count: the number of points to draw for each window.

  Returns:
    The indices of the points, `[B, count]` int32.
  """
  distance = _distance(coords, centre)
  noise = jax.random.uniform(rng, distance.shape)
  rank = jnp.where(distance <= half_width[:, None], noise, 1 + distance)
  chosen = jax.lax.top_k(-rank, count)[1]
  # Without the barrier XLA sorts all points if a caller slices the result.
  return jax.lax.optimization_barrier(chosen)


def _distance(coords: jax.Array, centre: jax.Array) -> jax.Array:
  """Computes distances in the maximum norm, whose balls are squares, `[B, n]`."""
  # One array per axis: a CPU is slow at trailing axes of size two.
  east, north = (
    jnp.abs(x - at[:, None]) for x, at in zip(coords.T, centre.T, strict=True)
  )
  return jnp.maximum(east, north)
