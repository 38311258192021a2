"""Predictions for tables of points, in units of the table.

A model is one that `experiments.points` has trained on a table, with its columns; or the
pretrained model of `experiments.surfaces`, for any table with two coordinates.
"""

from collections.abc import Sequence
import dataclasses
import functools
import typing

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import paths
from experiments.common import systems
from experiments.common.errors import CheckpointError
from experiments.common.errors import ConfigError
from experiments.common.errors import DataError
from experiments.data import point_sets
from experiments.data import point_tables
from experiments.data import random_surfaces
import tca_jax
from tca_jax import checkpoint
from tca_jax import serving

MODEL = "model"  # the saved model in a workdir
INFO = "points"  # the scaling in the info of a saved model
STATISTICS = ("mean", "std", "low", "high")
_LEVELS = (0.05, 0.95)  # of low and high: the central interval of 90 %
_QUERIES = 256  # read together; see `systems.Reader`
_CHUNK = 2**17  # queries whose distributions are in memory together

# The pretrained model, and the name of its task in the info of a saved model.
PRETRAINED = epath.Path(__file__).parent.parent / "checkpoints/surfaces_relative_tca"
SURFACES = "surfaces"
_PRETRAINED_AXES = 2

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

  A model of one value predicts each of several targets by itself.

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
    self._joint = model.head.num_outputs == values.shape[1]
    # [contexts, n, values of a context]
    known = points.values[None] if self._joint else points.values.T[..., None]
    self._num_contexts = len(known)
    known_at, given = jax.tree.map(
      lambda x: jnp.broadcast_to(x, (len(known), *x.shape[1:])),
      (points.coords[None], given),
    )
    memory = index(params, known_at, known, **given)

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
    queries = np.broadcast_to(locations, (self._num_contexts, *locations.shape))
    output, ends = self._server(queries)
    columns = []
    for i in range(len(self.scaling.targets)):
      target = self.scaling.value_map(i)
      context, value = (0, i) if self._joint else (i, 0)
      one, *quantiles = jax.tree.map(
        lambda x, c=context, v=value: np.float64(x[c, :, v : v + 1]), (output, *ends)
      )
      columns += target.predicted_in_units(one)
      columns += [target.to_units(x) for x in quantiles]
    return np.stack(columns)


def load(
  workdir: epath.PathLike | None = None,
  table: typing.Any = None,
  missing: Missing = "drop",
  columns: point_sets.Columns | None = None,
) -> Predictor:
  """Loads a trained model, with a table as its context.

  Args:
    workdir: folder of a run or of an exported run, or of its saved model; None: the
      pretrained model, which needs a table and columns.
    table: the context, see `point_tables.read`; None: the table of the training, with
      its held-out rows.
    missing: what to do with rows of the table that lack numbers.
    columns: the columns of the table, for the pretrained model only.

  Raises:
    CheckpointError: if there is no saved model of this task.
    ConfigError: if columns are missing, or given to a model that has learned its own.
    DataError: if the table cannot be used.
  """
  model, params, info = load_model(PRETRAINED if workdir is None else workdir)
  if info.get("task") == SURFACES:
    if table is None or columns is None:
      raise ConfigError(
        "table, coords and target must be given: the pretrained model has no table"
      )
    return read_table(model, params, point_tables.read(table), columns, missing)
  if columns is not None:
    raise ConfigError(
      f"coords and target must not be given: the columns of {workdir} are those of its"
      " training"
    )
  rows = point_tables.read(info[INFO]["table"] if table is None else table)
  scaling = point_sets.Scaling.from_json(info[INFO]["scaling"])
  coords, values, _ = point_sets.numbers(rows, scaling.coords, scaling.targets, missing)
  for i, name in enumerate(scaling.targets):
    if scaling.log[i] and values[:, i].min() <= 0:
      raise DataError(
        f"{rows.name}: the column {name!r} must be above 0, because the model has"
        " learned its logarithm"
      )
  return Predictor(model, params, scaling, coords, values)


