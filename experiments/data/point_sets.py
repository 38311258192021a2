"""Points of a table: their scaling, and their split into training and held-out points."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.errors import DataError
from experiments.data import elevation
from experiments.data import point_tables
from experiments.data import windows

MIN_TRAIN = 32  # training points
_SPLIT_SEED = 0
_TARGET_SHARE = 5  # a fifth of few training points are the targets of a window


class LogValueMap(elevation.ValueMap):
  """A map whose standardised values are those of logarithms.

  The mean of exp(X) grows as exp(variance / 2). A distribution that is wider than all
  values, such as a rare component of a mixture, is counted as one that is as wide as
  these; its mean would otherwise be far above every value.
  """

  def to_units(self, values: jax.typing.ArrayLike) -> np.ndarray:
    return np.exp(super().to_units(values))

  def moments_in_units(
    self, mean: jax.typing.ArrayLike, std: jax.typing.ArrayLike
  ) -> tuple[np.ndarray, np.ndarray]:
    std = np.minimum(np.asarray(std, np.float64)[:, 0], 1)
    variance = (self.std * std) ** 2
    mean = self.to_units(np.asarray(mean, np.float64)) * np.exp(variance / 2)
    return mean, mean * np.sqrt(np.expm1(variance))


@dataclasses.dataclass(frozen=True)
class Scaling:
  """The columns of a model, and how it sees them.

  The model's coordinates are (coordinate - center) / scale, and its values are
  (value - mean) / std, where the logarithm can replace the value.

  Attributes:
    coords: names of C coordinates.
    targets: names of E targets.
    center: `[C]`, in units of the table.
    scale: `[C]`, in units of the table.
    periods: `[C]`, in units of the table; 0: the axis is not periodic.
    mean: `[E]`.
    std: `[E]`.
    log: `[E]` bool, whether the value is replaced by its logarithm.
  """

  coords: tuple[str, ...]
  targets: tuple[str, ...]
  center: tuple[float, ...]
  scale: tuple[float, ...]
  periods: tuple[float, ...]
  mean: tuple[float, ...]
  std: tuple[float, ...]
  log: tuple[bool, ...]

  @classmethod
  def from_json(cls, content: Mapping[str, typing.Any]) -> "Scaling":
    """Makes a scaling from what `to_json` returns."""
    return cls(**{name: tuple(x) for name, x in content.items()})

  def to_json(self) -> dict[str, list[typing.Any]]:
    """The attributes by name, as JSON data."""
    return {name: list(x) for name, x in vars(self).items()}

  @property
  def axis_periods(self) -> tuple[float, ...]:
    """`[C]`, the periods in the model's coordinates."""
    return tuple(p / s for p, s in zip(self.periods, self.scale, strict=True))

  def points(self, coords: np.ndarray, values: np.ndarray) -> windows.Points:
    """Converts coordinates `[n, C]` and values `[n, E]` to those of the model."""
    values = np.where(self.log, np.log(np.where(self.log, values, 1)), values)
    values = (values - np.array(self.mean)) / np.array(self.std)
    return windows.Points(
      coords=jnp.asarray(self.locations(coords)),
      values=jnp.asarray(values, jnp.float32),
    )

  def locations(self, coords: np.ndarray) -> np.ndarray:
    """Converts coordinates `[n, C]` to those of the model, float32."""
    return ((coords - np.array(self.center)) / np.array(self.scale)).astype(np.float32)

  def value_map(
    self,
    i: int,
    train: windows.Points | None = None,
    held_out: windows.Points | None = None,
  ) -> elevation.ValueMap:
    """The map of one target, of given points or of none."""

    def one(points: windows.Points | None) -> windows.Points:
      if points is None:
        return windows.Points(coords=jnp.zeros((0, 1)), values=jnp.zeros((0, 1)))
      return dataclasses.replace(points, values=points.values[:, i : i + 1])

    return (LogValueMap if self.log[i] else elevation.ValueMap)(
      train=one(train),
      held_out=one(held_out),
      unit=self.targets[i],
      mean=self.mean[i],
      std=self.std[i],
      asinh_scale=None,
      pixel=0.0,
    )


