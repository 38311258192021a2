"""Real elevations as sets of points: two data sets, their split, and the sampler.

`fault` is the grid of 344 x 403 elevations around the Jacksboro fault that matplotlib
ships; `airports` are the places of the package airportsdata, which lie irregularly.
Both become points (east, north) within [-1/2, 1/2], on one scale for both axes: waves of
length 2 then tell all of them apart.
"""

import csv
import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.task import Batch
from experiments.data import packages

MIN_CONTEXT = 16
NUM_TARGETS = 128  # of a window
HELD_OUT = 0.2  # the share of the points that no training sees
METRES_PER_FOOT = 0.3048
_SPLIT_SEED = 0
_RULER = 2048  # points by whose distances the size of a window is told

# By data set: the package that holds it, the file within it, and what pip installs.
_SOURCES = {
  "fault": (
    "matplotlib",
    "mpl-data/sample_data/jacksboro_fault_dem.npz",
    "matplotlib==3.11.2",
  ),
  "airports": ("airportsdata", "airports.csv", "airportsdata==20260905"),
}
DATASETS = tuple(_SOURCES)
# Elevations with outliers are learnt as asinh(elevation / so many metres): about linear
# up to there, logarithmic above.
_BEND = {"airports": 100.0}


@chex.dataclass(frozen=True)
class Points:
  """Points of a map.

  Attributes:
    coords: `[n, 2]` float32, east and north.
    values: `[n, 1]` float32, the elevation on the scale of `Terrain`.
  """

  coords: jax.Array
  values: jax.Array

  def first(self, count: int | None) -> "Points":
    """As many of them; None: all."""
    return jax.tree.map(lambda x: x[:count], self)


@dataclasses.dataclass(frozen=True)
class Terrain:
  """A map, split for good; both parts are in random order, so any prefix is a sample.

  Attributes:
    train: its `Points` to learn from and to give as context.
    held_out: those that are only ever predicted, in evaluations.
    mean: of the training points' elevations, which standardises all: in metres, or if
      there is a bend, of asinh(elevation / bend).
    std: of the same.
    bend: metres above which the scale of elevations is about logarithmic; None: it is
      linear.
    pixel: the side of a pixel in pictures of the map, in units of the coordinates.
  """

  train: Points
  held_out: Points
  mean: float
  std: float
  bend: float | None
  pixel: float

  def metres(self, values: jax.typing.ArrayLike) -> np.ndarray:
    """Elevations `[n, 1]` as `Points` hold them, in metres, `[n]`."""
    elevation = self.mean + self.std * np.asarray(values)[:, 0]
    return self.bend * np.sinh(elevation) if self.bend else elevation

  def moments(
    self, mean: jax.typing.ArrayLike, std: jax.typing.ArrayLike
  ) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the std, in metres, of elevations that are Gaussian on the scale.

    Args:
      mean: `[n, 1]`, on the scale of `Points`.
      std: `[n, 1]`.

    Returns:
      Both `[n]`.
    """
    std = self.std * np.asarray(std, np.float64)[:, 0]  # its exponential is large
    if not self.bend:
      return self.metres(mean), std
    # Of bend * sinh of a Gaussian, whose median is this.
    median, growth = self.metres(mean), np.exp(std**2)
    square = self.bend**2
    variance = (growth - 1) * (growth * (square + 2 * median**2) + square) / 2
    return np.sqrt(growth) * median, np.sqrt(variance)


def load_points(dataset: str) -> tuple[np.ndarray, np.ndarray, float]:
  """All points of a data set.

  A grid's pixels are its points, rows from north to south; the longer side spans
  [-1/2, 1/2]. Of airports, longitude and latitude are degrees / 360, a pixel is a degree,
  and those without a place or an elevation, or at another one's place, are left out.

  Args:
    dataset: one of `DATASETS`.

  Returns:
    Coordinates, `[n, 2]` float32; elevations in metres, `[n]` float32; the side of a
    pixel.

  Raises:
    DataError: if the data cannot be found.
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


def load(dataset: str) -> Terrain:
  """A data set, a fifth of its points held out at random, always the same ones.

  Args:
    dataset: one of `DATASETS`.

  Raises:
    DataError: if the data cannot be found.
  """
  coords, elevation, pixel = load_points(dataset)
  bend = _BEND.get(dataset)
  if bend:
    elevation = np.arcsinh(elevation / bend)
  order = np.random.default_rng(_SPLIT_SEED).permutation(len(coords))
  held_out, train = np.split(order, [int(HELD_OUT * len(coords))])
  mean = float(np.mean(elevation[train], dtype=np.float64))
  std = float(np.std(elevation[train], dtype=np.float64))
  values = ((elevation - mean) / std)[:, None]

  def take(index: np.ndarray) -> Points:
    return Points(coords=jnp.asarray(coords[index]), values=jnp.asarray(values[index]))

  return Terrain(
    train=take(train),
    held_out=take(held_out),
    mean=mean,
    std=std,
    bend=bend,
    pixel=pixel,
  )


