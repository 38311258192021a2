"""Figure of a map whose points arrive: predictions and errors at several times."""

from collections.abc import Sequence
import dataclasses
import typing

from etils import epath
from matplotlib import colors
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from experiments.figures import style
from experiments.figures.elevation import raster

# Errors of stream.json, with the title and the style of their curves.
_CURVES: dict[str, tuple[str, dict[str, typing.Any]]] = {
  "rmse": ("memory that grows", dict(color=style.RED, linewidth=2.5)),
  "new_rmse": ("new memory", dict(color="k", linestyle=":", linewidth=2)),
  "linear_rmse": ("linear interpolation", dict(color=style.OTHERS[0], linewidth=1.2)),
}


@dataclasses.dataclass(frozen=True)
class StreamedMap:
  """A map, and what was predicted while its points arrived.

  Attributes:
    unit: the unit of the map's values, such as "m".
    pixel: the side of a pixel, in units of the coordinates.
    coords: `[n, 2]`, east and north, the points predicted.
    truth: `[n]`, in the unit.
    maps: for each number of points, the mean and the standard deviation, `[n]` in the
      unit.
    rows: the rows of stream.json, in the order of the maps.
  """

  unit: str
  pixel: float
  coords: np.ndarray
  truth: np.ndarray
  maps: Sequence[tuple[np.ndarray, np.ndarray]]
  rows: Sequence[dict[str, typing.Any]]


def plot_stream(streamed: StreamedMap, path: epath.PathLike) -> None:
  """Draws the map at each number of points, its uncertainty, and the errors.

  Args:
    streamed: the map.
    path: the PNG file to write.
  """
  columns = len(streamed.maps) + 1
  figure = Figure(figsize=(2.7 * columns, 4.9), layout="constrained")
  grid = figure.subplots(2, columns, squeeze=False)
  cmap = "terrain" if streamed.unit == "m" else "gray"
  low, high = streamed.truth.min(), streamed.truth.max()
  colours = dict(cmap=cmap, vmin=low, vmax=high)
  least, most = (
    np.quantile(streamed.maps[i][1], q) for i, q in ((-1, 0.02), (0, 0.98))
  )
  uncertain = dict(cmap="magma", norm=colors.LogNorm(least, most, clip=True))

  def show(axes: Axes, values: np.ndarray, title: str, **options: typing.Any):
    image = raster(streamed.coords, values, streamed.pixel)
    axes.set(title=title, xticks=[], yticks=[])
    return axes.imshow(image, origin="lower", **options)

  show(grid[0, 0], streamed.truth, "truth", **colours)
  _plot_errors(grid[1, 0], streamed)
  images: list[typing.Any] = []
  shown = zip(streamed.rows, streamed.maps, strict=True)
  for i, (row, (mean, std)) in enumerate(shown, start=1):
    title = f"{row['num_points']:,} points"
    images = [
      show(grid[0, i], mean, f"{title}: mean", **colours),
      show(grid[1, i], std, f"{title}: std", **uncertain),
    ]
  for image, line, name in zip(images, grid, ("mean", "std"), strict=True):
    figure.colorbar(image, ax=line, label=f"{name}, {streamed.unit}")
  style.save(figure, path)


def _plot_errors(axes: Axes, streamed: StreamedMap) -> None:
  """Draws the errors of held-out points against the number of points."""
  sizes = [row["num_points"] for row in streamed.rows]
  for name, (title, line) in _CURVES.items():
    errors = [row[name] for row in streamed.rows]
    axes.plot(sizes, errors, marker=".", label=title, **line)
  axes.set(xscale="log", yscale="log", xlabel="points", title=f"RMSE, {streamed.unit}")
  axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
  axes.yaxis.set_minor_locator(ticker.NullLocator())
  axes.grid(alpha=0.3)
  axes.legend(fontsize="small")
