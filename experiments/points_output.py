"""Files of predictions: a table with more columns, or a grid with a picture."""

from collections.abc import Callable
from collections.abc import Mapping

from etils import epath
import numpy as np

from experiments import points_prediction
from experiments.common.errors import ConfigError
from experiments.data import point_tables
from experiments.figures import points as points_figure

_GRID = "grid:"


def write_predictions(
  load: Callable[[], points_prediction.Predictor],
  at: str,
  out: epath.Path | None,
  folder: epath.Path,
  missing: points_prediction.Missing = "drop",
) -> list[epath.Path]:
  """Predicts at a table's rows or at a grid, and writes the result.

  Args:
    load: loads the model with its context, once the other arguments are checked.
    at: path of a table, or a grid such as "grid:200x200".
    out: path of the result; None: predictions.csv or grid.npz in the folder.
    folder: the folder of the result.
    missing: see `points_prediction.at_rows`.

  Returns:
    The files written. A grid of one or two axes also has a picture.

  Raises:
    UserError: if the model, a table or a path cannot be used.
  """
  if not at.startswith(_GRID):
    out = out or folder / "predictions.csv"
    point_tables.check_format(out)
    predictor = load()
    frame = points_prediction.at_rows(predictor, at, missing)
    point_tables.write(out, frame, predictor.columns)
    return [out]
  out = out or folder / "grid.npz"
  if out.suffix.lower() != ".npz":
    raise ConfigError(f"the file of a grid must end in .npz, got {out}")
  sizes = at.removeprefix(_GRID).split("x")
  if not all(size.isdecimal() and int(size) for size in sizes):
    raise ConfigError(f"a grid must be like {_GRID}200x200, got {at!r}")
  predictor = load()
  names = predictor.scaling.coords
  if len(sizes) != len(names):
    raise ConfigError(
      f"{at} has {len(sizes)} axes, and the model {len(names)}: {', '.join(names)}"
    )
  grid = points_prediction.Grid.over(predictor.coords, [int(size) for size in sizes])
  columns = predictor.on(grid)
  axes = dict(zip(names, grid.axes, strict=True))
  point_tables.write_npz(out, axes | columns)
  if len(names) > points_figure.MAX_AXES:
    return [out]
  picture = out.with_suffix(".png")
  draw(predictor, grid, columns, picture)
  return [out, picture]


def draw(
  predictor: points_prediction.Predictor,
  grid: points_prediction.Grid,
  columns: Mapping[str, np.ndarray],
  path: epath.Path,
) -> None:
  """Draws predictions on a grid of one or two axes, and the context.

  Args:
    predictor: the model and its context.
    grid: the locations.
    columns: the result of `Predictor.on`.
    path: the PNG file to write.
  """
  fits = [
    points_figure.PointFit(
      axes=predictor.scaling.coords,
      target=target,
      grid=grid.axes,
      context=predictor.coords,
      values=predictor.values[:, i],
      **{name: columns[f"{target}_{name}"] for name in points_prediction.STATISTICS},
    )
    for i, target in enumerate(predictor.scaling.targets)
  ]
  points_figure.plot_points(fits, path)
