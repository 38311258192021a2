"""Figures of predicted points: curves over one coordinate, or maps over two."""

from collections.abc import Sequence
import dataclasses

from etils import epath
from matplotlib.figure import Figure
import numpy as np

from experiments.figures import style

MAX_AXES = 2
_MAX_DOTS = 20_000  # context points in a picture


@dataclasses.dataclass(frozen=True)
class PointFit:
  """Predictions of a target on a grid, and the context that they were made from.

  Attributes:
    axes: names of C coordinates, C = 1 or 2.
    target: name of the target.
    grid: C arrays, the coordinates along each axis.
    mean: `[n_1]` or `[n_1, n_2]`.
    std: the same.
    low: the same, the lower end of the central 90 % interval.
    high: the same, the upper end.
    context: `[k, C]`, the context points.
    values: `[k]`, the target there.
  """

  axes: Sequence[str]
  target: str
  grid: Sequence[np.ndarray]
  mean: np.ndarray
  std: np.ndarray
  low: np.ndarray
  high: np.ndarray
  context: np.ndarray
  values: np.ndarray


def plot_points(fits: Sequence[PointFit], path: epath.PathLike) -> None:
  """Draws a row for each target: a curve, or maps of context, mean and std.

  Args:
    fits: the targets, all on the same grid.
    path: the PNG file to write.
  """
  one_axis = len(fits[0].axes) == 1
  columns, width, height = (1, 9, 3.6) if one_axis else (3, 15, 4.2)
  figure = Figure(figsize=(width, height * len(fits)), layout="constrained")
  rows = figure.subplots(len(fits), columns, squeeze=False)
  for row, fit in zip(rows, fits, strict=True):
    shown = np.linspace(0, len(fit.context), min(len(fit.context), _MAX_DOTS), False)
    context, values = fit.context[shown.astype(int)], fit.values[shown.astype(int)]
    if one_axis:
      (axes,) = row
      axes.plot(context[:, 0], values, ".", color="k", markersize=3, label="context")
      axes.fill_between(
        fit.grid[0], fit.low, fit.high, color="C0", alpha=0.25, label="90 % interval"
      )
      axes.plot(fit.grid[0], fit.mean, color="C0", label="mean")
      axes.set(xlabel=fit.axes[0], ylabel=fit.target)
      axes.legend(fontsize="small")
      continue
    low, high = np.nanquantile(fit.values, [0.01, 0.99])
    colours = dict(cmap="viridis", vmin=low, vmax=high)
    corners = [end for axis in fit.grid for end in (axis[0], axis[-1])]
    frame = dict(extent=corners, origin="lower", aspect="auto")
    dots = row[0].scatter(*context.T, c=values, s=4, linewidths=0, **colours)
    row[0].set_title(f"{fit.target}: {len(fit.context):,} points")
    mean = row[1].imshow(fit.mean.T, **frame, **colours)
    row[1].set_title("mean")
    std = row[2].imshow(fit.std.T, **frame, cmap="magma", vmin=0)
    row[2].set_title("std")
    for axes, image in zip(row, (dots, mean, std), strict=True):
      axes.set(xlabel=fit.axes[0], ylabel=fit.axes[1])
      axes.set(xlim=corners[:2], ylim=corners[2:])
      axes.locator_params(axis="x", nbins=5)  # long numbers must not overlap
      figure.colorbar(image, ax=axes, shrink=0.8)
  style.save(figure, path)