def read_table(
  model: tca_jax.ReTreever,
  params: typing.Any,
  table: point_tables.Table,
  columns: point_sets.Columns,
  missing: Missing = "drop",
) -> Predictor:
  """Gives a table to the pretrained model.

  Args:
    model: the model.
    params: its parameters.
    table: the context.
    columns: its columns; two are coordinates.
    missing: what to do with rows that lack numbers.

  Raises:
    ConfigError: if the number of coordinates is not two.
    DataError: if the table cannot be used.
  """
  if len(columns.coords) != _PRETRAINED_AXES:
    raise ConfigError(
      f"the pretrained model needs two coordinates, got {len(columns.coords)}"
      f" ({', '.join(columns.coords)}); train a model of your table: --mode=train with"
      " a --workdir"
    )
  coords, values, rows = point_sets.numbers(
    table, columns.coords, columns.targets, missing
  )
  if len(rows) < random_surfaces.MIN_CONTEXT:
    raise DataError(
      f"{table.name} has {len(rows)} {'row' if len(rows) == 1 else 'rows'} with all"
      f" numbers; the pretrained model needs at least {random_surfaces.MIN_CONTEXT}"
    )
  scaling = point_sets.scaling_of(table, columns, coords, values, rows)
  return Predictor(
    with_periods(model, scaling.axis_periods), params, scaling, coords, values
  )


def is_for_pretrained(num_axes: int, num_points: int) -> bool:
  """Whether there is a pretrained model for so many coordinates and context points."""
  return (
    num_axes == _PRETRAINED_AXES
    and num_points >= random_surfaces.MIN_CONTEXT
    and PRETRAINED.exists()
  )


def with_periods(
  model: tca_jax.ReTreever, periods: Sequence[float]
) -> tca_jax.ReTreever:
  """The same model on axes with other periods; 0: an axis is not periodic."""
  if not any(periods):
    return model
  return model.clone(read_out=model.read_out.clone(periods=tuple(periods)))


def load_model(
  workdir: epath.PathLike,
) -> tuple[tca_jax.ReTreever, typing.Any, dict[str, typing.Any]]:
  """Loads the saved model of a workdir: the model, its parameters and its info.

  Raises:
    CheckpointError: if there is no saved model of points or surfaces.
  """
  workdir = paths.to_path(workdir, "--workdir")
  found = [x for x in (workdir, workdir / MODEL) if (x / checkpoint.FILE).exists()]
  if not found and workdir == PRETRAINED:
    raise CheckpointError(
      f"{workdir} does not exist: this copy of the repository has no pretrained model;"
      " train a model of your table: --mode=train with a --workdir"
    )
  if not found:
    raise CheckpointError(
      f"{workdir} has no trained model of points; --mode=train makes one"
    )
  try:
    model, params, info = tca_jax.load(found[0])
  except (OSError, ValueError) as error:
    raise CheckpointError(str(error)) from error
  if INFO not in info and info.get("task") != SURFACES:
    raise CheckpointError(f"{found[0]} is a model of another task than points")
  return typing.cast(tca_jax.ReTreever, model), params, info


def at_rows(predictor: Predictor, at: typing.Any, missing: Missing) -> typing.Any:
  """Predicts the targets at the rows of a table.

  Args:
    predictor: the model with its context.
    at: the rows, see `point_tables.read`; only their coordinates are used.
    missing: what to do with rows that lack numbers. With "drop", they stay, without a
      prediction.

  Returns:
    A `pandas.DataFrame`: the rows of `at` in their order with all their columns, and for
    each target the columns of `Predictor.__call__`.

  Raises:
    DataError: if the table cannot be used.
  """
  rows, names = point_tables.read(at), predictor.scaling.coords
  coords = rows.numbers(names, dates=True)
  rows.check_angles(names, coords)
  complete = rows.complete_rows(coords, missing, "they have no prediction")
  frame = rows.frame.copy()
  for name in predictor.columns:
    if name in frame:
      raise DataError(f"{rows.name} already has a column {name!r}; rename it")
  for name, column in predictor(coords[complete]).items():
    values = np.full(len(rows), np.nan)
    values[complete] = column
    frame[name] = values
  return frame