@dataclasses.dataclass(frozen=True)
class Columns:
  """The columns of a table that a model uses.

  Attributes:
    coords: names of the coordinates.
    targets: names of the targets.
    periods: period of each periodic coordinate, in units of the table.
    log: names of the targets of which logarithms are learned.
    same_scale: names of the coordinates that share a scale.
  """

  coords: Sequence[str]
  targets: Sequence[str]
  periods: Mapping[str, float] = dataclasses.field(default_factory=dict)
  log: Sequence[str] = ()
  same_scale: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class PointSet:
  """Scaled points with a fixed split; both parts are in random order.

  Attributes:
    coords: `[n, C]` float64, the coordinates of all points in units of the table.
    values: `[n, E]` float64, their targets in units of the table.
    scaling: the scaling, whose mean and std are those of the training points.
    train: the `Points` to train on.
    held_out: the `Points` that are only predicted, in evaluations.
  """

  coords: np.ndarray
  values: np.ndarray
  scaling: Scaling
  train: windows.Points
  held_out: windows.Points

  @property
  def num_targets(self) -> int:
    """Number of targets in a window."""
    num_train, num_held_out = len(self.train.coords), len(self.held_out.coords)
    return min(windows.NUM_TARGETS, num_train // _TARGET_SHARE, num_held_out)


def numbers(
  table: point_tables.Table,
  coords: Sequence[str],
  targets: Sequence[str],
  missing: typing.Literal["drop", "error"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The coordinates and the targets of a table's complete rows.

  Args:
    table: the table.
    coords: names of C coordinates.
    targets: names of E targets.
    missing: see `Table.complete_rows`.

  Returns:
    `[n, C]` and `[n, E]` float64; `[n]` int, the rows.

  Raises:
    DataError: if a column cannot be used, or if no row is complete.
  """
  places, values = table.numbers(coords, dates=True), table.numbers(targets)
  rows = table.complete_rows(np.concatenate([places, values], axis=1), missing)
  table.check_angles(coords, places)
  if not len(rows):
    raise DataError(f"{table.name} has no row with all numbers")
  return places[rows], values[rows], rows


def scaling_of(
  table: point_tables.Table,
  columns: Columns,
  places: np.ndarray,
  values: np.ndarray,
  rows: np.ndarray,
  learned: np.ndarray | None = None,
) -> Scaling:
  """Chooses the scaling of a table's columns.

  Each coordinate is scaled to [-1/2, 1/2] by its own range, or by the largest range of
  the coordinates that share a scale. Values are standardised.

  Args:
    table: the table.
    columns: the columns.
    places: `[n, C]`, the coordinates.
    values: `[n, E]`, the targets.
    rows: `[n]` int, the rows in the table.
    learned: the points whose mean and standard deviation count; None: all.

  Raises:
    DataError: if a column is constant, or if a logarithm does not exist.
  """
  names = [*columns.coords, *columns.targets]
  for name, column in zip(names, [*places.T, *values.T], strict=True):
    if np.ptp(column) == 0:
      raise DataError(
        f"{table.name}: the column {name!r} is constant ({column[0]:g}); a model needs"
        " columns that vary"
      )
  for i, name in enumerate(columns.targets):
    low = np.flatnonzero(values[:, i] <= 0)
    if name in columns.log and len(low):
      raise DataError(
        f"{table.name}: the column {name!r} has {values[low[0], i]:g} in"
        f" {table.place(rows[low[0]])}; --log needs numbers above 0"
      )
  low, high = places.min(axis=0), places.max(axis=0)
  scale = high - low
  shared = [name in columns.same_scale for name in columns.coords]
  if any(shared):
    scale[shared] = scale[shared].max()
  taken = [name in columns.log for name in columns.targets]
  values = np.where(taken, np.log(np.where(taken, values, 1)), values)
  if learned is not None:
    values = values[learned]
  return Scaling(
    coords=tuple(columns.coords),
    targets=tuple(columns.targets),
    center=tuple(((low + high) / 2).tolist()),
    scale=tuple(scale.tolist()),
    periods=tuple(float(columns.periods.get(name, 0)) for name in columns.coords),
    mean=tuple(values.mean(axis=0).tolist()),
    std=tuple(np.maximum(values.std(axis=0), 1e-30).tolist()),
    log=tuple(taken),
  )


def build(
  table: point_tables.Table,
  columns: Columns,
  held_out: float,
  missing: typing.Literal["drop", "error"],
) -> PointSet:
  """Scales the points of a table, and holds out a part, the same in every run.

  Args:
    table: the table.
    columns: the columns; see `scaling_of`.
    held_out: fraction of the points that is held out.
    missing: see `Table.complete_rows`.

  Raises:
    DataError: if a column or the number of rows is not sufficient.
  """
  places, values, rows = numbers(table, columns.coords, columns.targets, missing)
  num_held_out = max(round(held_out * len(rows)), 1)
  if len(rows) - num_held_out < MIN_TRAIN:
    raise DataError(
      f"{table.name} has {len(rows)} {'row' if len(rows) == 1 else 'rows'} with all"
      f" numbers; training needs at least {MIN_TRAIN}, and {num_held_out} more are held"
      " out"
    )
  order = np.random.default_rng(_SPLIT_SEED).permutation(len(rows))
  parts = order[num_held_out:], order[:num_held_out]
  scaling = scaling_of(table, columns, places, values, rows, learned=parts[0])
  train, held = (scaling.points(places[part], values[part]) for part in parts)
  return PointSet(places, values, scaling, train, held)
