"""Figure of a completed map and of the nodes that a query read."""

import dataclasses

from etils import epath
from matplotlib import patches
from matplotlib.figure import Figure
import numpy as np

from experiments.figures import style


@dataclasses.dataclass(frozen=True)
class MapFit:
  """A map, its prediction from some of its points, and the nodes one query read.

  Attributes:
    unit: the unit of the map's values, such as "m".
    coords: `[n, 2]`, east and north, the points predicted.
    truth: `[n]`, in the unit.
    mean: `[n]`, in the unit, predicted.
    std: `[n]`, in the unit, predicted.
    context: `[k, 2]`, the context points.
    context_values: `[k]`, in the unit.
    query: `[2]`, the location of one query.
    boxes: for each node the query read, its level and the points it contains,
      `[m, 2]`.
    depth: the depth of the tree.
    pixel: the side of a pixel, in units of the coordinates.
  """

  unit: str
  coords: np.ndarray
  truth: np.ndarray
  mean: np.ndarray
  std: np.ndarray
  context: np.ndarray
  context_values: np.ndarray
  query: np.ndarray
  boxes: list[tuple[int, np.ndarray]]
  depth: int
  pixel: float


def plot_map(fit: MapFit, path: epath.PathLike) -> None:
  """Draws a map: truth, context, mean, std, and the nodes one query read.

  Args:
    fit: the map.
    path: the PNG file to write.
  """
  titles = (
    "truth",
    f"context, {len(fit.context):,} of {len(fit.coords):,} points",
    "mean",
    "std",
    "read by one query",
  )
  figure = Figure(figsize=(20, 4), layout="constrained")
  (row,) = figure.subplots(1, len(titles), squeeze=False)
  low, high = fit.coords.min(0) - fit.pixel / 2, fit.coords.max(0) + fit.pixel / 2
  frame = dict(extent=(low[0], high[0], low[1], high[1]), origin="lower")
  cmap = "terrain" if fit.unit == "m" else "gray"
  colours = dict(cmap=cmap, vmin=fit.truth.min(), vmax=fit.truth.max())
  truth, mean, std = (
    raster(fit.coords, x, fit.pixel) for x in (fit.truth, fit.mean, fit.std)
  )
  row[0].imshow(truth, **frame, **colours)
  row[1].scatter(*fit.context.T, c=fit.context_values, s=4, linewidths=0, **colours)
  mean_image = row[2].imshow(mean, **frame, **colours)
  std_image = row[3].imshow(std, **frame, cmap="magma", vmin=0)
  row[4].imshow(truth, **frame, cmap="gray", alpha=0.45)
  for level, points in fit.boxes:
    color = style.LEVELS(level / fit.depth)
    if len(points) == 1:
      row[4].plot(*points.T, "o", color=color, markersize=5)
      continue
    corner, sides = points.min(0), np.ptp(points, axis=0)
    row[4].add_patch(patches.Rectangle(corner, *sides, fill=False, color=color, lw=1.8))
  row[4].plot(*fit.query, "x", color=style.RED, ms=9, mew=2.5)
  for axes, title in zip(row, titles, strict=True):
    axes.set(title=title, xticks=[], yticks=[], aspect="equal")
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
  figure.colorbar(mean_image, ax=row[:3], label=f"mean, {fit.unit}", shrink=0.7)
  figure.colorbar(std_image, ax=row[3], label=f"std, {fit.unit}", shrink=0.7)
  figure.supxlabel(
    "x: the query; boxes: the nodes of the tree it read, dark near the root; dots:"
    " single points",
    fontsize=9,
  )
  style.save(figure, path)


def raster(coords: np.ndarray, values: np.ndarray, pixel: float) -> np.ndarray:
  """Averages values over the pixels of a grid.

  Args:
    coords: `[n, 2]`, east and north.
    values: `[n]`.
    pixel: the side of a pixel, in units of the coordinates.

  Returns:
    `[rows, columns]`, rows from south to north; NaN in pixels without a point.

  >>> raster(np.array([[0, 0], [1, 0], [1.1, 0]]), np.array([1, 2, 4]), 1).tolist()
  [[1.0, 3.0]]
  """
  column, row = np.rint((coords - coords.min(0)) / pixel).astype(int).T
  shape = row.max() + 1, column.max() + 1
  index = np.ravel_multi_index((row, column), shape)
  count, total = (
    np.bincount(index, weights, minlength=shape[0] * shape[1])
    for weights in (None, values)
  )
  mean = np.full(count.shape, np.nan)
  np.divide(total, count, out=mean, where=count > 0)
  return mean.reshape(shape)
