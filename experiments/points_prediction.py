"""Predictions of a model that `experiments.points` has trained, in units of the table."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import typing

from etils import epath
import jax
import numpy as np

from experiments.common import systems
from experiments.common.errors import CheckpointError
from experiments.common.errors import ConfigError
from experiments.common.errors import DataError
from experiments.data import point_sets
from experiments.data import point_tables
from experiments.figures import points as points_figure
import tca_jax
from tca_jax import checkpoint
from tca_jax import serving

MODEL = "model"  # the saved model in a workdir
INFO = "points"  # the scaling in the info of a saved model
STATISTICS = ("mean", "std", "low", "high")
_LEVELS = (0.05, 0.95)  # of low and high: the central interval of 90 %
_QUERIES = 256  # read together; see `systems.Reader`
_GRID = "grid:"
_CHUNK = 2**17  # queries whose distributions are in memory together

Missing = typing.Literal["drop", "error"]


@dataclasses.dataclass(frozen=True)
class Grid:
  """A grid of locations.

  Attributes:
    axes: C arrays, `[n_i]` float64, in units of the table.
  """

  axes: list[np.ndarray]

  @classmethod
  def over(cls, coords: np.ndarray, sizes: Sequence[int]) -> "Grid":
    """The grid of given sizes over the range of coordinates `[n, C]`."""
    ends = zip(coords.min(axis=0), coords.max(axis=0), sizes, strict=True)
    return cls([np.linspace(low, high, size) for low, high, size in ends])

  @property
  def coords(self) -> np.ndarray:
    """`[product of n_i, C]`; the last axis varies fastest."""
    return np.stack(np.meshgrid(*self.axes, indexing="ij"), -1).reshape(
      -1, len(self.axes)
    )


class Predictor:
  """A trained model and a context.

  Attributes:
    scaling: the columns of the model, and how it sees them.
    coords: `[n, C]` float64, the context's coordinates in units of its table.
    values: `[n, E]` float64, its values.
  """

  def __init__(
    self,
    model: tca_jax.ReTreever,
    params: typing.Any,
    scaling: point_sets.Scaling,
    coords: np.ndarray,
    values: np.ndarray,
  ):
    """Builds the memory of the context.

    Args:
      model: a relative model.
      params: its parameters.
      scaling: the columns of the model, and how it sees them.
      coords: `[n, C]`, in units of the table.
      values: `[n, E]`.
    """
    self.scaling, self.coords, self.values = scaling, coords, values
    points = scaling.points(coords, values)
    given = systems.trees_for_index(model, points.coords)
    apply: typing.Any = model.apply  # the type that it returns depends on the method
    index = jax.jit(functools.partial(apply, method="index"))
    memory = index(params, points.coords[None], points.values[None], **given)

    def read(memory: typing.Any, coords: jax.Array) -> typing.Any:
      output = apply(params, memory, coords, method="read").output
      return output, [output.quantile(level) for level in _LEVELS]

    self._server = serving.Server(read, memory, sizes=(1, _QUERIES))

  def __call__(self, coords: np.ndarray) -> dict[str, np.ndarray]:
    """Predicts at coordinates.

    Args:
      coords: `[m, C]`, in units of the table.

    Returns:
      For each target and each of `STATISTICS` an array `[m]` float64, in units of the
      target, by the name "target_statistic". "low" and "high" are the ends of the central
      90 % interval.
    """
    locations = self.scaling.locations(coords)
    parts = [
      self._predict(locations[i : i + _CHUNK]) for i in range(0, len(coords), _CHUNK)
    ]
    count = len(self.columns)
    columns = np.concatenate(parts, axis=1) if parts else np.zeros((count, 0))
    return dict(zip(self.columns, columns, strict=True))

  @property
  def columns(self) -> list[str]:
    """The names in the result of a call."""
    return [f"{x}_{name}" for x in self.scaling.targets for name in STATISTICS]

  def on(self, grid: Grid) -> dict[str, np.ndarray]:
    """Predicts on a grid; as a call, with arrays `[n_1, ..., n_C]`."""
    shape = [len(axis) for axis in grid.axes]
    return {name: x.reshape(shape) for name, x in self(grid.coords).items()}

  def _predict(self, locations: np.ndarray) -> np.ndarray:
    """Predicts at `[m, C]` scaled locations; `[4 E, m]`, in units."""
    output, ends = jax.tree.map(lambda x: x[0], self._server(locations[None]))
    columns = []
    for i in range(len(self.scaling.targets)):
      target = self.scaling.value_map(i)
      one, *quantiles = (
        jax.tree.map(lambda x, i=i: np.float64(x[:, i : i + 1]), x)
        for x in (output, *ends)
      )
      columns += target.predicted_in_units(one)
      columns += [target.to_units(x) for x in quantiles]
    return np.stack(columns)


def load(
  workdir: epath.PathLike,
  table: typing.Any = None,
  missing: Missing = "drop",
) -> Predictor:
  """Loads a trained model, with a table as its context.

  Args:
    workdir: folder of a run or of an exported run, or of its saved model.
    table: the context, see `point_tables.read`; None: the table of the training, with
      its held-out rows.
    missing: what to do with rows of the table that lack numbers.

  Raises:
    CheckpointError: if there is no saved model of this task.
    DataError: if the table cannot be used.
  """
  model, params, info = _load(epath.Path(workdir))
  if table is None:
    table = info[INFO]["table"]
  scaling = point_sets.Scaling.from_json(info[INFO]["scaling"])
  rows = point_tables.read(table)
  coords, values, _ = point_sets.numbers(rows, scaling.coords, scaling.targets, missing)
  for i, name in enumerate(scaling.targets):
    if scaling.log[i] and values[:, i].min() <= 0:
      raise DataError(
        f"{rows.name}: the column {name!r} must be above 0, because the model has"
        " learned its logarithm"
      )
  return Predictor(model, params, scaling, coords, values)


def _load(workdir: epath.Path) -> tuple[typing.Any, typing.Any, dict[str, typing.Any]]:
  """The saved model of a workdir."""
  found = [x for x in (workdir, workdir / MODEL) if (x / checkpoint.FILE).exists()]
  if not found:
    raise CheckpointError(
      f"{workdir} has no trained model of points; --mode=train makes one"
    )
  try:
    model, params, info = tca_jax.load(found[0])
  except (OSError, ValueError) as error:
    raise CheckpointError(str(error)) from error
  if INFO not in info:
    raise CheckpointError(f"{found[0]} is a model of another task than points")
  return model, params, info


def predict(
  workdir: epath.PathLike,
  at: typing.Any,
  table: typing.Any = None,
  missing: Missing = "drop",
) -> typing.Any:
  """Predicts the targets at the rows of a table.

  Args:
    workdir: see `load`.
    at: the rows, see `point_tables.read`; only their coordinates are used.
    table: the context, see `load`.
    missing: what to do with rows that lack numbers. With "drop", rows of the context are
      left out, and rows of `at` stay, without a prediction.

  Returns:
    A `pandas.DataFrame`: the rows of `at` in their order with all their columns, and for
    each target the columns of `Predictor.__call__`.

  Raises:
    UserError: if the model or a table cannot be used.
  """
  return _at_rows(load(workdir, table, missing), at, missing)


def _at_rows(predictor: Predictor, at: typing.Any, missing: Missing) -> typing.Any:
  """See `predict`."""
  rows, names = point_tables.read(at), predictor.scaling.coords
  coords = rows.numbers(names, dates=True)
  rows.check_angles(names, coords)
  complete = rows.complete_rows(coords, missing, "they have no prediction")
  frame = rows.frame.copy()
  for name, column in predictor(coords[complete]).items():
    if name in frame:
      raise DataError(f"{rows.name} already has a column {name!r}; rename it")
    values = np.full(len(rows), np.nan)
    values[complete] = column
    frame[name] = values
  return frame


def write_predictions(
  workdir: epath.Path,
  at: str,
  out: epath.Path | None = None,
  table: str | None = None,
  missing: Missing = "drop",
) -> list[epath.Path]:
  """Predicts at a table's rows or at a grid, and writes the result.

  Args:
    workdir: see `load`.
    at: path of a table, or a grid such as "grid:200x200".
    out: path of the result; None: predictions.csv or grid.npz in the workdir.
    table: the context, see `load`.
    missing: see `predict`.

  Returns:
    The files written. A grid of one or two axes also has a picture.

  Raises:
    UserError: if the model, a table or a path cannot be used.
  """
  if not at.startswith(_GRID):
    out = out or workdir / "predictions.csv"
    point_tables.check_format(out)
    predictor = load(workdir, table, missing)
    point_tables.write(out, _at_rows(predictor, at, missing), predictor.columns)
    return [out]
  out = out or workdir / "grid.npz"
  if out.suffix.lower() != ".npz":
    raise ConfigError(f"the file of a grid must end in .npz, got {out}")
  sizes = at.removeprefix(_GRID).split("x")
  if not all(size.isdecimal() and int(size) for size in sizes):
    raise ConfigError(f"a grid must be like {_GRID}200x200, got {at!r}")
  predictor = load(workdir, table, missing)
  names = predictor.scaling.coords
  if len(sizes) != len(names):
    raise ConfigError(
      f"{at} has {len(sizes)} axes, and the model {len(names)}: {', '.join(names)}"
    )
  grid = Grid.over(predictor.coords, [int(size) for size in sizes])
  columns = predictor.on(grid)
  axes = dict(zip(names, grid.axes, strict=True))
  point_tables.write_npz(out, axes | columns)
  if len(names) > points_figure.MAX_AXES:
    return [out]
  picture = out.with_suffix(".png")
  draw(predictor, grid, columns, picture)
  return [out, picture]


def draw(
  predictor: Predictor,
  grid: Grid,
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
      **{name: columns[f"{target}_{name}"] for name in STATISTICS},
    )
    for i, target in enumerate(predictor.scaling.targets)
  ]
  points_figure.plot_points(fits, path)