def sample(
  rng: jax.Array,
  train: Points,
  held_out: Points | None,
  batch_size: int,
  num_context: int,
  whole_map: jax.typing.ArrayLike = 0.0,
) -> Batch:
  """Draws windows of the map, and context and target points of each.

  A window is a square around a training point; see `draw_windows`. It has 128 targets
  and a number of context points that is uniform on [16, num_context], all distinct.

  Args:
    rng: consumed.
    train: the `Points` that contexts are drawn from.
    held_out: the `Points` that targets are drawn from; None means train.
    batch_size: B.
    num_context: N, at least 16.
    whole_map: the share of windows that hold all points.

  Returns:
    A `Batch` with M = 128, C = 2 and E = 1.
  """
  window_rng, size_rng, context_rng, target_rng, whole_rng = jax.random.split(rng, 5)
  least = min((num_context + NUM_TARGETS) / len(train.coords), 1)
  centre, reach = draw_windows(window_rng, train.coords, batch_size, least)
  whole = jax.random.bernoulli(whole_rng, whole_map, (batch_size,))
  reach = jnp.where(whole, jnp.inf, reach)
  if held_out is None:
    chosen = draw_points(
      context_rng, train.coords, centre, reach, NUM_TARGETS + num_context
    )
    target, context = jnp.split(chosen, [NUM_TARGETS], axis=1)
    held_out = train
  else:
    target = draw_points(target_rng, held_out.coords, centre, reach, NUM_TARGETS)
    context = draw_points(context_rng, train.coords, centre, reach, num_context)
  count = jax.random.randint(size_rng, (batch_size, 1), MIN_CONTEXT, num_context + 1)
  return Batch(
    coords=train.coords[context],
    values=train.values[context],
    mask=jnp.arange(num_context) < count,
    query_coords=held_out.coords[target],
    targets=held_out.values[target],
    query_mask=jnp.ones((batch_size, NUM_TARGETS), bool),
  )


def draw_windows(
  rng: jax.Array, coords: jax.Array, batch_size: int, least: float
) -> tuple[jax.Array, jax.Array]:
  """Draws square windows around points, with points of all densities within them.

  The share of all points that a window holds is log-uniform on (least, 1]. So a
  window of the whole map is seen through a few points of many, and one of `least`
  may be seen in full. The share is measured on 2,048 of the points.

  Args:
    rng: consumed.
    coords: `[n, 2]` in random order.
    batch_size: B.
    least: the smallest share.

  Returns:
    The centres, `[B, 2]`, and half the sides, `[B]`.
  """
  centre_rng, share_rng = jax.random.split(rng)
  centre = coords[jax.random.randint(centre_rng, (batch_size,), 0, len(coords))]
  share = least ** jax.random.uniform(share_rng, (batch_size,))
  ruler = jnp.sort(_distance(coords[:_RULER], centre))
  place = jnp.minimum(jnp.int32(share * ruler.shape[1]), ruler.shape[1] - 1)
  return centre, jnp.take_along_axis(ruler, place[:, None], axis=1)[:, 0]


def draw_points(
  rng: jax.Array,
  coords: jax.Array,
  centre: jax.Array,
  reach: jax.Array,
  count: int,
) -> jax.Array:
  """Draws distinct points of windows, in random order.

  A window of too few points gives all, and behind them the nearest around it.

  Args:
    rng: consumed.
    coords: `[n, 2]`.
    centre: `[B, 2]`, of the windows.
    reach: `[B]`, half their sides.
    count: of the points to draw from each.

  Returns:
    `[B, count]` int32.
  """
  distance = _distance(coords, centre)
  noise = jax.random.uniform(rng, distance.shape)
  rank = jnp.where(distance <= reach[:, None], noise, 1 + distance)
  chosen = jax.lax.top_k(-rank, count)[1]
  # Else XLA sorts all points, if the caller takes parts of what is chosen.
  return jax.lax.optimization_barrier(chosen)


def _distance(coords: jax.Array, centre: jax.Array) -> jax.Array:
  """`[B, n]`, in the maximum norm, whose circles are squares."""
  # Axes apart: a CPU is slow at axes of two.
  east, north = (
    jnp.abs(x - at[:, None]) for x, at in zip(coords.T, centre.T, strict=True)
  )
  return jnp.maximum(east, north)
